"""What fast mode does to its copy of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}  # of x86


@dataclass(frozen=True)
class Optimize:
    """What the fast mode of a method does to its private copy of the model: `GradCAM(model, optimize=Optimize(...))`.

    fold            put batch norms of fixed statistics into the convolutions before them
    channels_last   keep activations `(B, C, H, W)` in that memory order
    dtype           "bf16" or "fp16" for parameters and images; None leaves them as they are
    compile         `torch.compile` what comes before and behind the target layers, each block of modules by itself,
                    for each size of batch anew
    cuda_graphs     on an NVIDIA GPU: launch a whole call, run, gradient and maps, as one CUDA graph; of up to 16
                    images, where launches take longer than the work
    Raises ValueError for another dtype, TypeError for a flag that is no bool.

    >>> Optimize(dtype="bf16")
    Optimize(fold=True, channels_last=True, dtype='bf16', compile=False, cuda_graphs=False)
    """

    fold: bool = True
    channels_last: bool = True
    dtype: str | None = None
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "dtype" and not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be None, {' or '.join(map(repr, _DTYPES))}, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else _DTYPES[self.dtype]

    def check(self, device: torch.device) -> None:
        """ValueError if the device lacks what is asked for."""
        if self.dtype is not None and not _computes(device, _DTYPES[self.dtype]):
            raise ValueError(f"{_called(device)} does not compute in {self.dtype}: choose another dtype, or None")
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError(f"cuda_graphs need an NVIDIA GPU, the model is on {_called(device)}")


def settings_of(optimize: Any) -> Optimize | None:
    """From what a method is given to the settings; None for no fast mode."""
    if optimize is None or isinstance(optimize, bool):
        return Optimize() if optimize else None
    if isinstance(optimize, Optimize):
        return optimize
    raise TypeError(f"optimize must be True, False or fastcam.Optimize(...), got {optimize!r}")


def _called(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else f"device {device}"


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device itself has the type, not only PyTorch a slow way around it."""
    half = dtype == torch.float16
    if device.type == "cuda":
        with torch.cuda.device(device):
            return half or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        ops = torch.ops.mkldnn
        known: Any = getattr(torch.cpu, "get_capabilities", dict)()
        supported = ops._is_mkldnn_fp16_supported() if half else ops._is_mkldnn_bf16_supported()
        own = [known[name] for name in _INSTRUCTIONS[dtype] if name in known]
        return bool(supported) and (not own or any(own))  # oneDNN also takes an x86 that has to convert
    try:
        torch.ones(1, 1, device=device, dtype=dtype) @ torch.ones(1, 1, device=device, dtype=dtype)
    except (RuntimeError, TypeError):
        return False
    return True
