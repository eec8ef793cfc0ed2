"""Operations whose graph keeps what the gradient of their input needs, and nothing for parameters; on a CPU."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastcam.ops import not_autocast, wide
from fastcam.record import all_modules


def input_graph(net: nn.Module, x: Tensor) -> AbstractContextManager[Any]:
    """`InputGraph` for x on a CPU in a model with a batch norm: others need not pay for each operation's being seen."""
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in all_modules(net))
    return InputGraph() if norms and x.device.type == "cpu" else nullcontext()


Settings = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


class _Convolution(NamedTuple):
    """A call of `F.conv2d` without a bias, as long as its output lives.

    versions   of output and input
    settings   stride, padding, dilation, groups
    """

    output: weakref.ref[Tensor]
    versions: tuple[int, int]
    input: Tensor
    weight: Tensor
    settings: Settings


class InputGraph(TorchFunctionMode):
    """Inside this block a batch norm of fixed statistics, with the convolution before it, gives parameters no gradient.

    What they compute is the same to the bit. PyTorch's backward pass of such a norm reads its input again and sums over
    it for the parameters, whether or not anyone asks; without that the convolution's output need not be kept, and the
    norm's scale goes into the convolution's weight. Gradients of the input differ by rounding. Hooks on the `grad_fn`
    of such a convolution's output are not called; those on the output itself are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: _Convolution | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            output = func(*args, **kwargs)
            self._last = _convolution(output, *args, **kwargs) if output.requires_grad else None
            return output
        if func is F.batch_norm and torch.is_grad_enabled() and not _transformed():
            last, self._last = self._last, None
            return _batch_norm(last, *args, **kwargs)
        return func(*args, **kwargs)


def _transformed() -> bool:
    """Whether a checkpoint, which expects the very same operations again, or `torch.func` is about."""
    kept_by_others = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return kept_by_others or torch._C._are_functorch_transforms_active()


def _convolution(
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Convolution | None:
    plain = bias is None and input.ndim == 4 and not isinstance(padding, str) and output.device.type == "cpu"
    exact = output.dtype in (torch.float32, torch.float64) and output.dtype == input.dtype == weight.dtype
    if not (plain and exact and input.requires_grad):
        return None
    versions = output._version, input._version
    settings = _pair(stride), _pair(padding), _pair(dilation), groups
    return _Convolution(weakref.ref(output), versions, input, weight.detach(), settings)


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (3 - len(value))


def _batch_norm(
    last: _Convolution | None,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    fixed = not training and running_mean is not None and running_var is not None
    if not (fixed and input.requires_grad and input.device.type == "cpu"):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    norm = running_mean, running_var, weight, bias, eps
    if last is None or last.output() is not input or not _untouched(last, input):
        return _FixedNorm.apply(input, None, input, *norm)
    return _FixedNorm.apply(last.input, last, input.detach(), *norm)


def _untouched(last: _Convolution, output: Tensor) -> bool:
    """Whether nothing was written since, and nobody waits for the gradient between convolution and norm."""
    written = (output._version, last.input._version) != last.versions
    return not (written or output._backward_hooks or output.retains_grad)


class _FixedNorm(torch.autograd.Function):
    """A batch norm of fixed statistics as a function of its input, or of the convolution's before it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        before: _Convolution | None,
        z: Tensor,
        mean: Tensor,
        var: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        eps: float,
    ) -> Any:
        scale = (wide(var) + eps).rsqrt() * (1 if w is None else wide(w))  # as PyTorch's kernels, whatever the types
        scale = scale.view(-1, *[1] * (x.ndim - 2))
        ctx.set_materialize_grads(False)
        ctx.settings = None if before is None else before.settings
        ctx.save_for_backward(*((scale,) if before is None else (scale, before.weight, x)))
        return F.batch_norm(z, mean, var, w, b, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return (None,) * 8
        with not_autocast(g):
            return _norm_gradient(g, ctx.settings, *ctx.saved_tensors), *[None] * 7


def _norm_gradient(
    g: Tensor, settings: Settings | None, scale: Tensor, weight: Tensor | None = None, x: Tensor | None = None
) -> Tensor:
    if settings is None or weight is None or x is None:
        return (g * scale).to(g.dtype)
    if weight.numel() < g.numel():  # the scale goes into what is smaller
        return _input_gradient(g, x, weight * scale.unsqueeze(1), settings)
    return _input_gradient(g * scale, x, weight, settings)


def _input_gradient(g: Tensor, x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """The gradient of the convolution's input x, for the gradient g of its output.

    PyTorch takes twice to five times as long over strided kernels of a pixel and those on few channels.
    """
    stride, padding, dilation, groups = settings
    plain = groups == 1 and dilation == (1, 1) and g.is_contiguous() and x.is_contiguous()
    if plain and weight.shape[2:] == (1, 1) and padding == (0, 0):
        return _of_pixels(g, x, weight, stride)
    if plain and stride[0] == stride[1] > 1 and x.shape[1] * stride[0] ** 2 <= 16:
        return _of_phases(g, x, weight, stride[0], padding)
    options = stride, padding, dilation, False, (0, 0), groups, (True, False, False)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *options)[0]


def _of_pixels(g: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """For a kernel of one pixel: a product of matrices, put where the kernel looked."""
    found = torch.matmul(weight.flatten(1).mT, g.flatten(2)).unflatten(2, g.shape[2:])
    if stride == (1, 1):
        return found
    gradient = torch.zeros_like(x)
    gradient[:, :, :: stride[0], :: stride[1]] = found
    return gradient


def _of_phases(g: Tensor, x: Tensor, weight: Tensor, s: int, padding: tuple[int, ...]) -> Tensor:
    """For stride s and few input channels: the s² pixels of a step are channels of a convolution of stride 1."""
    (h, w), (K, C) = weight.shape[2:], weight.shape[:2]
    taps = -(-h // s), -(-w // s)
    kernel = F.pad(weight, (0, taps[1] * s - w, 0, taps[0] * s - h)).view(K, C, taps[0], s, taps[1], s)
    kernel = kernel.permute(1, 3, 5, 0, 2, 4).flip(4, 5).reshape(C * s * s, K, *taps)
    wide = F.pixel_shuffle(torch.conv2d(g, kernel, padding=(taps[0] - 1, taps[1] - 1)), s)
    wide = wide[:, :, padding[0] :, padding[1] :][:, :, : x.shape[2], : x.shape[3]]
    missing = x.shape[2] - wide.shape[2], x.shape[3] - wide.shape[3]  # at the end, where no step of the kernel fits
    return F.pad(wide, (0, missing[1], 0, missing[0])) if any(missing) else wide
