"""Another backward rule at every ReLU of a call, however it is spelt; the model is not touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Rectifiers(TorchFunctionMode):
    """Inside this block the gradient g of each rectifier's output goes back by another rule, x its input:

    guided       max(g, 0) [0 < x < high]    guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806)
    deconvolve   max(g, 0)                   deconvnet (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901)

    `met` counts the rectifiers that were met: ReLU and ReLU6 as modules, functions and methods, in place or not,
    hardtanh and clamp from 0 on, threshold at 0. What runs inside compiled or scripted code is not seen.
    """

    def __init__(self, rule: str) -> None:
        super().__init__()
        if rule not in ("guided", "deconvolve"):
            raise ValueError(f'rule must be "guided" or "deconvolve", got {rule!r}')
        self._guided = rule == "guided"
        self.met = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _SPELLINGS[func](*args, **kwargs) if func in _SPELLINGS and "out" not in kwargs else None
        if found is None or not (found[0].requires_grad and torch.is_grad_enabled()):  # a weight that is clipped, say
            return func(*args, **kwargs)
        self.met += 1
        x, high, in_place = found
        return _Rectify.apply(x, high, in_place, self._guided)


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float | None, in_place: bool, guided: bool) -> Tensor:
        ctx.guided = guided
        if guided:
            ctx.save_for_backward(x > 0 if high is None else (x > 0) & (x < high))
        if in_place:  # models ignore what relu_ returns
            ctx.mark_dirty(x)
            return x.clamp_(0, high)
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g = gradients[0].clamp(min=0)
        return (g * ctx.saved_tensors[0] if ctx.guided else g), None, None, None


aten = torch.ops.aten
Found = tuple[Tensor, float | None, bool] | None  # input, upper end, in place; None: no rectifier


def _relu(input: Tensor, inplace: bool = False) -> Found:
    return input, None, inplace


def _relu_(input: Tensor) -> Found:
    return input, None, True


def _relu6(input: Tensor, inplace: bool = False) -> Found:
    return input, 6.0, inplace


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Found:
    return (input, float(max_val), inplace) if min_val == 0 and max_val > 0 else None


def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Found:
    return _hardtanh(input, min_val, max_val, True)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Found:
    return (input, None, inplace) if threshold == 0 and value == 0 else None


def _threshold_(input: Tensor, threshold: float, value: float) -> Found:
    return _threshold(input, threshold, value, True)


def _clamp(input: Tensor, min: Any = None, max: Any = None, *, in_place: bool = False) -> Found:
    if isinstance(min, Tensor) or isinstance(max, Tensor) or min is None or min != 0 or max is not None and max <= 0:
        return None
    return input, None if max is None else float(max), in_place


def _clamp_(input: Tensor, min: Any = None, max: Any = None) -> Found:
    return _clamp(input, min, max, in_place=True)


_SPELLINGS: dict[Any, Callable[..., Found]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu, aten.relu, aten.relu.default), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_, aten.relu_, aten.relu_.default), _relu_),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
    **dict.fromkeys((F.threshold, torch.threshold), _threshold),
    torch.threshold_: _threshold_,
    **dict.fromkeys((torch.clamp, torch.clip, Tensor.clamp, Tensor.clip, torch.clamp_min, Tensor.clamp_min), _clamp),
    **dict.fromkeys(
        (torch.clamp_, torch.clip_, Tensor.clamp_, Tensor.clip_, torch.clamp_min_, Tensor.clamp_min_), _clamp_
    ),
}
