"""The metrics in which pytorch-grad-cam's "auto" percentile takes out the other part of the map."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastcam import metrics


class RemoveMostRelevantFirst(metrics.RemoveMostRelevantFirst):
    """`fastcam.metrics.RemoveMostRelevantFirst` with the reference's "auto"."""

    def __init__(self, percentile: float | str, imputer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(percentile, imputer, reference_otsu=True)


class RemoveLeastRelevantFirst(metrics.RemoveLeastRelevantFirst):
    """`fastcam.metrics.RemoveLeastRelevantFirst` with the reference's "auto"."""

    def __init__(self, percentile: float | str, imputer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(percentile, imputer, reference_otsu=True)


class ROADMostRelevantFirst(metrics.ROADMostRelevantFirst):
    """`fastcam.metrics.ROADMostRelevantFirst` with the reference's "auto"."""

    def __init__(self, percentile: float | str = 80) -> None:
        super().__init__(percentile, reference_otsu=True)


class ROADLeastRelevantFirst(metrics.ROADLeastRelevantFirst):
    """`fastcam.metrics.ROADLeastRelevantFirst` with the reference's "auto"."""

    def __init__(self, percentile: float | str = 20) -> None:
        super().__init__(percentile, reference_otsu=True)
