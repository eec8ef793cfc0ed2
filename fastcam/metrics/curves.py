"""Insertion and deletion: the score while an image appears or vanishes, its most relevant pixels first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam.metrics.scoring import Scorer, as_maps
from fastcam.targets import Targets

Baseline = float | str | Tensor


def insertion_curve(
    model: nn.Module,
    x: Tensor,
    maps: Any,
    targets: Targets = None,
    *,
    steps: int = 100,
    baseline: Baseline = "blur",
    probability: bool = True,
    batch_size: int | str = "auto",
) -> Tensor:
    """The score while pixels are put back, the most relevant first (Petsiuk et al., BMVC 2018, arXiv:1806.07421).

    maps          `(B, H, W)`: an array, a list of arrays or a tensor; of equal values the first pixel counts as higher
    targets       as in a method's call, one per image; None is the class predicted for the image
    steps         at point s of 0 to steps, round(s H W / steps) pixels are those of the image
    baseline      what the others are: "blur" for the image blurred, a number, or a tensor that broadcasts to x
    probability   scores are softmax probabilities; False takes logits. Callables are taken as they are
    batch_size    how many images the model takes at once, or "auto"
    `(B, steps + 1)` on the model's device. Raises ValueError if the maps' size is not the input's.
    """
    return _curve(model, x, maps, targets, steps, baseline, probability, batch_size, inserted=True)


def deletion_curve(
    model: nn.Module,
    x: Tensor,
    maps: Any,
    targets: Targets = None,
    *,
    steps: int = 100,
    baseline: Baseline = 0.0,
    probability: bool = True,
    batch_size: int | str = "auto",
) -> Tensor:
    """The score while pixels are replaced by the baseline, the most relevant first; otherwise as `insertion_curve`."""
    return _curve(model, x, maps, targets, steps, baseline, probability, batch_size, inserted=False)


def insertion_auc(model: nn.Module, x: Tensor, maps: Any, targets: Targets = None, **options: Any) -> Tensor:
    """The area under `insertion_curve`, `(B,)`; higher is better. Arguments as there."""
    return area_under(insertion_curve(model, x, maps, targets, **options))


def deletion_auc(model: nn.Module, x: Tensor, maps: Any, targets: Targets = None, **options: Any) -> Tensor:
    """The area under `deletion_curve`, `(B,)`; lower is better. Arguments as in `insertion_curve`."""
    return area_under(deletion_curve(model, x, maps, targets, **options))


def area_under(curves: Tensor) -> Tensor:
    """The area under curves `(B, steps + 1)` over [0, 1] by the trapezoidal rule: `(B,)`.

    >>> area_under(torch.tensor([[0.0, 0.5, 1.0]]))
    tensor([0.5000])
    """
    return torch.trapezoid(curves, dim=-1) / (curves.shape[-1] - 1)


def blurred(x: Tensor) -> Tensor:
    """Images `(B, k, H, W)` blurred by an 11 x 11 Gaussian of standard deviation 5, the edges continued."""
    offsets = torch.arange(-5, 6, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / 50)
    kernel /= kernel.sum()
    images = F.pad(x.float(), (5, 5, 5, 5), mode="replicate").flatten(0, 1).unsqueeze(1)  # (B k, 1, H + 10, W + 10)
    images = F.conv2d(F.conv2d(images, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return images.view(x.shape).to(x.dtype)


def _curve(
    model: nn.Module,
    x: Tensor,
    maps: Any,
    targets: Targets,
    steps: int,
    baseline: Baseline,
    probability: bool,
    batch_size: int | str,
    inserted: bool,
) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    scorer = Scorer(model, x, targets, probability=probability, batch_size=batch_size)
    x, B = scorer.x, len(x)
    ranks = _ranks(as_maps(maps, x))  # (B, H, W)
    counts = torch.arange(steps + 1, device=x.device) * ranks[0].numel() / steps
    counts = counts.round().long()
    other = _baseline(x, baseline).expand_as(x)
    images = torch.arange(B, device=x.device).repeat_interleave(steps + 1)

    def make(start: int, stop: int) -> Tensor:
        image = images[start:stop]
        count = counts[torch.arange(start, stop, device=x.device) % (steps + 1)]
        first = (ranks[image] < count.view(-1, *[1] * (ranks.ndim - 1))).unsqueeze(1)  # (rows, 1, H, W)
        return torch.where(first, x[image], other[image]) if inserted else torch.where(first, other[image], x[image])

    return scorer.of(len(images), images, make).view(B, steps + 1)


def _ranks(maps: Tensor) -> Tensor:
    """The place of each pixel in the order from the highest value, from 0."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).view(maps.shape)


def _baseline(x: Tensor, baseline: Baseline) -> Tensor:
    if isinstance(baseline, Tensor):
        return baseline.to(x)
    if isinstance(baseline, str):
        if baseline != "blur" or x.ndim != 4:
            raise ValueError(
                f'baseline must be a number, a tensor, or for images (B, k, H, W) "blur", got {baseline!r} for '
                f"{tuple(x.shape)}"
            )
        return blurred(x)
    return torch.full((1,), float(baseline), dtype=x.dtype, device=x.device)
