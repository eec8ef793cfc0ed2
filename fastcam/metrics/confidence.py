"""Average drop, increase and gain: the score of an image seen through its map, beside the image's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcam.metrics.scoring import Scorer, as_maps, multiplied
from fastcam.targets import Targets


def average_drop(
    model: nn.Module,
    x: Tensor,
    maps: Any,
    targets: Targets = None,
    *,
    baseline: float | Tensor = 0.0,
    probability: bool = True,
) -> Tensor:
    """How much of the score is lost, for each image (Chattopadhay et al., WACV 2018, arXiv:1710.11063).

    min(1, max(0, Y - O) / |Y|), Y the score of the image x, O that of x m + baseline (1 - m)

    maps          `(B, H, W)` in [0, 1]: an array, a list of arrays or a tensor
    targets       as in a method's call, one per image; None is the class predicted for the image
    baseline      what is seen where the map is 0, a number or a tensor that broadcasts to x
    probability   scores are softmax probabilities, as in the paper; False takes logits, which may be negative: hence
                  |Y| and the minimum. Callables are taken as they are
    `(B,)` in [0, 1], lower is better; the paper's percentage is 100 times the mean. 0 where both scores are 0.
    Raises ValueError if the maps' size is not the input's.
    """
    before, after = _scores(model, x, maps, targets, baseline, probability)
    lost = (before - after).clamp(min=0)
    return torch.where(lost > 0, lost / before.abs().clamp(min=torch.finfo(lost.dtype).tiny), 0).clamp(max=1)


def average_increase(
    model: nn.Module,
    x: Tensor,
    maps: Any,
    targets: Targets = None,
    *,
    baseline: float | Tensor = 0.0,
    probability: bool = True,
) -> Tensor:
    """Whether the score rises, 1 or 0 for each image: O > Y (Chattopadhay et al., WACV 2018, arXiv:1710.11063).

    Arguments as in `average_drop`. `(B,)`, higher is better.
    """
    before, after = _scores(model, x, maps, targets, baseline, probability)
    return (after > before).to(before.dtype)


def average_gain(
    model: nn.Module, x: Tensor, maps: Any, targets: Targets = None, *, baseline: float | Tensor = 0.0
) -> Tensor:
    """How much of what is missing to 1 is gained, for each image (Zhang et al., Opti-CAM, CVIU 2024, arXiv:2301.07002).

    max(0, O - Y) / (1 - Y), for probabilities Y and O

    Arguments as in `average_drop`. `(B,)` in [0, 1], higher is better, 0 where Y is 1.
    Raises ValueError if callables give scores outside [0, 1].
    """
    before, after = _scores(model, x, maps, targets, baseline, True)
    low, high = torch.stack([before, after]).aminmax()
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(f"average_gain needs scores in [0, 1], got {low.item():.3g} to {high.item():.3g}")
    gained = (after - before).clamp(min=0)
    return torch.where(gained > 0, gained / (1 - before).clamp(min=torch.finfo(gained.dtype).tiny), 0).clamp(max=1)


def _scores(
    model: nn.Module, x: Tensor, maps: Any, targets: Targets, baseline: float | Tensor, probability: bool
) -> tuple[Tensor, Tensor]:
    scorer = Scorer(model, x, targets, probability=probability)
    baseline = baseline.to(scorer.x) if isinstance(baseline, Tensor) else baseline
    return scorer.before, scorer.after(multiplied(scorer.x, as_maps(maps, scorer.x), baseline))
