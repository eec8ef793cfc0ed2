"""A map's coherency and complexity, and the two scores that combine them with its faithfulness: ARCC and ADCC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.metrics.confidence import average_drop
from fastcam.metrics.road import ROADCombined
from fastcam.metrics.scoring import as_maps, multiplied
from fastcam.record import call, check_input, evaluation, owned, unwrap
from fastcam.targets import ClassifierOutputTarget, Targets, class_indices, logits_of

Explain = Callable[[Tensor, Targets], Any]


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of maps `(B, *S)` with maps `(B, *S)`: `(B,)` in [-1, 1], 0 where one of them is constant."""
    return (_standardised(a) * _standardised(b)).sum(1).clamp(-1, 1)


def _standardised(maps: Tensor) -> Tensor:
    """Maps `(B, N)` of mean 0 and norm 1; 0 where a map is constant, which rounding would hide."""
    v = ops.wide(maps).flatten(1)
    varied = v.amax(1, keepdim=True) > v.amin(1, keepdim=True)
    v = torch.where(varied, v - v.mean(1, keepdim=True), 0)
    v = v / torch.where(varied, v.abs().amax(1, keepdim=True), 1)  # squares of small values would vanish
    return v / torch.where(varied, v.norm(dim=1, keepdim=True), 1)


def batch_pearson_coherency(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """The correlation of maps A `(B, H, W)` with maps B, arrays: `(B,)`.

    r = cov(a, b) / (std a std b + 1e-8), with the unbiased covariance; `pearson` for tensors has no such term.
    """
    a, b = (m.reshape(len(m), -1) - m.reshape(len(m), -1).mean(axis=1, keepdims=True) for m in (A, B))
    n = a.shape[1] - 1
    std = np.sqrt((a**2).sum(axis=1) / n) * np.sqrt((b**2).sum(axis=1) / n)
    return (a * b).sum(axis=1) / n / (std + 1e-8)


class Complexity:
    """mean |m|: the L1 norm of a map over its number of pixels, 0 to 1 for maps in [0, 1]; lower is better.

    Poppi et al., CVPR Workshops 2021, arXiv:2104.10252.
    """

    def __call__(self, grayscale_cams: Any) -> np.ndarray:
        """For maps `(B, H, W)`, an array, a list of arrays or a tensor: `(B,)`."""
        maps = _array(grayscale_cams).reshape(len(grayscale_cams), -1)
        return np.abs(maps).sum(axis=1) / maps.shape[1]


class Coherency:
    """(r + 1) / 2, r the correlation of a map with the map of the image multiplied by it; higher is better.

    Poppi et al., CVPR Workshops 2021, arXiv:2104.10252.
    """

    def __call__(
        self, input_tensor: Tensor, grayscale_cams: Any, targets: Targets, model: nn.Module, base_method: Any
    ) -> np.ndarray:
        """`(B,)` in [0, 1].

        base_method   a method, called as `base_method(input_tensor=..., targets=...)`
        Other arguments as in `PerturbationConfidenceMetric`.
        """
        again, maps = _explained_again(
            model, input_tensor, grayscale_cams, targets, lambda x, t: base_method(input_tensor=x, targets=t)
        )
        return (batch_pearson_coherency(_array(again), _array(maps)) + 1) / 2


class ARCC:
    """The harmonic mean of coherency, 1 - complexity and ROAD, clipped from 2 ROAD to [0, 1] (arXiv:2605.14641).

    base_method         a method, called as `base_method(input_tensor=..., targets=...)`
    road_percentiles    of `ROADCombined`, as are the keywords
    """

    def __init__(self, base_method: Any, road_percentiles: Sequence[float] = (20, 40, 60, 80), **options: Any) -> None:
        self.complexity = Complexity()
        self.coherency = Coherency()
        self.road = ROADCombined(percentiles=road_percentiles, **options)
        self.base_method = base_method

    def __call__(self, input_tensor: Tensor, grayscale_cams: Any, targets: Targets, model: nn.Module) -> np.ndarray:
        """`(B,)` in [0, 1], higher is better; arguments as in `PerturbationConfidenceMetric`."""
        complexity = self.complexity(grayscale_cams)
        coherency = self.coherency(input_tensor, grayscale_cams, targets, model, self.base_method)
        road = (2 * self.road(input_tensor, grayscale_cams, targets, model)).clip(0, 1)
        return 3 / (1 / (coherency + 1e-8) + 1 / (1 - complexity + 1e-8) + 1 / (road + 1e-8))


def adcc(
    model: nn.Module, x: Tensor, maps: Any, explain: Explain, targets: Targets = None, *, probability: bool = True
) -> Tensor:
    """ADCC: the harmonic mean of coherency, 1 - complexity and 1 - average drop (Poppi et al., arXiv:2104.10252).

    3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))

    maps      `(B, H, W)` in [0, 1]
    explain   how the maps are made: a method, or a function of images and targets that gives maps `(B, H, W)`
    Other arguments as in `average_drop`. `(B,)` in [0, 1], higher is better; 0 as soon as one of the three is 0.
    """
    again, given = _explained_again(model, x, maps, targets, explain)
    coherency = (pearson(again, given) + 1) / 2
    complexity = given.abs().flatten(1).mean(1).clamp(max=1)
    drop = average_drop(model, x, maps, targets, probability=probability)
    return 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))


def _explained_again(
    model: nn.Module, x: Tensor, maps: Any, targets: Targets, explain: Explain
) -> tuple[Tensor, Tensor]:
    """The maps of the images multiplied by their maps, and the given ones; both `(B, H, W)`."""
    check_input(x)
    net = unwrap(model)
    x = owned(net, x)
    given = as_maps(maps, x)
    if targets is None:  # the class predicted for the image, not for what its map leaves of it
        with evaluation(net):
            predicted = class_indices(None, logits_of(call(net, x.clone())))
        targets = [ClassifierOutputTarget(c) for c in predicted.tolist()]
    return as_maps(explain(multiplied(x, given), targets), x), given


def _array(maps: Any) -> np.ndarray:
    if isinstance(maps, Tensor):
        return maps.detach().cpu().numpy()
    return np.asarray(maps)
