"""How the score changes when a map decides what is taken out of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.metrics.imputation import NoisyLinearImputer
from fastcam.metrics.scoring import Scorer, as_maps
from fastcam.targets import Targets

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class RemoveMostRelevantFirst:
    """Takes out the most relevant pixels of an image: those at or above a percentile of its map.

    percentile       0 to 100: (100 - percentile) % of the pixels go; "auto" splits the map's histogram by Otsu's
                     method (IEEE Trans. SMC 1979) in 256 steps over [0, 1]
    imputer          what fills the gaps: a callable on an image `(k, H, W)` and a mask `(H, W)`, 0 where to fill
    reference_otsu   "auto" as in pytorch-grad-cam, which takes out the other part
    """

    def __init__(
        self, percentile: float | str, imputer: Callable[[Tensor, Tensor], Tensor], *, reference_otsu: bool = False
    ) -> None:
        valid = percentile == "auto" if isinstance(percentile, str) else 0 <= float(percentile) <= 100
        if not valid:
            raise ValueError(f'percentile must be from 0 to 100, or "auto", got {percentile!r}')
        self.percentile = percentile
        self.imputer = imputer
        self.reference_otsu = reference_otsu

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """The changed image of one image `(k, H, W)` and its map `(H, W)`, or of a batch of both."""
        if input_tensor.ndim == 3:
            return self(input_tensor.unsqueeze(0), mask.unsqueeze(0))[0]
        return fill(self.imputer, input_tensor, kept(self, Ranked(as_maps(mask, input_tensor))))


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Takes out the least relevant pixels: `RemoveMostRelevantFirst` for the map 1 - m."""


class Ranked:
    """Maps `(B, H, W)`, in [0, 1], sorted once for all percentiles."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = ops.wide(maps)
        self._ascending = self.maps.flatten(1).sort(1).values  # (B, N)

    def inverted(self) -> Ranked:
        """1 - m, of which the order is known."""
        result = Ranked.__new__(Ranked)
        result.maps, result._ascending = 1 - self.maps, (1 - self._ascending).flip(1)
        return result

    def percentile(self, q: float) -> Tensor:
        """The q-th percentile of each map `(B, 1, 1)`, rounded as numpy does it."""
        place = (self._ascending.shape[1] - 1) * (q / 100)
        below = int(place)
        t = place - below
        a, b = self._ascending[:, below], self._ascending[:, min(below + 1, self._ascending.shape[1] - 1)]
        return (a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)).view(-1, 1, 1)

    def otsu(self) -> tuple[Tensor, Tensor]:
        """The maps in 256 steps, and Otsu's threshold `(B, 1, 1)`: the largest variance between the two parts."""
        grey = (self.maps * 255).clamp(0, 255).long()
        steps = torch.arange(256, device=grey.device)
        counts = torch.zeros(len(grey), 256, device=grey.device)
        counts.scatter_add_(1, grey.flatten(1), torch.ones_like(self._ascending, dtype=counts.dtype))
        share = counts / self._ascending.shape[1]
        lower, moment = share.cumsum(1), (share * steps).cumsum(1)
        upper = 1 - lower
        apart = (moment / lower.clamp(min=1e-7) - (moment[:, -1:] - moment) / upper.clamp(min=1e-7)) ** 2
        variance = torch.where((lower > 1e-6) & (upper > 1e-6), lower * upper * apart, 0)
        return grey, variance.argmax(1).view(-1, 1, 1)


def kept(removal: RemoveMostRelevantFirst, ranked: Ranked) -> Tensor:
    """The pixels that stay, a boolean `(B, H, W)`."""
    if isinstance(removal, RemoveLeastRelevantFirst):
        ranked = ranked.inverted()
    if not isinstance(removal.percentile, str):
        return ranked.maps < ranked.percentile(removal.percentile)
    grey, threshold = ranked.otsu()
    return grey > threshold if removal.reference_otsu else grey <= threshold


def fill(imputer: Callable[[Tensor, Tensor], Tensor], x: Tensor, keep: Tensor) -> Tensor:
    """Images `(R, k, H, W)` with the pixels that are not kept filled in; a caller's own imputer sees one at a time."""
    if type(imputer) is NoisyLinearImputer:
        return imputer(x, keep)
    return torch.stack([imputer(image, mask) for image, mask in zip(x, keep.to(torch.float32), strict=True)])


class PerturbationConfidenceMetric:
    """The change of the score when an image is perturbed as its map says: y(perturbed) - y(image).

    perturbation   gives the changed image of an image `(k, H, W)` and its map `(H, W)`, tensors on the CPU; fastcam's
                   own work on the whole batch where the model is
    """

    def __init__(self, perturbation: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.perturbation = perturbation

    def __call__(
        self,
        input_tensor: Tensor,
        cams: Any,
        targets: Targets,
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """The change a image, float32 `(B,)` as an array.

        input_tensor           `(B, k, H, W)`, as the model takes it
        cams                   the maps `(B, H, W)`: an array, a list of arrays or a tensor
        targets                as in a method's call, one per image; None is the class predicted for the image
        return_visualization   also the perturbed images `(B, k, H, W)`
        return_diff            False gives the score after the perturbation
        Raises ValueError if the maps' size is not the input's.
        """
        scorer = Scorer(model, input_tensor, targets)
        changed = self.perturbed(scorer.x, as_maps(cams, scorer.x))
        scores = scorer.after(changed)
        result = as_array(scores) - as_array(scorer.before) if return_diff else as_array(scores)
        return (result, changed.to(input_tensor.device)) if return_visualization else result

    def perturbed(self, x: Tensor, maps: Tensor) -> Tensor:
        if type(self.perturbation) in (RemoveMostRelevantFirst, RemoveLeastRelevantFirst):
            return self.perturbation(x, maps)
        pairs = zip(x.cpu(), maps.cpu(), strict=True)
        return torch.stack([self.perturbation(image, m) for image, m in pairs]).to(x.device, x.dtype)


class AveragerAcrossThresholds:
    """The mean of a metric over percentiles.

    imputer       makes the metric of a percentile: a class such as `ROADMostRelevantFirst`, or a function
    percentiles   those to average over
    """

    def __init__(
        self,
        imputer: Callable[[Any], Callable[..., Any]],
        percentiles: Sequence[float] = PERCENTILES,
    ) -> None:
        self.imputer = imputer
        self.percentiles = list(percentiles)

    def __call__(self, input_tensor: Tensor, cams: Any, targets: Targets, model: nn.Module) -> np.ndarray:
        """The mean for each image, float32 `(B,)`; arguments as in `PerturbationConfidenceMetric`."""
        return mean_of(self.metrics(), input_tensor, cams, targets, model)[0]

    def metrics(self) -> list[Callable[..., Any]]:
        return [self.imputer(percentile) for percentile in self.percentiles]


def mean_of(
    metrics: Sequence[Callable[..., Any]], x: Tensor, cams: Any, targets: Targets, model: nn.Module, groups: int = 1
) -> np.ndarray:
    """The means `(groups, B)` over equal groups of metrics, over one run of the model on the images where possible."""
    if _one_imputation(metrics):
        changes = _removals(metrics, x, cams, targets, model)
    else:
        changes = np.array([metric(x, cams, targets, model) for metric in metrics], dtype=np.float32)
    return np.mean(changes.reshape(groups, -1, len(x)), axis=1)


def _one_imputation(metrics: Sequence[Callable[..., Any]]) -> bool:
    """Whether the metrics differ in nothing but the pixels that they take out."""
    settings = set()
    for metric in metrics:
        removal = getattr(metric, "perturbation", None)
        if type(metric).__call__ is not PerturbationConfidenceMetric.__call__ or not isinstance(
            removal, RemoveMostRelevantFirst
        ):
            return False
        if type(removal).__call__ is not RemoveMostRelevantFirst.__call__:
            return False
        if type(removal.imputer) is not NoisyLinearImputer:
            return False
        settings.add(removal.imputer.settings)
    return len(settings) == 1


def _removals(metrics: Sequence[Any], x: Tensor, cams: Any, targets: Targets, model: nn.Module) -> np.ndarray:
    """The change of the score `(metrics, B)` for each metric's pixels filled in, all in one queue."""
    scorer = Scorer(model, x, targets)
    ranked = Ranked(as_maps(cams, scorer.x))
    keep = torch.cat([kept(metric.perturbation, ranked) for metric in metrics])  # (metrics * B, H, W)
    images = torch.arange(len(keep), device=keep.device) % len(x)
    imputer = metrics[0].perturbation.imputer

    def make(start: int, stop: int) -> Tensor:
        return imputer(scorer.x[images[start:stop]], keep[start:stop])

    scores = scorer.of(len(keep), images, make)
    return as_array(scores).reshape(len(metrics), -1) - as_array(scorer.before)


def as_array(scores: Tensor) -> np.ndarray:
    return scores.float().cpu().numpy()
