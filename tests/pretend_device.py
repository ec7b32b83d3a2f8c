"""A stand-in for a GPU: ordinary CPU tensors that claim to be on cuda or mps and refuse to mix with others.

    with PretendDevice("cuda") as device:
        model.to("cuda")            # or to whatever lib.device.best_device() finds
        ...
    device.reads, device.copies     # places of lib that waited for a value, or copied from device to device: Counters
    device.operations               # how many operations the device was given

Which device memory belongs to is noted on its storage, so views, parameters and gradients need no further care. Every
operation passes ``__torch_dispatch__``, which refuses what a device would refuse, and then runs on the CPU. What
Python itself asks of a tensor (``device``, ``to``, ``numpy``, ...) and what makes tensors is patched. Afterwards all
tensors are ordinary ones again, to be compared with those of a run on the CPU.

It finds
- operands on different devices. Only a CPU tensor without dimensions may join in, and a CPU index into a device tensor,
  which counts as a copy;
- ``numpy`` of a device tensor, in whatever guise; a CPU generator that is to fill one; float64 on mps;
- blocking reads: item, bool, float, int, tolist, formatting, and operations whose result has a shape that depends on
  values (nonzero, unique, bincount, a boolean index), for which Python waits just as long;
- dtypes that autocast makes: it works as the CPU's does, with the type asked for.
It cannot find wrong or missing kernels, a lack of memory, time, cuDNN's choices, other threads and processes. Tensors
that a C++ function makes from nothing, such as one_hot, pass as on either device.
"""

import collections
import contextlib
import sys
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # tabulates torch's functions when it is imported: before they are patched
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIB = f"{Path(__file__).resolve().parent.parent / 'lib'}/"
FACTORIES = (
    "arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros",
    "empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like",
)  # fmt: skip
aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def where(tensor: Tensor) -> str:
    """The kind of device the tensor is on: cpu, the pretended one, or either."""
    return getattr(tensor.untyped_storage(), "pretended", "cpu")


def put(result, kind: str):
    """The result of an operation, its tensors now on that kind of device."""
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor):
            if kind == "mps" and tensor.dtype in (torch.float64, torch.complex128):
                raise TypeError("cannot convert a MPS Tensor to float64 dtype: MPS does not support float64")
            tensor.untyped_storage().pretended = kind
    return result


def place() -> str:
    """The line of lib that is running: file:line."""
    frame = sys._getframe()
    while frame and not frame.f_code.co_filename.startswith(LIB):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(LIB)}:{frame.f_lineno}" if frame else "outside lib"


class PretendDevice(TorchDispatchMode):
    """kind: cuda or mps. bf16: does the hardware of a cuda device multiply bf16 matrices?"""

    def __init__(self, kind: str, bf16: bool = True):
        super().__init__()
        self.kind, self.bf16, self.making = kind, bf16, False
        self.operations, self.reads, self.copies = 0, collections.Counter(), collections.Counter()

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        for owner, name, value in self._patched():
            self.patches.enter_context(mock.patch.object(owner, name, value))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.patches.close()

    # ---------------------------------------------------------------- operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs := kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kinds = {where(tensor) for tensor in tensors}
        if self.kind not in kinds:
            result = func(*args, **kwargs)
            return result if tensors or self.making else put(result, "either")
        self.operations += 1
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{func}: expected a generator on {self.kind}, but found cpu")
        operation = func.overloadpacket
        if operation is aten.copy_:  # the one that goes from any device to any other
            if len(kinds) > 1:
                self.copies[place()] += 1
            return func(*args, **kwargs)
        indices = [index for index in args[1] if index is not None] if operation in INDEXING else []
        self._refuse_mixing(func, tensors, indices)
        mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if mask or (operation not in INDEXING and not WAITING.isdisjoint(func.tags)):
            self.reads[place()] += 1
        return put(func(*args, **kwargs), self.kind)

    def _refuse_mixing(self, func, tensors: list[Tensor], indices: list[Tensor]) -> None:
        for i, tensor in enumerate(tensors):
            if where(tensor) in (self.kind, "either"):
                continue
            if any(tensor is index for index in indices):
                self.copies[place()] += 1
            elif tensor.ndim or (i == 0 and func._schema.is_mutable):  # not even a scalar takes the result
                raise RuntimeError(f"{func}: expected all tensors on the same device, but found {self.kind} and cpu")

    # ---------------------------------------------------------------- what Python asks of tensors and of torch

    def _patched(self):
        """(owner, name, value) of everything that is patched."""
        kind = self.kind
        yield Tensor, "device", property(lambda tensor: torch.device(f"{kind}:0" if where(tensor) == kind else "cpu"))
        for name in ("cpu", "cuda", "mps"):
            yield Tensor, f"is_{name}", property(lambda tensor, name=name: tensor.device.type == name)
        yield Tensor, "numpy", self._numpy(Tensor.numpy)
        yield Tensor, "tolist", self._tolist(Tensor.tolist)
        yield Tensor, "to", self._to(Tensor.to)
        yield Tensor, "cpu", lambda tensor: tensor.to("cpu")
        yield Tensor, "cuda", lambda tensor: tensor.to("cuda")
        for name in FACTORIES:
            yield torch, name, self._factory(getattr(torch, name))
        yield torch, "autocast", self._autocast(torch.autocast)
        yield torch.cuda, "is_available", lambda: kind == "cuda"
        yield torch.mps, "is_available", lambda: kind == "mps"
        yield torch.cuda, "is_bf16_supported", lambda including_emulation=True: self.bf16 or including_emulation
        yield torch.cuda, "get_device_capability", lambda device=None: (9, 0) if self.bf16 else (7, 5)
        yield torch.cuda, "get_device_name", lambda device=None: "a pretended GPU"
        yield torch.cuda, "synchronize", lambda device=None: None
        yield torch.mps, "synchronize", lambda: None
        yield torch.accelerator, "current_accelerator", lambda check_available=False: None  # optimizers ask for graphs

    def _numpy(self, original):
        def numpy(tensor, **options):
            if where(tensor) == self.kind:
                raise TypeError(f"can't convert {self.kind} tensor to numpy: use Tensor.cpu() first")
            return original(tensor, **options)

        return numpy

    def _tolist(self, original):
        def tolist(tensor):
            if where(tensor) == self.kind:
                self.reads[place()] += 1
                tensor = put(tensor.detach().clone(), "cpu")
            return original(tensor)

        return tolist

    def _to(self, original):
        def to(tensor, *args, **options):
            target, *rest = args or (options.pop("device", None),)
            if isinstance(target, Tensor):
                target, rest = target.device, [target.dtype, *rest]
            elif isinstance(target, torch.dtype):
                target, rest = None, [target, *rest]
            source = tensor.device.type
            target = source if target is None else torch.device(target).type
            if target == source:
                return original(tensor, "cpu", *rest, **options)
            self.copies[place()] += 1
            if source == self.kind:
                return original(_Transfer.apply(tensor, source, target), "cpu", *rest, **options)
            return _Transfer.apply(original(tensor, "cpu", *rest, **options), source, target)

        return to

    def _factory(self, original):
        def factory(*args, device=None, **options):
            kind = None if device is None else torch.device(device).type
            if kind == self.kind and options.get("generator"):
                raise RuntimeError(f"expected a generator on {kind}, but found cpu")
            if kind == self.kind and original.__name__ == "tensor":  # Python's values have to get there
                self.copies[place()] += 1
            self.making = True
            try:
                made = original(*args, **options)
            finally:
                self.making = False
            return made if kind is None else put(made, kind)

        return factory

    def _autocast(self, original):
        class autocast(original):
            def __init__(self, device_type, dtype=None, **options):
                super().__init__("cpu", dtype or torch.get_autocast_dtype(device_type), **options)

        return autocast


class _Transfer(torch.autograd.Function):
    """A copy on another device; its gradient comes back."""

    @staticmethod
    def forward(ctx, tensor, source, target):
        ctx.source = source
        return put(tensor.clone(), target)

    @staticmethod
    def backward(ctx, grad):
        return put(grad.clone(), ctx.source), None, None
