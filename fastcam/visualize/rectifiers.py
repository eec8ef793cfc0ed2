"""Another backward rule at every ReLU of a call, however it is spelt; the model is not touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Rectifiers(TorchFunctionMode):
    """Inside this block the gradient g of each rectifier's output goes back by another rule, x its input:

    guided       max(g, 0) [0 < x < high]    guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806)
    deconvolve   max(g, 0)                   deconvnet (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901)
    redirect     g [0 < x < high], but for an image in which that is 0 everywhere: g without what pushes x further out.
                 A start at which every rectifier is dead gets away (Olah et al. 2017, for ascending a score)

    `met` counts the rectifiers that were met: ReLU and ReLU6 as modules, functions and methods, in place or not,
    hardtanh and clamp from 0 on, threshold at 0, a leaky ReLU of slope 0, the maximum with 0. `missed` names what else
    a graph has: compiled and scripted code is out of reach.
    """

    def __init__(self, rule: str) -> None:
        super().__init__()
        if rule not in ("guided", "deconvolve", "redirect"):
            raise ValueError(f'rule must be "guided", "deconvolve" or "redirect", got {rule!r}')
        self._rule = rule
        self.met = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("out", func) is None:
            del kwargs["out"]
        found = _SPELLINGS[func](*args, **kwargs) if func in _SPELLINGS and "out" not in kwargs else None
        if found is None or not (found[0].requires_grad and torch.is_grad_enabled()):  # a weight that is clipped, say
            return func(*args, **kwargs)
        self.met += 1
        x, high, in_place = found
        return _Rectify.apply(x, high, in_place, self._rule)


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float | None, in_place: bool, rule: str) -> Tensor:
        ctx.rule = rule
        if rule != "deconvolve":
            inside = x > 0 if high is None else (x > 0) & (x < high)
            ctx.save_for_backward(inside, *((x > 0,) if rule == "redirect" and high is not None else ()))
        if in_place:  # models ignore what relu_ returns
            ctx.mark_dirty(x)
            return x.clamp_(0, high)
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if ctx.rule == "redirect":
            g = _redirected(g, *ctx.saved_tensors)
        elif ctx.rule == "guided":  # one tensor only, as new memory takes longer than the arithmetic
            g = ctx.saved_tensors[0].to(g.dtype).mul_(g).clamp_(min=0)
        else:
            g = g.clamp(min=0)
        return g, None, None, None


def _redirected(g: Tensor, inside: Tensor, above: Tensor | None = None) -> Tensor:
    own = g * inside
    alive = (own != 0).flatten(1).any(1).view(-1, *[1] * (g.ndim - 1)) if g.ndim > 1 else own != 0
    inwards = g.clamp(min=0) if above is None else torch.where(above, g.clamp(max=0), g.clamp(min=0))
    return torch.where(alive | inside, own, inwards)


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


def _leaky(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Found:
    return (input, None, inplace) if negative_slope == 0 else None


def _maximum(input: Tensor, other: Any = None, dim: Any = None, **_: Any) -> Found:
    if not isinstance(other, Tensor):  # the maximum over a dimension
        return None
    for x, bound in ((input, other), (other, input)):
        if x.requires_grad and not bound.requires_grad and bound.numel() and not bound.any():
            return (x, None, False) if x.shape == torch.broadcast_shapes(x.shape, bound.shape) else None
    return None


def _clamp(input: Tensor, min: Any = None, max: Any = None, *, in_place: bool = False) -> Found:
    low, high = _number(min), _number(max)
    if min is None or low != 0 or max is not None and (high is None or high <= 0):
        return None
    return input, high, in_place


def _number(bound: Any) -> float | None:
    """A bound as a number, if it is one."""
    if isinstance(bound, Tensor):
        return float(bound) if bound.numel() == 1 and not bound.requires_grad else None
    return None if bound is None else float(bound)


def _clamp_(input: Tensor, min: Any = None, max: Any = None) -> Found:
    return _clamp(input, min, max, in_place=True)


def missed(scores: Tensor) -> str | None:
    """The name of a rectifier in the graph of the scores that kept its own gradient, None if there is none."""
    nodes: list[Any] = [scores.grad_fn]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _rectifies(node):
            return type(node).__name__
        nodes.extend(child for child, _ in node.next_functions)
    return None


def _rectifies(node: Any) -> bool:
    name = type(node).__name__
    if name in ("ReluBackward0", "DifferentiableGraphBackward", "CompiledFunctionBackward"):
        return True
    if name == "ThresholdBackward0":
        return node._saved_threshold == 0
    if name == "HardtanhBackward0":
        return node._saved_min_val == 0 and node._saved_max_val > 0
    if not name.startswith("Clamp"):
        return False
    low, high = getattr(node, "_saved_min", None), getattr(node, "_saved_max", None)
    from_zero = low is not None and not bool(torch.as_tensor(low).any())
    return from_zero and (high is None or bool((torch.as_tensor(high) > 0).any()))


_SPELLINGS: dict[Any, Callable[..., Found]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu, aten.relu, aten.relu.default), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, Tensor.relu_, aten.relu_, aten.relu_.default), _relu_),
    **dict.fromkeys((F.relu6, torch._C._nn.relu6), _relu6),
    torch._C._nn.relu6_: partial(_relu6, inplace=True),
    **dict.fromkeys((F.hardtanh, torch._C._nn.hardtanh, aten.hardtanh, aten.hardtanh.default), _hardtanh),
    **dict.fromkeys((F.hardtanh_, torch._C._nn.hardtanh_, aten.hardtanh_, aten.hardtanh_.default), _hardtanh_),
    **dict.fromkeys((F.threshold, torch.threshold, aten.threshold, aten.threshold.default), _threshold),
    **dict.fromkeys((torch.threshold_, aten.threshold_, aten.threshold_.default), _threshold_),
    **dict.fromkeys((F.leaky_relu, torch._C._nn.leaky_relu), _leaky),
    **dict.fromkeys((F.leaky_relu_, torch._C._nn.leaky_relu_), partial(_leaky, inplace=True)),
    **dict.fromkeys((torch.maximum, Tensor.maximum, torch.max, Tensor.max), _maximum),
    **dict.fromkeys((aten.clamp, aten.clamp.default, aten.clamp_min, aten.clamp_min.default), _clamp),
    **dict.fromkeys(
        (aten.clamp_, aten.clamp_.default, aten.clamp_min_, aten.clamp_min_.default), partial(_clamp, in_place=True)
    ),
    **dict.fromkeys((torch.clamp, torch.clip, Tensor.clamp, Tensor.clip, torch.clamp_min, Tensor.clamp_min), _clamp),
    **dict.fromkeys(
        (torch.clamp_, torch.clip_, Tensor.clamp_, Tensor.clip_, torch.clamp_min_, Tensor.clamp_min_), _clamp_
    ),
}
