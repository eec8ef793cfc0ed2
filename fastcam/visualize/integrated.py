"""The gradient along the way from a baseline to the image, times that way."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.batches import check_count
from fastcam.inputs import Inputs
from fastcam.layers import image_channel_dim
from fastcam.methods.masking import blur
from fastcam.record import unwrap
from fastcam.targets import Targets, per_image
from fastcam.visualize.gradients import Found, Run
from fastcam.visualize.saliency import Saliency
from fastcam.visualize.sampled import Asked, SampledGradient, draws

NAMED = ("black", "blur", "mean", "noise")
_TOLERATED = 0.05


class IntegratedGradients(SampledGradient):
    """Integrated gradients (Sundararajan et al., ICML 2017, arXiv:1703.01365).

    A = (x - x') ∫ dy/dx (x' + a (x - x')) da,  a from 0 to 1,  sum A = y(x) - y(x')

    The integral is a sum over `steps` points. How far the sum of A is from the difference of the scores, the
    completeness gap, is in the result's settings: `completeness_gap`, and `relative_gap`, its size as a share of that
    difference; both `(B,)` or `(B, T)`. A relative gap of over 5 % is warned about. Of several baselines x' the mean is
    taken (expected gradients, Erion et al. 2019, arXiv:1906.10670).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> result = IntegratedGradients(model, steps=1)(torch.rand(2, 1, 8, 8), targets=1)
    >>> result.data.shape, bool((result.settings["completeness_gap"].abs() < 1e-5).all())
    (torch.Size([2, 1, 8, 8]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 50,
        baseline: Any = None,
        quadrature: str = "gauss-legendre",
        mean: Any = None,
        std: Any = None,
        seed: int = 0,
        batch_size: int | str = "auto",
        progress: bool = False,
    ) -> None:
        """Bind the method to a model; nothing runs yet.

        steps        points on the way from each baseline
        baseline     None for zeros, which for normalised inputs is the mean colour; a tensor `(k, *S)`, or with the
                     batch first; a list of baselines, whose mean is taken; or a name:
                     "black"   0 in the picture, (0 - mean) / std; without these each channel's least value in the image
                     "blur"    the image under a Gaussian 51 pixels wide, of standard deviation 50
                     "mean"    each channel's mean in the image
                     "noise"   even between each channel's least and largest value, from generators of its own
        quadrature   "gauss-legendre", exact for polynomials up to degree 2 steps - 1, or "midpoint", with even points
                     and weights. In smooth networks the gap of the former is smaller by orders of magnitude; ReLUs make
                     dy/dx jump, and the gaps are alike
        mean, std    of pictures in [0, 1], by channel, for "black"
        seed         of "noise"
        batch_size   points at once; "auto" grows while that is faster and memory suffices, and is halved where it fails
        progress     show a bar on stderr
        Raises ValueError for an argument out of range, TypeError for a baseline that is none.
        """
        super().__init__(model, seed=seed, batch_size=batch_size, progress=progress)
        self.steps = check_count("steps", steps)
        if quadrature not in ("midpoint", "gauss-legendre"):
            raise ValueError(f'quadrature must be "midpoint" or "gauss-legendre", got {quadrature!r}')
        self.quadrature, self.mean, self.std = quadrature, mean, std
        self.baselines = list(baseline) if isinstance(baseline, list | tuple) else [baseline]
        if not self.baselines:
            raise ValueError("baseline is an empty list: give at least one, or None for zeros")
        for b in self.baselines:
            if not (b is None or isinstance(b, Tensor) or isinstance(b, str) and b in NAMED):
                raise TypeError(f"baseline must be None, a tensor, one of {', '.join(NAMED)}, or a list, got {b!r}")
        self.completeness_gap: Tensor | None = None
        self.relative_gap: Tensor | None = None

    def _found(self, run: Run, inputs: Inputs, targets: Targets) -> Found:
        asked, x = Asked(run, inputs, targets), ops.wide(inputs.image.detach())
        ways = [x - base for base in self._at(inputs.image)]
        a, weights = nodes(self.steps, self.quadrature)
        total = asked.room()

        def point(n: int, part: slice) -> Tensor:
            way = ways[n // self.steps]
            return x[part].sub(way[part], alpha=1 - a[n % self.steps]).to(inputs.image.dtype)

        def take(n: int, part: slice, g: Tensor) -> None:
            way, weight = ways[n // self.steps], weights[n % self.steps] / len(ways)
            total[part].addcmul_(g, way[part].unsqueeze(1), value=weight)

        def start(n: int, part: slice) -> Tensor:
            return (x[part] - ways[n][part]).to(inputs.image.dtype)

        self.at_points(run, Saliency(self.model), asked, self.steps * len(ways), point, take)
        away = ops.wide(self.scores_at(run, asked, len(ways), start)).mean(0)
        self._measure(total, ops.wide(asked.score), away, per_image(targets) is None)
        return Found(total, asked.score, asked.output)

    def _measure(self, total: Tensor, score: Tensor, away: Tensor, single: bool) -> None:
        """The completeness gap from scores `(B, T)` of the images and of their baselines; a warning if it is large."""
        change = score - away
        gap = total.flatten(2).sum(2) - change
        rounding = 1e-4 * (score.abs() + away.abs())  # a change as small as that has no meaningful share
        relative = gap.abs() / torch.maximum(change.abs(), rounding).clamp(min=1e-30)
        self.completeness_gap, self.relative_gap = (t.squeeze(1) if single else t for t in (gap, relative))
        if (worst := float(relative.max())) > _TOLERATED:
            warnings.warn(
                f"integrated gradients miss the difference of the scores by up to {worst:.1%} with {self.steps} steps: "
                "take more, or see relative_gap in the result's settings",
                stacklevel=5,
            )

    def _at(self, x: Tensor) -> list[Tensor]:
        """The baselines, each `(B, k, *S)` or such that it becomes that, in at least fp32."""
        noise = draws("uniform", self.seed, len(self.baselines), x)
        channel = image_channel_dim(unwrap(self.model), x)
        return [self._made(b, x.detach(), channel, noise(n)) for n, b in enumerate(self.baselines)]

    def _made(self, baseline: Any, x: Tensor, channel: int, noise: Tensor) -> Tensor:
        wide = ops.wide(x)
        if baseline is None:
            return wide.new_zeros(())
        if isinstance(baseline, Tensor):
            return _fitting(baseline, x).to(wide)
        within = [d for d in range(1, x.ndim) if d != channel]
        low, high = wide.amin(within, keepdim=True), wide.amax(within, keepdim=True)
        if baseline == "noise":
            return low + (high - low) * noise
        if baseline == "blur":
            return blur(wide.movedim(channel, 1)).movedim(1, channel)
        if baseline == "mean":
            return wide.mean(within, keepdim=True)
        if self.mean is None and self.std is None:
            return low
        per_channel = [-1 if d == channel else 1 for d in range(1, x.ndim)]
        given = ((0.0 if self.mean is None else self.mean), (1.0 if self.std is None else self.std))
        mean, std = (torch.as_tensor(v, device=wide.device, dtype=wide.dtype) for v in given)
        return (-mean / std).expand(x.shape[channel]).view(per_channel)

    def _settings(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "baseline": [_described(b) for b in self.baselines],
            "quadrature": self.quadrature,
            "seed": self.seed,
            "completeness_gap": self.completeness_gap,
            "relative_gap": self.relative_gap,
        }


def nodes(steps: int, quadrature: str) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights, which sum to 1."""
    if quadrature == "midpoint":
        return [(n + 0.5) / steps for n in range(steps)], [1 / steps] * steps
    points, weights = np.polynomial.legendre.leggauss(steps)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def _fitting(baseline: Tensor, x: Tensor) -> Tensor:
    if baseline.shape not in (x.shape, x.shape[1:], (1, *x.shape[1:])):
        raise ValueError(
            f"baseline must be {tuple(x.shape[1:])} as an image, or {tuple(x.shape)} as the batch, got "
            f"{tuple(baseline.shape)}; several baselines go in a list"
        )
    return baseline.detach()


def _described(baseline: Any) -> str:
    return "zeros" if baseline is None else baseline if isinstance(baseline, str) else f"tensor {tuple(baseline.shape)}"
