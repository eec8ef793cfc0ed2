"""Activation maximisation by the name of FlashTorch's `GradientAscent`."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.compat.flashtorch.backprop import on_gpu
from fastcam.compat.flashtorch.images import (
    apply_transforms,
    format_for_plotting,
    grey_or_rgb,
    load_image,
    standardize_and_clip,
    statistics,
)
from fastcam.record import first_convolution, owned, unwrap
from fastcam.visualize.forward import differentiable

_TOGETHER = 8  # filters that are optimised in one batch
_SATURATION, _BRIGHTNESS = 0.15, 0.7  # of the pictures that are drawn


class GradientAscent:
    """Images that excite the filters of a convolution, by FlashTorch's procedure: steps of one size along the gradient.

    x <- x + lr g / (rms(g) + 1e-5),  g = d mean_hw A_filter / dx,  from noise in which 8-bit pixels are 150 to 179

    The model runs in evaluation mode as far as the layer, and is left as it was. `fastcam.maximize` makes clearer
    pictures, within the range of pixels.
    img_size, lr, use_gpu   may be assigned to
    output                  what the last `visualize` optimised
    activation, gradients   of the last step: the filter's mean activation, the scaled gradient
    """

    def __init__(self, model: nn.Module, img_size: int = 224, lr: float = 1.0, use_gpu: bool = False) -> None:
        unwrap(model)
        self.model = model
        self.img_size, self.lr, self.use_gpu = img_size, lr, use_gpu
        self.num_layers = len(list(model.children()))
        self.activation: Tensor | None = None
        self.gradients: Tensor | None = None
        self.output: Any = None

    def optimize(
        self, layer: nn.Module, filter_idx: int, input_: Tensor | None = None, num_iter: int = 30
    ) -> list[Tensor]:
        """The image after each of the `num_iter` steps, `(1, k, H, W)`, detached, on the model's device.

        layer        a convolution of one, two or three dimensions of the model
        filter_idx   one of its output channels
        input_       where to start, `(B, k, H, W)`, each image for itself; None: noise, `img_size` a side, drawn from
                     numpy's global generator as FlashTorch does
        Raises TypeError for another layer or index, ValueError for a channel that is not there, RuntimeError if the
        layer did not run.
        """
        index = _filter(layer, filter_idx)
        self.model = on_gpu(self.model, self.use_gpu)
        x = self._noise(layer) if input_ is None else input_.detach()
        return self._ascend(layer, [index] * len(x), x, num_iter)

    def visualize(
        self,
        layer: nn.Module,
        filter_idxs: int | Sequence[int] | None = None,
        lr: float = 1.0,
        num_iter: int = 30,
        num_subplots: int = 4,
        figsize: tuple[float, float] = (4, 4),
        title: str = "Conv2d",
        return_output: bool = False,
    ) -> Any:
        """Draw the image of one filter, or of several in rows of four, into a new figure, pyplot's current one.

        filter_idxs     an index, several, or None for `num_subplots` different ones by numpy's global generator
        figsize         in inches, of the figure of one filter
        return_output   give back what `optimize` gives, for several filters a list of that
        """
        from fastcam.figures.flashtorch import draw_filters, draw_image

        self.lr = lr
        if _is_index(filter_idxs):
            self.output = self.optimize(layer, operator.index(filter_idxs), num_iter=num_iter)  # type: ignore[arg-type]
            draw_image(_picture(self.output), figsize, title)
        else:
            filters = [_filter(layer, f) for f in self._chosen(layer, filter_idxs, num_subplots)]
            if not filters:
                raise ValueError(f"there is no filter to draw: filter_idxs={filter_idxs}, num_subplots={num_subplots}")
            self.model = on_gpu(self.model, self.use_gpu)
            self.output = self._many(layer, filters, num_iter)
            draw_filters([_picture(o) for o in self.output], filters, title)
        return self.output if return_output else None

    def deepdream(
        self,
        img_path: str | os.PathLike[str],
        layer: nn.Module,
        filter_idx: int,
        lr: float = 0.1,
        num_iter: int = 20,
        figsize: tuple[float, float] = (4, 4),
        title: str = "DeepDream",
        return_output: bool = False,
    ) -> list[Tensor] | None:
        """The same from an image file, cut to `img_size` a side, grey for a model that takes one channel."""
        from fastcam.figures.flashtorch import draw_image

        image = load_image(img_path)
        if (channels := self._first(layer).in_channels) not in (1, 3):
            raise ValueError(f"image files have 1 or 3 channels, the model takes {channels}")
        x = apply_transforms(image if channels == 3 else image.convert("L"), self.img_size)
        self.lr = lr
        output = self.optimize(layer, filter_idx, x, num_iter=num_iter)
        draw_image(_picture(output), figsize, title)
        return output if return_output else None

    def _first(self, layer: nn.Module) -> Any:
        """The convolution that takes the image."""
        return first_convolution(unwrap(self.model)) or layer

    def _noise(self, layer: nn.Module) -> Tensor:
        """`(1, k, *S)` as the model takes it."""
        first = self._first(layer)
        rank, k = first.weight.ndim - 2, first.in_channels
        pixels = np.random.uniform(150, 180, (*[self.img_size] * rank, k)).astype(np.uint8)
        if rank == 2 and k in (1, 3):
            return apply_transforms(pixels, size=self.img_size).detach().to(first.weight.dtype)
        mean, std = (torch.tensor(v) for v in statistics(k))
        return ((torch.from_numpy(pixels) / 255 - mean) / std).movedim(-1, 0)[None].to(first.weight.dtype)

    def _chosen(self, layer: nn.Module, filters: Any, count: int) -> Any:
        if filters is not None:
            return filters
        channels = _channels(layer)
        count = min(channels, count)
        drawn = np.random.choice(channels, size=count)  # FlashTorch's draw, which may have a filter twice
        return drawn if len(set(drawn)) == count else np.random.choice(channels, size=count, replace=False)

    def _many(self, layer: nn.Module, filters: list[int], num_iter: int) -> list[list[Tensor]]:
        """What `optimize` gives for each filter, several at a time."""
        found: list[list[Tensor]] = []
        for start in range(0, len(filters), _TOGETHER):
            part = filters[start : start + _TOGETHER]
            x = torch.cat([self._noise(layer) for _ in part])
            steps = self._ascend(layer, part, x, num_iter)
            found += [[images[n : n + 1] for images in steps] for n in range(len(part))]
        return found

    def _ascend(self, layer: nn.Module, filters: list[int], x: Tensor, num_iter: int) -> list[Tensor]:
        """The images `(N, k, *S)` after each step, each for the filter of its own."""
        net, steps = unwrap(self.model), []
        with differentiable(net, [layer]) as run:
            x = owned(net, x)
            for _ in range(num_iter):
                x.requires_grad_()
                a = run(x).activations[layer]
                a = a.reshape(len(x), -1, *a.shape[1:])  # (N, calls of an image, c, *s)
                means = torch.stack([ops.wide(row[:, f]).mean() for row, f in zip(a, filters, strict=True)])
                gradient = torch.autograd.grad(means.sum(), x, allow_unused=True)[0] if means.requires_grad else None
                if gradient is None:
                    raise RuntimeError(f"no gradient goes from the layer back to the input of {type(net).__name__}")
                g = ops.wide(gradient)
                rms = g.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (g.ndim - 1))
                g = (g / (rms + 1e-5)).to(x.dtype)
                x = x.detach() + g * self.lr
                steps.append(x)
                self.activation, self.gradients = means.detach().mean(), g
        return [step.detach() for step in steps]


def _channels(layer: nn.Module) -> int:
    if not isinstance(layer, nn.modules.conv._ConvNd):
        raise TypeError(f"layer must be a convolution, torch.nn.Conv2d say, got {type(layer).__name__}")
    return layer.out_channels


def _is_index(given: Any) -> bool:
    """Whether it is one whole number, of whichever type."""
    return hasattr(given, "__index__") and not isinstance(given, bool) and getattr(given, "ndim", 0) == 0


def _filter(layer: nn.Module, given: Any) -> int:
    channels = _channels(layer)
    if not _is_index(given):
        raise TypeError(f"filter indices must be integers, got {given!r}")
    if not 0 <= operator.index(given) < channels:
        raise ValueError(f"filter index must be between 0 and {channels - 1}, got {given}")
    return operator.index(given)


def _picture(steps: list[Tensor]) -> np.ndarray:
    """The last image, for a figure."""
    if not steps or steps[-1].ndim != 4:
        given = tuple(steps[-1].shape) if steps else "no step"
        raise ValueError(f"only images (1, k, H, W) are drawn, after 1 step or more, got {given}: use optimize")
    image = standardize_and_clip(steps[-1].float(), saturation=_SATURATION, brightness=_BRIGHTNESS)
    return format_for_plotting(grey_or_rgb(image)).numpy()
