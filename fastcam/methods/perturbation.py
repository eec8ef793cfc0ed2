"""What the methods share that change something, run the network again and look at the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.batches import BatchSize, check_batch_size, in_batches
from fastcam.fast.settings import Optimize
from fastcam.inputs import Inputs
from fastcam.layers import layer_name
from fastcam.methods.base import BaseCAM
from fastcam.record import Run
from fastcam.rows import Rows

_IMAGES_AT_ONCE = 32  # with an automatic batch size


class PerturbationCAM(BaseCAM):
    """A method that scores many changed rows an image. Rows of all images share full batches.

    Memory is set by the batch size, not by the number of rows or images. The result does not depend on it, but for the
    rounding of the network, which may compute a batch of another size in another order.
    """

    uses_gradients = False

    steady = False  # an automatic batch size stays as it begins

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        batch_size: int | str = "auto",
        progress: bool = False,
        sign: str = "activation",
        interpolation: str | None = None,
        optimize: bool | Optimize | None = None,
    ) -> None:
        """Bind the method to a model; arguments as in `GradCAM`, and

        batch_size   rows at once; "auto" grows while that is faster and memory suffices, and is halved where it fails
        progress     show a bar on stderr
        """
        common: dict[str, Any] = {"sign": sign, "interpolation": interpolation, "optimize": optimize}
        super().__init__(model, target_layers, reshape_transform, **common)
        if batch_size != "auto":
            check_batch_size(batch_size)
        self.batch_size = batch_size  # looked at in each call: users set it afterwards
        self.progress = progress
        self._found: dict[Any, BatchSize] = {}

    @property
    def may_split(self) -> bool:
        return self.batch_size == "auto"

    def at_once(self, x: Inputs) -> int:
        return min(len(x), _IMAGES_AT_ONCE if self.batch_size == "auto" else check_batch_size(self.batch_size))

    def scores_of(
        self,
        run: Run,
        layer: nn.Module,
        rows: int,
        scored: Callable[[int, int], Tensor],
        score: Callable[[Any, Rows], Tensor],
        name: Callable[[int], str],
    ) -> Tensor:
        """`scored(start, stop)` over all rows, `(rows, T)`; ValueError with `name(row)` in it if one is not finite.

        score   gives those of the images themselves, which are blamed first
        """
        scores, x = self.queued(layer, run.input, rows, scored), run.input
        if not bool(scores.isfinite().all()):
            unchanged = score(run.output, Rows.of(range(len(x)), x.device))
            if not bool(unchanged.isfinite().all()):
                raise no_number(unchanged, lambda image: f"image {run.first + image}", x)
            raise no_number(scores, name, x)
        return scores

    def queued(
        self, layer: nn.Module, x: Tensor, rows: int, run: Callable[[int, int], Tensor], progress: bool = True
    ) -> Tensor:
        """`run(start, stop)` over all rows, in full batches, unchecked."""
        title = f"{type(self).__name__} {layer_name(self.model, layer)}"
        size = self._size(x.device, layer, x.shape[1:], x.dtype)
        return in_batches(rows, run, size, self.progress and progress, title)

    def _size(self, device: torch.device, *kind: Any) -> BatchSize:
        """The batch size for this kind of rows, an automatic one with what earlier calls found."""
        if self.batch_size != "auto":
            return BatchSize(self.batch_size, device)
        return self._found.setdefault((device, *kind), BatchSize("auto", device, self.steady))


def no_number(scores: Tensor, name: Callable[[int], str], x: Tensor) -> ValueError:
    """The error for the first of the scores `(rows, T)` that is not finite."""
    row, t = (~scores.isfinite()).nonzero()[0].tolist()
    advice = "; bfloat16 and float32 reach further than float16" if x.dtype == torch.float16 else ""
    return ValueError(f"the score of {name(row)} is {scores[row, t].item()}: the model overflows on it{advice}")


def consecutive(start: int, stop: int, per_image: int, device: torch.device) -> tuple[Rows, Tensor]:
    """Rows start to stop of a queue with `per_image` rows an image: their images, and their places among those."""
    rows = Rows.of((row // per_image for row in range(start, stop)), device)
    return rows, torch.arange(start, stop, device=device) % per_image
