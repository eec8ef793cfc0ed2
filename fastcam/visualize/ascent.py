"""Gradient ascent on pictures: each image of a batch climbs its own objective as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.record import first_convolution
from fastcam.visualize.forward import Seen, differentiable
from fastcam.visualize.parametrization import Pixels
from fastcam.visualize.rectifiers import Rectifiers
from fastcam.visualize.transforms import Moves

_SQUARES = 0.99  # how long Adam remembers a gradient's square

Run = Callable[[Tensor], Seen]
Values = Callable[[Seen], Tensor]


class Frame(NamedTuple):
    """What a model's images are: their shape `(k, H, W)`, and the inputs `(k, 1, 1)` that black and white become.

    low and high are on the model's device, in the precision of the pictures; `dtype` is the model's own.
    """

    shape: tuple[int, int, int]
    low: Tensor
    high: Tensor
    dtype: torch.dtype

    def inputs(self, pictures: Tensor) -> Tensor:
        """Pictures in [0, 1] as the model takes them."""
        return (self.low + (self.high - self.low) * pictures).to(self.dtype)

    def pictures(self, inputs: Tensor) -> Tensor:
        """Inputs as pictures, cut to [0, 1]."""
        return ((inputs.to(self.low) - self.low) / (self.high - self.low)).clamp(0, 1)


def frame_of(net: nn.Module, size: Any, mean: Any, std: Any) -> Frame:
    """The frame for a model whose first convolution takes k channels; ValueError where no picture fits."""
    first = first_convolution(net)
    height, width = _size(size)
    if first is None or first.weight.ndim != 4:
        found = "no convolution" if first is None else f"a {type(first).__name__} first"
        raise ValueError(f"images are made for a model that begins with a Conv2d, {type(net).__name__} has {found}")
    weight, k = first.weight, first.in_channels
    precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
    mean, std = (_per_channel(n, v, d, k).to(weight.device) for n, v, d in (("mean", mean, 0.0), ("std", std, 1.0)))
    if not bool((std > 0).all()):
        raise ValueError(f"std must be above 0, got {std.flatten().tolist()}")
    low, high = ((end - mean) / std for end in (0.0, 1.0))
    return Frame((k, height, width), low.to(precision), high.to(precision), weight.dtype)


def _size(given: Any) -> tuple[int, int]:
    sides = [given, given] if isinstance(given, int | np.integer) else given
    if isinstance(sides, Tensor | np.ndarray):
        sides = sides.tolist()
    whole = isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(n, int | np.integer) for n in sides)
    if not whole or min(sides) < 1 or any(isinstance(n, bool) for n in sides):
        raise ValueError(f"size must be a whole number of pixels or (H, W), got {given!r}")
    return int(sides[0]), int(sides[1])


def _per_channel(name: str, given: Any, otherwise: float, channels: int) -> Tensor:
    try:
        values = torch.as_tensor(otherwise if given is None else given, dtype=torch.float64).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be one number or {channels}, one a channel, got {given!r}") from error
    if len(values) not in (1, channels):
        raise ValueError(f"{name} must be one number or {channels}, one a channel, got {len(values)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {values.flatten().tolist()}")
    return values.expand(channels, 1, 1)


@dataclass(frozen=True)
class Ascent:
    """How a batch of images climbs.

    moves     what is done to a picture before the model sees it
    moved     after how many steps pictures stand still and settle: they are moved by `Moves` up to there
    redirect  in how many steps at the start an image without a gradient gets one past its dead rectifiers
    history   after which steps, 1 and up, images are kept
    """

    net: nn.Module
    layers: Sequence[nn.Module]
    complete: bool
    frame: Frame
    parametrization: Pixels
    moves: Moves | Callable[[Tensor], Tensor] | None
    steps: int
    moved: int
    rate: float
    redirect: int
    history: Sequence[int] = ()
    tick: Callable[[int], Any] = field(default=lambda images: None)

    def __call__(self, values: Values, seeds: Sequence[int], start: Tensor | None) -> dict[str, Tensor]:
        """What the images became: "data", "score", "transparency", "curve", "history"; whether they "moved" at all, and
        the scores they "began" at.

        values   the objectives of the batch
        seeds    one an image: those of the same seed start alike and are moved alike
        start    pictures `(n, k, H, W)` to begin with
        """
        numbers, place = self._numbers(seeds, start)
        form, rate = self.parametrization, self.rate
        seen = numbers.new_zeros(len(seeds), *self.frame.shape[1:])
        alive = torch.zeros(len(seeds), dtype=torch.bool, device=numbers.device)
        adam, curve, kept = _Adam(numbers, form.momentum), [], []
        with differentiable(self.net, self.layers, complete=self.complete) as run:
            began = self._scores(run, values, self._inputs(form, numbers)) if self.moves is not None else None
            for step in range(self.steps):
                if step == self.moved and (fine := form.settled()) is not None:
                    numbers, rate = fine.numbers(form.pictures(numbers.detach())), rate * fine.rate / form.rate
                    form, adam = fine, _Adam(numbers, fine.momentum)
                numbers = numbers.detach().requires_grad_()
                picture = form.pictures(numbers)
                score, gradient = self._uphill(run, values, picture.detach(), place(step), step)
                seen += gradient.abs().sum(1)
                alive |= (gradient != 0).flatten(1).any(1)
                (along,) = torch.autograd.grad(picture, numbers, gradient)
                numbers = form.within(numbers.detach() + rate * self._share(step) * adam(along))
                curve.append(score)
                if step + 1 in self.history:
                    kept.append(self._inputs(form, numbers))
                self.tick(len(seeds))
            data = self._inputs(form, numbers)
            score = self._scores(run, values, data)
        found = {"data": data, "score": score, "transparency": seen, "moved": alive, "curve": torch.stack(curve, 1)}
        found["began"] = curve[0] if began is None else began
        return {**found, "history": torch.stack(kept, 1)} if kept else found

    def _share(self, step: int) -> float:
        """Of the rate, from 1 to 0 as a cosine, once while pictures are moved and once more behind that."""
        begin, end = (0, self.moved) if step < self.moved else (self.moved, self.steps)
        return 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))

    def _numbers(self, seeds: Sequence[int], start: Tensor | None) -> tuple[Tensor, Callable[[int], Tensor | None]]:
        """Where the images begin, and how each is moved at a step; all random numbers are drawn here, on the CPU."""
        low, apart = self.frame.low, list(dict.fromkeys(seeds))
        generators = [torch.Generator().manual_seed(s) for s in apart]
        of = torch.tensor([apart.index(s) for s in seeds], device=low.device)
        drawn = self.parametrization.start(generators).to(low)
        numbers = drawn[of] if start is None else self.parametrization.numbers(start.to(low))
        if not isinstance(self.moves, Moves):
            return numbers, lambda step: None
        _, height, width = self.frame.shape
        matrices = self.moves.matrices(self.moves.draw(generators, self.moved), height, width).to(low)
        return numbers, lambda step: matrices[step][of] if step < self.moved else None

    def _uphill(
        self, run: Run, values: Values, picture: Tensor, matrices: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """Each image's objective and its gradient with respect to the picture."""

        def climb() -> tuple[Tensor, Tensor]:
            x = moved = picture.detach().requires_grad_()
            if matrices is not None:
                moved = self.moves(x, matrices)  # type: ignore[misc, call-arg]
            elif self.moves is not None and not isinstance(self.moves, Moves):
                moved = self.moves(x)
            score = values(run(self.frame.inputs(moved)))
            gradient = torch.autograd.grad(score.sum(), x, allow_unused=True)[0] if score.requires_grad else None
            if gradient is None:
                raise RuntimeError(
                    f"the objective has no gradient back to the input of {type(self.net).__name__}: its forward "
                    "detaches it or switches gradients off, or the objective does not depend on the model"
                )
            return score.detach(), gradient

        score, gradient = climb()
        if step < self.redirect:
            dead = ~(gradient != 0).flatten(1).any(1)
            if bool(dead.any()):
                with Rectifiers("redirect"):
                    gradient = torch.where(dead.view(-1, 1, 1, 1), climb()[1], gradient)
        return score, gradient

    @staticmethod
    def _scores(run: Run, values: Values, data: Tensor) -> Tensor:
        with torch.no_grad():
            return values(run(data))

    def _inputs(self, form: Pixels, numbers: Tensor) -> Tensor:
        """As the model takes them, not a rounding outside the valid range."""
        with torch.no_grad():
            return self.frame.inputs(form.pictures(numbers).clamp(0, 1))


def started(start: Any, frame: Frame, count: int) -> Tensor:
    """Pictures for each of `count` images to begin with, of model inputs; TypeError or ValueError for others."""
    if not isinstance(start, Tensor) or not start.is_floating_point():
        given = f"a tensor of {start.dtype}" if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start must be a floating-point tensor, got {given}")
    if start.shape[1:] != frame.shape or len(start) not in (1, count):
        raise ValueError(f"start must be ({count}, {', '.join(map(str, frame.shape))}), got {tuple(start.shape)}")
    if not bool(start.isfinite().all()):
        raise ValueError("start must be finite, it has nan or inf")
    return frame.pictures(start).expand(count, -1, -1, -1)


class _Adam:
    """Adam's step (Kingma and Ba 2015) of a gradient scaled to a mean square of 1 in each image.

    Without the scaling its epsilon would treat an objective of small gradients otherwise than the same times 1000.
    """

    def __init__(self, like: Tensor, momentum: float) -> None:
        self._momentum = momentum
        self._first, self._second, self._steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: Tensor) -> Tensor:
        size = gradient.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (gradient.ndim - 1))
        g = gradient / size.clamp(min=torch.finfo(gradient.dtype).tiny)
        a, b = self._momentum, _SQUARES
        self._steps += 1
        self._first.lerp_(g, 1 - a)
        self._second.lerp_(g * g, 1 - b)
        spread = (self._second / (1 - b**self._steps)).sqrt_().add_(1e-8)
        return self._first / (1 - a**self._steps) / spread


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Batches of images, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
