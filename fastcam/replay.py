"""Run again only what follows a layer, for any Python `forward`.

A recorded run (`fastcam.recording`) keeps what every outermost module that ended before the layer returned. To run the
rest of the network on changed activations the model is called again: those modules hand back what they returned, the
layer hands back the changed activation, and all that follows runs as it is. The model sees the new rows everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.record import call
from fastcam.rows import Handed, Record, Rows


@dataclass
class Argument:
    """What a call returned is its own argument at this place."""

    place: int


@dataclass
class Step:
    """A call of the recorded run on the way to the layer, whose own is the last.

    output   what it handed back, its tensors as records or arguments
    writes   place of an argument -> what the call left in it
    inside   it is still going on when the layer ends, and the steps that follow are its own
    again    it has to be run again, as its output is no plain structure of tensors
    """

    module: nn.Module
    output: Any = None
    writes: dict[int, Record] = field(default_factory=dict)
    inside: bool = False
    again: bool = False


@dataclass
class Tail:
    """What follows a layer, with what it needs of the recorded run."""

    net: nn.Module
    layer: nn.Module
    inputs: Inputs  # their tensors as records
    image_rank: int
    output: Any  # the layer's own, its tensors as records
    steps: list[Step]

    @property
    def activation(self) -> Tensor:
        """The first floating-point tensor of the layer's output for the images of the recorded run."""
        return self._first.value

    @property
    def batch_dim(self) -> int:
        """The dimension of the batch in it."""
        return self._first.dim or 0

    @property
    def rank(self) -> int:
        """How many dimensions the image has that the layer sees: a frame, where those of a video are in the batch."""
        folded = self.activation.ndim == 4 and self._first.factor == self.inputs.image.value.shape[1]
        return 4 if self.image_rank == 5 and folded else self.image_rank

    def by_channel(self, t: Tensor, axis: int) -> Tensor:
        """A view of what the layer gave with the image and the channel, which is in dimension `axis`, first.

        `(N, C, ...)`, or `(N, C, F, ...)` where an image has F entries along the batch, as the frames of a video.
        """
        if self._first.factor == 1:
            return t.movedim(self.batch_dim, 0).movedim(axis, 1)
        return t.movedim(self.batch_dim, 0).unflatten(0, (-1, self._first.factor)).movedim(axis + (axis > 0), 1)

    def as_given(self, channels: Tensor, axis: int) -> Tensor:
        """`(N, C, ...)` laid out as the layer gave it, the reverse of `by_channel`."""
        if self._first.factor == 1:
            return channels.movedim(1, axis).movedim(0, self.batch_dim)
        return channels.movedim(1, axis + (axis > 0)).flatten(0, 1).movedim(0, self.batch_dim)

    @property
    def _first(self) -> Record:
        records = (r for r in pytree.tree_leaves(self.output) if isinstance(r, Record))
        return next(r for r in records if r.value.is_floating_point())

    def rows(self, rows: Rows) -> Any:
        """The layer's output for the rows, in memory that may be written."""
        return pytree.tree_map_only(Record, lambda r: r.for_rows(rows), self.output)

    @contextmanager
    def replaying(self) -> Iterator[Callable[[Rows, Any], Any]]:
        """A function of rows and the layer's output for them, which may be written into: what the model returns."""
        player = _Player(self)

        def replay(rows: Rows, output: Any) -> Any:
            player.start(rows, output)
            result = call(self.net, self.inputs.map(lambda record: Handed(record, rows)))
            player.check_the_end()
            return pytree.tree_map_only(Handed, Handed.memory, result)

        with intercepted((m for m in self.net.modules() if m is not self.net), player):
            yield replay


class _Player:
    """The handler of a replay."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    def start(self, rows: Rows, output: Any) -> None:
        self._rows, self._output = rows, output
        self._waiting = list(reversed(self._tail.steps))
        self._again = 0  # calls under way that run again as a whole

    def __call__(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not self._waiting or self._again:
            return self._for_real(forward, args, kwargs)
        step = self._waiting.pop()
        if module is not step.module:
            raise self._other_order(module, step.module)
        if step.inside:
            return forward(*args, **kwargs)
        if step.again and self._waiting:  # the layer itself, the last one, is given
            self._again += 1
            try:
                return self._for_real(forward, args, kwargs)
            finally:
                self._again -= 1
        return self._handed_back(step, pytree.tree_leaves((args, kwargs)))

    def _for_real(self, forward: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Handed, Handed.memory, (args, kwargs))
        return forward(*args, **kwargs)

    def _handed_back(self, step: Step, given: list[Any]) -> Any:
        for place, record in step.writes.items():
            target = given[place]
            target.becomes(record) if isinstance(target, Handed) else target.copy_(record.for_rows(self._rows))
        if self._waiting:
            output = pytree.tree_map_only(Record, lambda r: Handed(r, self._rows), step.output)
            return pytree.tree_map_only(Argument, lambda a: given[a.place], output)
        if not isinstance(step.output, Argument) or step.output.place not in step.writes:
            return self._output
        returned = given[step.output.place]  # an in-place layer, whose return value the model may ignore
        return returned.copy_(self._output)

    def check_the_end(self) -> None:
        if self._waiting:
            raise self._other_order(None, self._waiting[-1].module)

    def _other_order(self, module: nn.Module | None, expected: nn.Module) -> RuntimeError:
        names = {m: n for n, m in self._tail.net.named_modules()}
        called = "ended" if module is None else f"called {names.get(module, type(module).__name__)!r}"
        return RuntimeError(
            f"the model {called} where the recorded run called {names.get(expected, type(expected).__name__)!r}: the "
            "order of its calls depends on its input, or on how many images that has, so what follows "
            f"{names.get(self._tail.layer)!r} can't run alone"
        )
