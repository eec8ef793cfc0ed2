"""How the score changes when an image is multiplied by its map."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fastcam.metrics.perturbation_confidence import PerturbationConfidenceMetric
from fastcam.metrics.scoring import multiplied


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """x m, for an image `(k, H, W)` as the model takes it and its map `(H, W)`."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    """y(x m) - y(x): the change of the score when the image is multiplied by its map."""

    def __init__(self) -> None:
        super().__init__(multiply_tensor_with_cam)

    def perturbed(self, x: Tensor, maps: Tensor) -> Tensor:
        return multiplied(x, maps)


class DropInConfidence(CamMultImageConfidenceChange):
    """max(0, y(x) - y(x m)): what the score loses; `average_drop` has it relative to the score."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _of_change(super().__call__(*args, **kwargs), lambda change: np.maximum(-change, 0))


class IncreaseInConfidence(CamMultImageConfidenceChange):
    """1 where y(x m) > y(x), otherwise 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _of_change(super().__call__(*args, **kwargs), lambda change: np.float32(change > 0))


def _of_change(result: Any, function: Any) -> Any:
    """The function of the change, which may have the images beside it."""
    return (function(result[0]), result[1]) if isinstance(result, tuple) else function(result)
