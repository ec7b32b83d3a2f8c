"""What the code runs on: the device, the type of its matrix products, the layout of its images."""

import torch
from torch.amp import GradScaler


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    for name in ("cuda", "mps"):
        if getattr(torch, name).is_available():
            return torch.device(name)
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Does the hardware multiply bf16 matrices? Elsewhere emulation is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu().get("avx512_bf16", False)


def cpu() -> dict:
    """What PyTorch knows of the processor; older versions know nothing."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def precision(device: torch.device) -> torch.dtype:
    """The type of a network's matrix products: bf16, fp16 on a GPU that multiplies only that in half (Volta and
    Turing, Colab's T4; the loss is then scaled), else fp32."""
    if has_bf16(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.float16
    return torch.float32


def autocast(device: torch.device) -> torch.autocast:
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def grad_scaler(device: torch.device) -> GradScaler:
    """For gradients in fp16, of which small ones would vanish; at PyTorch's own first scale, 2**16, some overflow."""
    return GradScaler(device.type, init_scale=2.0**12, enabled=precision(device) == torch.float16)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last where convolutions are faster so. On MPS batch normalisation has given wrong gradients for that
    layout (pytorch/pytorch#175189)."""
    return torch.channels_last if device.type in ("cuda", "cpu") else torch.contiguous_format
