"""Saliency by the name of FlashTorch's `Backprop`."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.compat.flashtorch.images import denormalize, format_for_plotting, grey_or_rgb, standardize_and_clip
from fastcam.inputs import check_input
from fastcam.record import owned, unwrap
from fastcam.targets import scores
from fastcam.visualize.forward import differentiable
from fastcam.visualize.saliency import GuidedBackprop


class Backprop:
    """The gradient of a class's score with respect to the image, plain or guided, and its figure.

    model       left in evaluation mode, on which scripts count that call it themselves; otherwise as it was
    gradients   the last gradient `(B, k, H, W)`, on the model's device
    """

    def __init__(self, model: nn.Module) -> None:
        unwrap(model)
        self.model = model.eval()
        self.gradients: Tensor | None = None

    def calculate_gradients(
        self,
        input_: Tensor,
        target_class: Any = None,
        take_max: bool = False,
        guided: bool = False,
        use_gpu: bool = False,
    ) -> Tensor:
        """d score / d input on the CPU: `(k, H, W)` for a batch of one image, otherwise `(B, k, H, W)`.

        target_class   the class that is explained, or one for each image; None: the predicted one. A model with one
                       score an image has that one only
        take_max       the largest value over the channels, signed, `(1, H, W)` or `(B, 1, H, W)`
        guided         with max(g, 0) [z > 0] at every rectifier, `fastcam.GuidedBackprop`
        use_gpu        move the model to the GPU, if there is one
        Raises ValueError for a class that the model has not, and if guided met no rectifier.
        """
        check_input(input_)
        self.model = on_gpu(self.model, use_gpu)
        targets = _targets(target_class, len(input_))
        if guided:
            method: Any = GuidedBackprop(self.model)
            self.gradients = getattr(method, "attribute", method)(input_, targets)
        else:
            self.gradients = _gradient(self.model, input_, targets)
        gradients = _one(self.gradients.detach().cpu())
        return gradients.amax(-3, keepdim=True) if take_max else gradients

    def visualize(
        self,
        input_: Tensor,
        target_class: Any,
        guided: bool = False,
        use_gpu: bool = False,
        figsize: tuple[float, float] = (16, 4),
        cmap: str = "viridis",
        alpha: float = 0.5,
        return_output: bool = False,
    ) -> tuple[Tensor, Tensor] | None:
        """Draw the image, its gradients, their largest over the channels, and that above the image, in a row.

        The figure is left as pyplot's current one, `plt.show()` and `plt.savefig()` are the caller's. A batch has a
        row for each image.
        return_output   give back the gradients and their largest over the channels
        """
        from fastcam.figures.flashtorch import draw_gradients

        check_input(input_)
        if input_.ndim != 4:
            raise ValueError(f"only images (B, k, H, W) are drawn, got {tuple(input_.shape)}: use calculate_gradients")
        gradients = self.calculate_gradients(input_, target_class, guided=guided, use_gpu=use_gpu)
        largest = gradients.amax(-3, keepdim=True)
        rows = []
        for image, gradient, most in zip(input_.detach().cpu(), _all(gradients), _all(largest), strict=True):
            panels = (
                denormalize(image[None]),
                standardize_and_clip(gradient.float()),
                standardize_and_clip(most.float()),
            )
            rows.append([format_for_plotting(grey_or_rgb(panel)).numpy() for panel in panels])
        draw_gradients(rows, figsize, cmap, alpha)
        return (gradients, largest) if return_output else None


class _Class:
    """A target: the score of a class, None the highest; of a model with one score, that."""

    def __init__(self, index: int | None) -> None:
        self.index = index

    def __call__(self, row: Tensor) -> Tensor:
        if row.numel() == 1:
            return row.reshape(())
        if row.ndim != 1:
            raise ValueError(f"a class needs scores (classes,) for each image, the model gives {tuple(row.shape)}")
        if self.index is None:
            return row.gather(0, row.detach().argmax(0, keepdim=True))
        if not 0 <= self.index < len(row):
            raise ValueError(f"target_class {self.index} is out of range: the model has {len(row)} classes")
        return row[self.index]


def _targets(target_class: Any, batch: int) -> list[_Class]:
    if isinstance(target_class, str):
        raise TypeError(f"target_class must be an index, got {target_class!r}: ImageNetIndex()[{target_class!r}]?")
    given = target_class.tolist() if hasattr(target_class, "tolist") else target_class
    classes = list(given) if isinstance(given, list | tuple) else [given]
    if len(classes) not in (1, batch):
        raise ValueError(f"target_class must be one or {batch} for {batch} images, got {len(classes)}")
    try:
        return [_Class(None if c is None else operator.index(c)) for c in classes] * (batch // len(classes))
    except TypeError:
        raise TypeError(f"target_class must be an index or one for each image, got {target_class!r}") from None


def _gradient(model: nn.Module, input_: Tensor, targets: list[_Class]) -> Tensor:
    net = unwrap(model)
    with differentiable(net, []) as run:
        x = owned(net, input_.detach()).requires_grad_()
        score = scores(run(x).output, targets, len(x)).sum()
        gradient = torch.autograd.grad(score, x, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise RuntimeError(f"the output of {type(net).__name__} carries no gradient back to the input")
    return gradient


def on_gpu(model: nn.Module, use_gpu: bool) -> nn.Module:
    """The model, moved to the GPU if that is asked for and there is one."""
    return model.to("cuda") if use_gpu and torch.cuda.is_available() else model


def _one(batch: Tensor) -> Tensor:
    return batch[0] if len(batch) == 1 else batch


def _all(gradients: Tensor) -> Tensor:
    return gradients[None] if gradients.ndim == 3 else gradients
