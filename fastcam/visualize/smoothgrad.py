"""Gradients of noisy copies of the image: their mean, mean square or variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.batches import check_count
from fastcam.inputs import Inputs
from fastcam.targets import Targets
from fastcam.visualize.gradients import Found, InputGradient, Run
from fastcam.visualize.saliency import Saliency
from fastcam.visualize.sampled import Asked, SampledGradient, Take, draws


class SmoothGrad(SampledGradient):
    """SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825) and its kin.

    mean       mean_i g(x + d_i),  d_i ~ N(0, s²),  s = noise (max x - min x), of each image
    squared    mean_i g(x + d_i)²                        SmoothGrad², from the authors' code
    variance   mean_i g(x + d_i)² - (mean_i g(x + d_i))²   VarGrad (Adebayo et al., NeurIPS 2018, arXiv:1810.03292)

    The class is the one asked for, or predicted for the image itself, without noise. All images of a batch get the same
    draws, each scaled to its own range: what an image gets does not depend on the others, nor on the batch size. The
    first of n samples are the same for every n.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> result = SmoothGrad(model, samples=10)(torch.rand(2, 1, 8, 8), targets=[0, 2])
    >>> result.data.shape, result.map().shape
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 8, 8]))
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | type[InputGradient] = Saliency,
        *,
        samples: int = 25,
        noise: float = 0.15,
        mode: str = "mean",
        seed: int = 0,
        batch_size: int | str = "auto",
        progress: bool = False,
    ) -> None:
        """Bind the method to a model; nothing runs yet.

        method       whose gradient g is: a class, or a name as in the command line ("guidedbackprop")
        samples      noisy copies of each image
        noise        their standard deviation, as a share of the range of the image's values
        mode         "mean", "squared" or "variance"
        seed         of the noise, which comes from generators of its own
        batch_size   copies at once; "auto" grows while that is faster and memory suffices, and is halved where it fails
        progress     show a bar on stderr
        Raises ValueError for an argument out of range, TypeError for what is no model.
        """
        super().__init__(model, seed=seed, batch_size=batch_size, progress=progress)
        self.gradient = _pointwise(method)(model)
        self.samples = check_count("samples", samples)
        if not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
            raise ValueError(f"noise must be a share of the image's range, 0 or more, got {noise!r}")
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        self.noise, self.mode = float(noise), mode

    def _found(self, run: Run, inputs: Inputs, targets: Targets) -> Found:
        asked = Asked(run, inputs, targets)
        x, noise = inputs.image.detach(), draws("normal", self.seed, self.samples, inputs.image)
        flat = ops.wide(x.flatten(1))
        std = (self.noise * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (x.ndim - 1))

        def point(n: int, part: slice) -> Tensor:
            return torch.addcmul(ops.wide(x[part]), std[part], noise(n)).to(x.dtype)

        take, finish = _MODES[self.mode](asked.room())
        self.at_points(run, self.gradient, asked, self.samples, point, take)
        return Found(finish(self.samples), asked.score, asked.output)

    def _settings(self) -> dict[str, Any]:
        names = "samples", "noise", "mode", "seed"
        return {"of": type(self.gradient).__name__, **{n: getattr(self, n) for n in names}, **self.gradient._settings()}


def _pointwise(method: Any) -> type[InputGradient]:
    """The class meant, if it has a gradient at a point."""
    from fastcam.visualize import SALIENCY

    pointwise = {name: cls for name, cls in SALIENCY.items() if _is_pointwise(cls)}
    cls = pointwise.get(method) if isinstance(method, str) else method
    if not (isinstance(cls, type) and issubclass(cls, InputGradient) and _is_pointwise(cls)):
        raise ValueError(f"method must be one of {', '.join(pointwise)}, or its class, got {method!r}")
    return cls


def _is_pointwise(cls: type[InputGradient]) -> bool:
    return cls._explain is InputGradient._explain and cls._found is InputGradient._found


Sums = tuple[Take, Callable[[int], Tensor]]


def _mean(total: Tensor) -> Sums:
    def take(_: int, part: slice, g: Tensor) -> None:
        total[part].add_(g)

    return take, lambda n: total.div_(n)


def _squared(total: Tensor) -> Sums:
    def take(_: int, part: slice, g: Tensor) -> None:
        total[part].addcmul_(g, g)

    return take, lambda n: total.div_(n)


def _variance(total: Tensor) -> Sums:
    """Welford's update, which loses no digits where the mean is large."""
    mean, difference = torch.zeros_like(total), torch.empty_like(total)

    def take(n: int, part: slice, g: Tensor) -> None:
        d = torch.sub(g, mean[part], out=difference[part])
        mean[part].add_(d, alpha=1 / (n + 1))
        total[part].addcmul_(d, d, value=n / (n + 1))

    return take, lambda n: total.div_(n)


_MODES: dict[str, Callable[[Tensor], Sums]] = {"mean": _mean, "squared": _squared, "variance": _variance}
