"""The loss by blocks of classes: the same value and gradient as the plain head, in one process and over ranks."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

from lib import heads, losses
from lib.heads import many_classes

PROJECT = Path(__file__).parent.parent
HOOKS = ("forward", "loss", "cosines", "regulariser")
ALL = {**heads.heads(), **heads.variants.HEADS}
OTHERS = [  # with a forward pass, loss, cosines, regulariser or parameters of their own
    name
    for name, head in ALL.items()
    if any(getattr(head, hook) is not getattr(losses.Head, hook) for hook in HOOKS)
    or len(list(head(3, 2).parameters())) > 1
]
ANGULAR = [name for name in ALL if name not in OTHERS]
SOME = ["ArcFace", "CurricularFace", "AdaLoss"]  # a plain one, one with other negatives, one with statistics


def pair(name, C=23, d=5, dtype=torch.float64, seed=0, **constants):
    """Two equal heads whose statistics have left their start values."""
    torch.manual_seed(seed)
    scale = {"s": 10.0} if "s" in ALL[name].ranges() else {}
    head = heads.make(name, C, d, **{**scale, **constants}).to(dtype)
    for buffer in head.buffers():
        buffer.copy_(torch.rand(buffer.shape))
    return head, copy.deepcopy(head)


def batch(C=23, d=5, B=7, dtype=torch.float64):
    """Embeddings (B, d), and labels (B,) with the first and the last class among them."""
    y = torch.randint(C, (B,))
    y[0], y[-1] = 0, C - 1
    return torch.randn(B, d, dtype=dtype, requires_grad=True), y


def plain(head, x, y):
    torch.manual_seed(7)  # ElasticFace draws its margins
    return head.loss(x, y)


def blocks(head, x, y, size=4):
    torch.manual_seed(7)
    return many_classes.cross_entropy(head, x, y, size)


def gradients(head, x, loss):
    return [loss, *torch.autograd.grad(loss, [x, head.W])]


def same(head, twin, x, y, block):
    """Value, gradients and statistics."""
    ours = gradients(twin, x, blocks(twin, x, y, block))
    theirs = gradients(head, x, plain(head, x, y))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(head.named_buffers()))


# ---------------------------------------------------------------- against the plain head


@pytest.mark.parametrize("name", ANGULAR)
def test_same_value_gradient_and_statistics(name):
    for dtype in (torch.float64, torch.float32):
        for block in (1, 4, 22, 23, 1000, None):
            head, twin = pair(name, dtype=dtype)
            for _ in range(3):  # training mode: the statistics move
                same(head, twin, *batch(dtype=dtype), block)


@given(
    name=st.sampled_from(ANGULAR), C=st.integers(1, 40), d=st.integers(2, 9), B=st.integers(1, 12),
    block=st.integers(1, 45), seed=st.integers(0, 999), training=st.booleans(),
)  # fmt: skip
def test_same_at_any_size(name, C, d, B, block, seed, training):
    head, twin = pair(name, C, d, seed=seed)
    same(head.train(training), twin.train(training), *batch(C, d, B), block)


@pytest.mark.parametrize("name", SOME)
def test_default_block_takes_several(name, monkeypatch):
    monkeypatch.setitem(many_classes.BLOCK, "cpu", 64)
    head, twin = pair(name)
    same(head, twin, *batch(), None)


@pytest.mark.parametrize("label", [0, 11, 22])
def test_all_labels_in_one_block(label):
    head, twin = pair("CurricularFace")
    x, y = batch()
    same(head, twin, x, torch.full_like(y, label), 4)


@pytest.mark.parametrize("name", SOME)
def test_hard_angles(name):
    """Embeddings on and opposite to their centres, others there too; s = 64."""
    head, twin = pair(name, C=4, d=3, s=64.0)
    head.W.data = twin.W.data = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    x = torch.tensor([[2.0, 0, 0], [2, 0, 0], [-1, 0, 0], [1, 1e-3, 0]], dtype=torch.float64, requires_grad=True)
    for y in ([0, 1, 2, 3], [3, 0, 0, 1]):
        same(head.eval(), twin.eval(), x, torch.tensor(y), 2)


def test_curricular_has_hard_negatives_here():
    """Otherwise its hook would not be tested."""
    head, _ = pair("CurricularFace")
    x, y = batch()
    with torch.no_grad():
        logits = head(x, y)
    assert (logits != head.s * F.linear(F.normalize(x), F.normalize(head.W)))[F.one_hot(y, 23) == 0].any()


@pytest.mark.parametrize("name", SOME)
def test_empty_batch(name):
    head, twin = pair(name)
    x, y = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = blocks(twin, x, y)
    assert loss.isnan() and plain(head, x, y).isnan()
    torch.testing.assert_close(dict(twin.named_buffers()), dict(head.named_buffers()))


@pytest.mark.parametrize("within", [False, True], ids=["backward outside", "backward within"])
@pytest.mark.parametrize("name", SOME)
def test_under_autocast(name, within):
    """bf16 embeddings, arithmetic in fp32, also where the backward pass runs under autocast."""
    head, twin = pair(name, dtype=torch.float32)
    images, y, network = torch.randn(7, 6), batch()[1], nn.Linear(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        x = network(images)
        expected, loss = plain(head, x, y), blocks(twin, x, y)
    assert x.dtype == torch.bfloat16 and loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=within):
        ours = gradients(twin, x, loss)
    torch.testing.assert_close(ours, gradients(head, x, expected))
    assert [t.dtype for t in ours] == [torch.float32, torch.bfloat16, torch.float32]


def test_centres_in_half_precision():
    head, twin = pair("ArcFace", dtype=torch.bfloat16)
    x, y = batch(dtype=torch.bfloat16)
    ours = gradients(twin, x, blocks(twin, x, y))
    torch.testing.assert_close(ours, gradients(head, x, plain(head, x, y)))
    assert [t.dtype for t in ours] == [torch.float32, torch.bfloat16, torch.bfloat16]


# ---------------------------------------------------------------- as a part of autograd


@pytest.mark.parametrize("name", ["ArcFace", "CurricularFace"])
def test_gradient_from_behind_and_twice(name):
    head, twin = pair(name)
    x, y = batch()
    expected = gradients(head, x, 3 * plain(head, x, y))
    loss = 3 * blocks(twin, x, y)
    for _ in range(2):
        torch.testing.assert_close([loss, *torch.autograd.grad(loss, [x, twin.W], retain_graph=True)], expected)


def test_two_forward_passes_before_the_backward_passes():
    """The second one moves CurricularFace's t, which the first one's gradient must not see."""
    head, twin = pair("CurricularFace")
    batches = [batch() for _ in range(2)]
    expected = [plain(head, *b) for b in batches]
    ours = [blocks(twin, *b) for b in batches]
    for (x, _), theirs, loss in zip(batches, expected, ours, strict=True):
        torch.testing.assert_close(gradients(twin, x, loss), gradients(head, x, theirs))


def test_without_gradient():
    head, twin = pair("AdaFace")
    x, y = batch()
    with torch.no_grad():
        loss = blocks(twin, x, y)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(head, x, y).detach())


def test_second_derivatives_are_refused():
    head, _ = pair("ArcFace")
    x, y = batch()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(blocks(head, x, y), x, create_graph=True)


class Regularised(losses.ArcFace):
    def regulariser(self, x):
        return x.square().mean()


class Stretching(losses.ArcFace):
    def target(self, cos_y, y, norm):
        return cos_y - 0.01 * norm


def test_a_regulariser_joins_the_loss():
    head = Regularised(23, 5).double()
    same(head, copy.deepcopy(head), *batch(), 4)


def test_a_target_that_trains_the_lengths_is_refused():
    with pytest.raises(ValueError, match=r"Stretching trains the lengths of embeddings: use head.loss\(x, y\)"):
        many_classes.cross_entropy(Stretching(23, 5).double(), *batch(), 4)


class Straight(losses.ArcFace):
    def cosines(self, x, W):
        return 1 - 2 / torch.pi * losses.angle(super().cosines(x, W))


def test_cosines_of_its_own_are_refused():
    with pytest.raises(ValueError, match=r"Straight has .* cosines .* of its own: use head.loss\(x, y\)"):
        many_classes.cross_entropy(Straight(23, 5).double(), *batch(), 4)


@pytest.mark.parametrize("name", SOME)
def test_where_values_cannot_be_read_a_wrong_label_gives_nan(name, monkeypatch):
    monkeypatch.setattr(losses, "readable", lambda x: False)
    head, _ = pair(name)
    head.problem()
    x, y = batch()
    y[1] = 23
    before = {k: v.clone() for k, v in head.state_dict().items() if k != "_extra_state"}
    assert blocks(head, x, y).isnan() and "labels must lie in [0, 23)" in head.problem()
    assert all(torch.equal(head.state_dict()[k], v) for k, v in before.items())


def test_changed_centres_are_refused():
    head, _ = pair("ArcFace")
    loss = many_classes.cross_entropy(head, *batch(), 4)
    with torch.no_grad():
        head.W += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_few_classes_take_the_plain_head(monkeypatch):
    monkeypatch.setattr(many_classes, "_Parts", None)
    head, twin = pair("AdaLoss", C=5)
    same(head, twin, *batch(C=5), None)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", OTHERS)
def test_other_heads_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} .* use head.loss\(x, y\)"):
        many_classes.cross_entropy(heads.make(name, 23, 5), *batch())


@pytest.mark.parametrize("block", [0, -3])
def test_block_without_classes(block):
    with pytest.raises(ValueError, match=f"at least one class, got {block}: leave it out"):
        many_classes.cross_entropy(losses.ArcFace(23, 5), *batch(dtype=torch.float32), block)


BAD = {
    "wrong dimension": (torch.ones(2, 3), torch.tensor([0, 1]), "embeddings must be floats of shape"),
    "label too large": (torch.ones(2, 5), torch.tensor([0, 23]), r"labels must lie in \[0, 23\)"),
    "negative label": (torch.ones(2, 5), torch.tensor([0, -1]), r"labels must lie in \[0, 23\)"),
    "labels of another length": (torch.ones(2, 5), torch.tensor([0]), "labels must be int64 of shape"),
    "no direction": (torch.zeros(2, 5), torch.tensor([0, 1]), "length zero"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_named_as_by_the_head(case):
    x, y, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        many_classes.cross_entropy(losses.ArcFace(23, 5), x, y, 4)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- memory

MEMORY = """
import json, sys
import torch
torch.set_num_threads(1)
from benchmarks import head_costs
device = torch.device("cpu")
cases = [("by blocks", 10**4), ("by blocks", 10**5), ("plain head", 10**4)]
for method, _ in cases:
    head_costs.one_step(method, 2 * head_costs.D, device)[0]()
print(json.dumps([head_costs.extra_memory(*case, device) for case in cases]))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux' /proc"
)
def test_memory_does_not_grow_with_the_classes():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many, logits = json.loads(done.stdout)
    block = 4 * many_classes.BLOCK["cpu"]
    assert few < 4 * block and many < few + block  # W alone has 51 MB at 10^5 classes
    assert logits > 3 * 4 * 512 * 10**4  # the measure sees the plain head's copies of its 20 MB of logits


# ---------------------------------------------------------------- classes over ranks


def rank_of_two(rank, folder):
    """What one of two ranks does; any deviation from the single process raises."""
    torch.set_num_threads(1)
    cases = [(*pair(name), *batch(B=8)) for name in ANGULAR]
    for whole, _, x, y in cases:
        plain(whole, x, y)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for whole, head, x, y in cases:  # every rank has all classes and half of the batch
        blocks(head, x.chunk(2)[rank], y.chunk(2)[rank])
        torch.testing.assert_close(dict(head.named_buffers()), dict(whole.named_buffers()))
    losses.Head._all_ranks = _of_one_process  # from here on the head of all classes is that of one process
    mesh = init_device_mesh("cpu", (2,))
    for name in ANGULAR:
        for C in (1, 23):  # one class leaves the second rank without any
            three_steps(*pair(name, C), C, mesh)
    own_batches(rank, mesh)
    refused(mesh)
    dist.barrier()
    dist.destroy_process_group()


def _of_one_process(head, rows):
    return rows


def three_steps(head, twin, C, mesh):
    many_classes.shard(twin, mesh)
    optimizers = [torch.optim.SGD(h.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1) for h in (head, twin)]
    for _ in range(3):
        x, y = batch(C)
        theirs = plain(head, x, y)
        ours = blocks(twin, x, y)
        torch.testing.assert_close([ours, *torch.autograd.grad(ours, x, retain_graph=True)],
                                   [theirs, *torch.autograd.grad(theirs, x, retain_graph=True)])  # fmt: skip
        for optimizer, loss in zip(optimizers, (theirs, ours), strict=True):
            optimizer.zero_grad()
            loss.backward()
        torch.testing.assert_close(twin.W.grad.full_tensor(), head.W.grad)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(twin.W.full_tensor(), head.W.detach())
    torch.testing.assert_close(dict(twin.named_buffers()), dict(head.named_buffers()))


def own_batches(rank, mesh):
    """Each rank has its own half of the batch, as under DistributedDataParallel."""
    head, twin = pair("AdaLoss")
    whole = nn.Linear(6, 5).double()
    network = nn.parallel.DistributedDataParallel(copy.deepcopy(whole))
    images, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(23, (8,))
    many_classes.shard(twin, mesh)
    own = network(images.chunk(2)[rank])
    x = DTensor.from_local(own, mesh, [Shard(0)]).full_tensor(grad_placements=[Partial()])
    blocks(twin, x, y).backward()
    plain(head, whole(images), y).backward()
    torch.testing.assert_close(network.module.weight.grad, whole.weight.grad)
    torch.testing.assert_close(twin.W.grad.full_tensor(), head.W.grad)


def refused(mesh):
    head, _ = pair("ArcFace")
    head.W = nn.Parameter(distribute_tensor(head.W.detach(), mesh, [Replicate()]))
    with pytest.raises(ValueError, match=r"W must be sharded by class .*: use shard"):
        many_classes.cross_entropy(head, *batch())


def test_two_ranks_equal_one_process(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, args=(tmp_path,), nprocs=2)
