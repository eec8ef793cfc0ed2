"""How much of the input a layer sees: the support of a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.record import call, evaluation, hooked, owned

_INPUTS = 2  # a ReLU or a pooling that passes nothing on for one input may do so for another
_SAME = (nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.BatchNorm1d, nn.BatchNorm2d)
Field = tuple[int, ...] | str


def measured(net: nn.Module, layers: Sequence[nn.Module], x: Inputs) -> dict[nn.Module, Field]:
    """The receptive field of each layer, whose output is `(B, C, *S)`, for inputs like x.

    The extent `(h, w)` of the pixels for which d (output at the centre) / d (input) is not 0 for some of random
    inputs, as far as they lie within the input; "global" where that is all of it. Layers without a gradient to the
    input are left out. What works on each value by itself shares the field of the layer that ran before it.
    """
    found: dict[nn.Module, Field] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.setdefault(module, output.clone())  # what is written into it afterwards is not its own

    with evaluation(net), hooked(layers, keep), torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        x = owned(net, x[:1]).map(lambda t: t.repeat_interleave(_INPUTS, 0))
        noise = torch.randn(x.image.shape, generator=generator).to(x.image).requires_grad_()
        call(net, x.with_image(noise.clone()))
        before: Field | None = None
        for module, output in outputs.items():  # in the order in which they ended
            if not (before is not None and isinstance(module, _SAME)):
                before = _field(output, noise)
            if before is not None:
                found[module] = before
    return found


def _field(output: Tensor, x: Tensor) -> Field | None:
    if not output.requires_grad:
        return None
    centre: Any = (..., *(n // 2 for n in output.shape[2:]))
    gradient = torch.autograd.grad(output[centre].sum(), x, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        return None
    seen = (gradient != 0).flatten(0, 1).any(0)  # S
    if not bool(seen.any()):
        return None
    places = seen.nonzero()  # (n, rank)
    extent = tuple((places.amax(0) - places.amin(0) + 1).tolist())
    return "global" if extent == tuple(seen.shape) else extent
