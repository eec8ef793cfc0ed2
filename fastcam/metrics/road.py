"""ROAD, remove and debias (Rong et al., ICML 2022, arXiv:2202.00449): the score after pixels are imputed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.metrics.imputation import NoisyLinearImputer
from fastcam.metrics.imputation import neighbors_weights as neighbors_weights
from fastcam.metrics.perturbation_confidence import (
    PERCENTILES,
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
    mean_of,
)
from fastcam.targets import Targets


class _ROAD(PerturbationConfidenceMetric):
    removal: type[RemoveMostRelevantFirst]

    def __init__(
        self,
        percentile: float | str,
        noise: float,
        generator: torch.Generator | None,
        reference_otsu: bool,
    ) -> None:
        imputer = NoisyLinearImputer(noise, generator=generator)
        super().__init__(self.removal(percentile, imputer, reference_otsu=reference_otsu))


class ROADMostRelevantFirst(_ROAD):
    """The change of the score when the most relevant (100 - percentile) % of the pixels are imputed; lower is better.

    noise, generator   of `NoisyLinearImputer`
    reference_otsu     of `RemoveMostRelevantFirst`
    """

    removal = RemoveMostRelevantFirst

    def __init__(
        self,
        percentile: float | str = 80,
        *,
        noise: float = 0.01,
        generator: torch.Generator | None = None,
        reference_otsu: bool = False,
    ) -> None:
        super().__init__(percentile, noise, generator, reference_otsu)


class ROADLeastRelevantFirst(_ROAD):
    """The change of the score when the least relevant (100 - percentile) % of the pixels are imputed; higher is better.

    Keywords as in `ROADMostRelevantFirst`.
    """

    removal = RemoveLeastRelevantFirst

    def __init__(
        self,
        percentile: float | str = 20,
        *,
        noise: float = 0.01,
        generator: torch.Generator | None = None,
        reference_otsu: bool = False,
    ) -> None:
        super().__init__(percentile, noise, generator, reference_otsu)


class ROADMostRelevantFirstAverage(AveragerAcrossThresholds):
    """`ROADMostRelevantFirst`, the mean over percentiles; keywords as there."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES, **options: Any) -> None:
        super().__init__(partial(ROADMostRelevantFirst, **options), percentiles)


class ROADLeastRelevantFirstAverage(AveragerAcrossThresholds):
    """`ROADLeastRelevantFirst`, the mean over percentiles; keywords as there."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES, **options: Any) -> None:
        super().__init__(partial(ROADLeastRelevantFirst, **options), percentiles)


class ROADCombined:
    """Half the difference of the two averages, least minus most relevant first; higher is better, 0 says nothing.

    2 P scored images an image for P percentiles, and the image itself once. Keywords as in `ROADMostRelevantFirst`.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> ROADCombined(percentiles=[20, 80])(torch.rand(2, 1, 8, 8), torch.rand(2, 8, 8), None, model).shape
    (2,)
    """

    def __init__(self, percentiles: Sequence[float] = PERCENTILES, **options: Any) -> None:
        self.percentiles = list(percentiles)
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles, **options)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles, **options)

    def __call__(self, input_tensor: Tensor, cams: Any, targets: Targets, model: nn.Module) -> np.ndarray:
        """For each image, float32 `(B,)`; arguments as in `PerturbationConfidenceMetric`."""
        metrics = [*self.lerf_averager.metrics(), *self.morf_averager.metrics()]
        least, most = mean_of(metrics, input_tensor, cams, targets, model, groups=2)
        return (least - most) / 2
