"""Run again only what follows a layer, for any Python `forward`.

A recorded run keeps what every outermost module that ended before the layer returned. To run the rest of the network
on changed activations the model is called again: those modules hand back what they returned, the layer hands back the
changed activation, and all that follows runs as it is. The model sees the batch of the new rows everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastcam.intercept import intercepted
from fastcam.record import Run, call, check_ran, evaluation, first_tensor, owned, unwrap
from fastcam.rows import Handed, Record, Rows


@dataclass
class _Argument:
    """What a call returned is its own argument at this place."""

    place: int


@dataclass
class _Step:
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


class _Frame:
    """A module call under way: its steps so far, and the memory that was written in it."""

    def __init__(self, module: nn.Module, leads_to_layer: bool) -> None:
        self.module = module
        self.leads_to_layer = leads_to_layer
        self.steps: list[_Step] = []
        self.written: set[int] = set()


@dataclass
class Tail:
    """What follows a layer, with what it needs of the recorded run."""

    net: nn.Module
    layer: nn.Module
    input: Record
    output: Any  # the layer's own, its tensors as records
    steps: list[_Step]

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
        """How many dimensions the input has."""
        return self.input.value.ndim

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
            result = call(self.net, Handed(self.input, rows))
            player.check_the_end()
            return result

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
        if step.again:
            self._again += 1
            try:
                return self._for_real(forward, args, kwargs)
            finally:
                self._again -= 1
        return self._handed_back(step, pytree.tree_leaves((args, kwargs)))

    def _for_real(self, forward: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Handed, Handed.memory, (args, kwargs))
        return forward(*args, **kwargs)

    def _handed_back(self, step: _Step, given: list[Any]) -> Any:
        for place, record in step.writes.items():
            target = given[place]
            target.becomes(record) if isinstance(target, Handed) else target.copy_(record.for_rows(self._rows))
        if self._waiting:
            output = pytree.tree_map_only(Record, lambda r: Handed(r, self._rows), step.output)
            return pytree.tree_map_only(_Argument, lambda a: given[a.place], output)
        if not isinstance(step.output, _Argument):
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
            f"order of its calls depends on its input, so what follows {names.get(self._tail.layer)!r} can't run alone"
        )


class _Recorder(TorchDispatchMode):
    """The handler of the recorded run; as a dispatch mode it sees each write before it happens."""

    def __init__(self, net: nn.Module, layers: Sequence[nn.Module], x: Tensor, head: bool) -> None:
        super().__init__()
        self._net, self._pending, self._head = net, set(layers), head
        self._ancestors = {m for m in net.modules() if self._pending & set(m.modules())}
        self._records: dict[int, list[Record]] = {}  # by the memory that they share with the model
        self._stack = [_Frame(net, True)]
        self._input = self._record(x)
        self.activations: dict[nn.Module, Tensor] = {}
        self.tails: dict[nn.Module, Tail] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._pending and func._schema.is_mutable:
            named = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
            by_place = [v for a, v in zip(func._schema.arguments, args, strict=False) if a.name in named]
            for t in pytree.tree_leaves([*by_place, *(v for k, v in kwargs.items() if k in named)]):
                if isinstance(t, Tensor):
                    self._before_write(t)
        return func(*args, **kwargs)

    def _before_write(self, t: Tensor) -> None:
        memory = _memory(t)
        self._stack[-1].written.add(memory)
        for record in self._records.pop(memory, ()):
            record.value = record.value.clone()

    def __call__(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not self._pending:
            if self._head and module._parameters and not isinstance(module, nn.Linear):
                torch.set_grad_enabled(False)  # more than a linear head follows: its graph would serve nothing
            return forward(*args, **kwargs)
        outer = self._stack[-1]
        frame = _Frame(module, outer.leads_to_layer and module in self._ancestors)
        self._stack.append(frame)
        try:
            output = forward(*args, **kwargs)
        finally:
            self._stack.pop()
            outer.written |= frame.written
        if module in self._pending:
            step = self._step(frame, (args, kwargs), output)
            return self._at_layer(module, step, output)
        if outer.leads_to_layer and self._pending:
            outer.steps.append(self._step(frame, (args, kwargs), output))
        return output

    def _at_layer(self, layer: nn.Module, step: _Step, output: Any) -> Any:
        self._pending.discard(layer)
        tensor, put_back = first_tensor(layer, output)
        if not all(frame.leads_to_layer for frame in self._stack):
            raise RuntimeError(f"layer {type(layer).__name__} is called by a module that does not hold it")
        way: list[_Step] = []
        for frame in self._stack:
            way += [_Step(frame.module, inside=True)] if frame.module is not self._net else []
            way += frame.steps
        own = pytree.tree_map_only(Tensor, lambda t: Record(t.detach().clone()), output)
        self.tails[layer] = Tail(self._net, layer, self._input, own, [*way, step])
        activation = tensor.detach().clone()
        self.activations[layer] = activation
        if not self._head or self._pending:
            self._stack[-1].steps.append(step)
            return output
        torch.set_grad_enabled(True)
        activation.requires_grad_()
        return put_back(activation.clone())

    def _step(self, frame: _Frame, arguments: Any, output: Any) -> _Step:
        """The call as a step; one whose output is no plain structure of tensors has to be run again."""
        if not all(map(_is_plain, pytree.tree_leaves(output))):
            return _Step(frame.module, again=True)
        given = pytree.tree_leaves(arguments)
        places = {id(t): place for place, t in enumerate(given) if isinstance(t, Tensor)}

        def kept(t: Tensor) -> Record | _Argument:
            return _Argument(places[id(t)]) if id(t) in places else self._record(t)

        writes = {
            place: self._record(t)
            for place, t in enumerate(given)
            if isinstance(t, Tensor) and _memory(t) in frame.written
        }
        return _Step(frame.module, pytree.tree_map_only(Tensor, kept, output), writes)

    def _record(self, t: Tensor) -> Record:
        record = Record(t)
        self._records.setdefault(_memory(t), []).append(record)
        return record

    def records(self) -> list[Record]:
        """All that a replay may need, in the order of the run."""
        found = [self._input]
        for tail in self.tails.values():
            parts = [(step.output, list(step.writes.values())) for step in tail.steps]
            found += [r for r in pytree.tree_leaves([tail.output, parts]) if isinstance(r, Record)]
        return found


def _is_plain(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout == torch.strided and not leaf.is_nested
    return leaf is None or isinstance(leaf, bool | int | float | str)


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata


class Recording(Run):
    """A run after which what follows its layers can be run again; see `Run` for input, output and activations.

    tails   for each layer, what follows it
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        x: Tensor,
        activations: Mapping[nn.Module, Tensor],
        output: Any,
        tails: Mapping[nn.Module, Tail],
    ) -> None:
        super().__init__(layers, x, activations, output)
        self.tails = tails


@contextmanager
def recorded(model: nn.Module, layers: Sequence[nn.Module], x: Tensor, *, head: bool = False) -> Iterator[Recording]:
    """Run `model(x)` once, without gradients, so that what follows each of `layers` can be run again.

    head   keep the graph of a linear head behind a single layer, for `fastcam.head.linear_head`
    The model stays in evaluation mode until the block ends. ValueError if a layer does not run, RuntimeError if it
    can't be told how the images lie in what a module returned.
    """
    net = unwrap(model)
    with evaluation(net):
        x = owned(net, x)
        recorder, output = _run(net, layers, x, head and len(set(layers)) == 1)
        _lay_out(recorder, net, layers, x)
        yield Recording(layers, x, recorder.activations, output, recorder.tails)


def _run(net: nn.Module, layers: Sequence[nn.Module], x: Tensor, head: bool) -> tuple[_Recorder, Any]:
    recorder = _Recorder(net, layers, x, head)
    with torch.no_grad(), intercepted((m for m in net.modules() if m is not net), recorder), recorder:
        output = call(net, x)
    check_ran(net, layers, recorder.activations)
    return recorder, output


def _lay_out(recorder: _Recorder, net: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> None:
    """Find where the batch lies in each record: it comes first, or a run with one image more tells."""
    B, records = len(x), recorder.records()
    if all(_batch_first(r.value, B, x.ndim) for r in records):
        return
    longer, _ = _run(net, layers, torch.cat([x, x[:1]]), False)
    others = longer.records()
    if len(others) != len(records):
        raise RuntimeError(f"{type(net).__name__} calls other modules for {B + 1} images than for {B}")
    for record, other in zip(records, others, strict=True):
        sizes = list(zip(record.value.shape, other.value.shape, strict=False))
        differing = [d for d, (a, b) in enumerate(sizes) if a != b]
        if not differing and record.value.ndim == other.value.ndim:
            record.dim = None
            continue
        size = sizes[differing[0]][0]
        if len(differing) != 1 or size % B or sizes[differing[0]][1] != size // B * (B + 1):
            raise RuntimeError(f"how {B} images lie in {tuple(record.value.shape)} can't be told; use a GradCAM method")
        record.dim, record.factor = differing[0], size // B


def _batch_first(t: Tensor, batch: int, rank: int) -> bool:
    if t.ndim == 0 or t.shape[0] != batch:
        return False
    unlike_the_input = t.ndim == 3 or t.ndim > 3 and t.ndim != rank
    return not (unlike_the_input and t.shape[1] == batch)
