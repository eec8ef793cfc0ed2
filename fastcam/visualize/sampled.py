"""Gradients at many points an image, noisy copies or a path, in full batches; and random numbers for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.batches import BatchSize, check_batch_size, in_batches
from fastcam.inputs import Inputs
from fastcam.targets import Targets, for_rows, scores
from fastcam.visualize.gradients import InputGradient, Run

Point = Callable[[int, slice], Tensor]  # the n-th point of these images of the batch, (images, k, *S)
Take = Callable[[int, slice, Tensor], None]  # its gradient (images, T, k, *S), in at least fp32


class SampledGradient(InputGradient):
    """A method that needs the gradient at many points for each image. Rows of all images share full batches.

    What it adds up has the size of the gradient; memory beyond that is set by the batch size. The result does not
    depend on it, nor on the other images of the batch, but for the rounding of the network.
    """

    def __init__(
        self, model: nn.Module, *, seed: int = 0, batch_size: int | str = "auto", progress: bool = False
    ) -> None:
        super().__init__(model)
        if batch_size != "auto":
            check_batch_size(batch_size)
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}")
        self.seed, self.batch_size, self.progress = int(seed), batch_size, progress
        self._sizes: dict[Any, BatchSize] = {}

    def at_points(self, run: Run, gradient: InputGradient, asked: Asked, points: int, point: Point, take: Take) -> None:
        """`take` the gradient of each of the points of each image, those of an image in their order.

        gradient   the method whose gradient it is
        take       must ask for no memory: a batch that does not fit is run again, and each point counts once
        """

        def rows(start: int, stop: int) -> Tensor:
            parts, inputs, targets = asked.rows(start, stop, point)
            found = gradient.of_rows(run, inputs, targets)
            data, first = ops.wide(found.data), 0
            for n, part in parts:
                count = part.stop - part.start
                take(n, part, data[first : first + count])
                first += count
            return found.score

        size = self._size(asked.inputs, "gradient")
        in_batches(points * len(asked.inputs), rows, size, self.progress, type(self).__name__)
        self.rectifiers = gradient.rectifiers

    def scores_at(self, run: Run, asked: Asked, points: int, point: Point) -> Tensor:
        """The scores `(points, B, T)` of each point of each image."""

        def rows(start: int, stop: int) -> Tensor:
            _, inputs, targets = asked.rows(start, stop, point)
            with torch.no_grad():
                return scores(run(inputs).output, targets, stop - start).view(stop - start, -1)

        B = len(asked.inputs)
        return in_batches(points * B, rows, self._size(asked.inputs, "forward")).unflatten(0, (points, B))

    def _size(self, inputs: Inputs, kind: str) -> BatchSize:
        """The batch size, an automatic one with what earlier calls found for such images."""
        device = inputs.image.device
        if self.batch_size != "auto":
            return BatchSize(self.batch_size, device)
        return self._sizes.setdefault((device, kind, inputs.image.dtype, inputs.shapes), BatchSize("auto", device))


class Asked:
    """What is explained: the images themselves, as the model took them, and the targets.

    output   the model's for the images
    score    `(B, T)`
    """

    def __init__(self, run: Run, inputs: Inputs, targets: Targets) -> None:
        self.inputs, self.targets = inputs, targets
        with torch.no_grad():
            self.output = run(inputs).output
            self.score = scores(self.output, targets, len(inputs)).view(len(inputs), -1)

    def rows(self, start: int, stop: int, point: Point) -> tuple[list[tuple[int, slice]], Inputs, Targets]:
        """Rows start to stop of the queue of all points, image by image: points and images, inputs and targets."""
        B = len(self.inputs)
        images = [row % B for row in range(start, stop)]
        parts = [(n, slice(max(start - n * B, 0), min(stop - n * B, B))) for n in range(start // B, -(-stop // B))]
        seen = torch.cat([point(n, part) for n, part in parts])
        of_rows = self.inputs.for_rows(seen, torch.tensor(images, device=seen.device))
        return parts, of_rows, for_rows(self.targets, self.output, B, images)

    def room(self) -> Tensor:
        """Zeros for attributions `(B, T, k, *S)`, in at least fp32."""
        x = self.inputs.image
        shape = (len(x), self.score.shape[1], *x.shape[1:])
        return torch.zeros(shape, device=x.device, dtype=ops.wide(x[:0]).dtype)


def draws(kind: str, seed: int, count: int, x: Tensor) -> Callable[[int], Tensor]:
    """A function of n: the n-th of `count` draws `(1, k, *S)` on the device of x, in at least fp32.

    Each has a generator of its own, seeded from `seed` and n by numpy's SeedSequence: a draw depends neither on how
    many there are nor on when it is made. All images of a batch get the same, so that none depends on the others.
    Numbers differ between kinds of devices.
    kind   "normal", or "uniform" in [0, 1)
    """
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    make = torch.randn if kind == "normal" else torch.rand
    options: dict[str, Any] = {"device": x.device, "dtype": ops.wide(x[:0]).dtype}

    def draw(n: int) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(seeds[n])
        return make((1, *x.shape[1:]), generator=generator, **options)

    return draw
