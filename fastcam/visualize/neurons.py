"""Single values of a layer's maps: what they are for images, and what in an image they come from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.layers import layer_name
from fastcam.record import owned, record
from fastcam.tokens import layout_of
from fastcam.visualize.forward import differentiable
from fastcam.visualize.rectifiers import Rectifiers, missed

RULES = {"guided": "guided", "deconvnet": "deconvolve", "gradient": None}  # of a projection at rectifiers


class Neurons:
    """The maps of a model's layer, which is run as far as needed, and gradients of single values in them.

    projection          "guided", "deconvnet", "gradient" or None
    reshape_transform   makes maps of the layer's output; None finds out how it lies
    """

    def __init__(
        self,
        net: nn.Module,
        module: nn.Module,
        projection: str | None,
        reshape_transform: Callable[[Any], Tensor] | None,
    ) -> None:
        self.net, self.module, self.projection = net, module, projection
        self.reshape_transform = reshape_transform
        self.name = layer_name(net, module)

    def maps(self, images: Tensor) -> Tensor:
        """`(B, C, h, w)` of images `(B, k, H, W)`."""
        with record(self.net, [self.module], images, gradients=False, complete=False) as run:
            return self.arranged(run.input, run.activations[0])

    def arranged(self, images: Tensor, output: Tensor) -> Tensor:
        """The layer's output for images as maps `(B, C, h, w)`."""
        given = tuple(output.shape)
        if self.reshape_transform is not None:
            output = self.reshape_transform(output)
        elif output.ndim == 3 or output.ndim == 4 and output.shape[2:].numel() > 1:
            output = layout_of(self.net, self.module, Inputs(images.detach()), given)(output)
        if output.ndim != 4 or len(output) != len(images):
            raise ValueError(
                f"layer {self.name!r} ({type(self.module).__name__}) gives {given} for {len(images)} images, no maps "
                "(B, C, h, w): choose a convolution or a stage, `fastcam.layer_table` lists what each layer gives"
            )
        return output

    def projected(self, images: Tensor, neurons: list[tuple[int, int, int]]) -> Tensor | None:
        """Of each image the gradient of its neuron (channel, row, column) `(B, k, H, W)`."""
        if self.projection is None:
            return None
        rule = RULES[self.projection]
        with differentiable(self.net, [self.module]) as run, ExitStack() as stack:
            x = owned(self.net, images).detach().requires_grad_()
            rectifiers = stack.enter_context(Rectifiers(rule)) if rule else None
            maps = self.arranged(x, run(x).activations[self.module])
            stack.close()  # the backward pass is as the forward pass made it
            channel, row, column = (torch.tensor(t, device=maps.device) for t in zip(*neurons, strict=True))
            score = maps[torch.arange(len(x), device=maps.device), channel, row, column].sum()
            if rectifiers is not None:
                self._check_rectifiers(rectifiers.met, score)
            gradient = torch.autograd.grad(score, x, allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise RuntimeError(
                f"layer {self.name!r} carries no gradient back to the input: pass projection=None for the patches alone"
            )
        return gradient

    def _check_rectifiers(self, met: int, score: Tensor) -> None:
        if (name := missed(score)) is not None:
            raise RuntimeError(
                f"{type(self.net).__name__} rectifies out of reach of another backward rule ({name}): compiled or "
                'scripted code, say; use the plain modules, or projection="gradient" or None'
            )
        if not met:
            raise ValueError(
                f"{type(self.net).__name__} met no ReLU up to layer {self.name!r}, where projection="
                f'{self.projection!r} would be the plain gradient: pass projection="gradient", or None for none'
            )
