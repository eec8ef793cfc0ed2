"""A run of a model after which what follows its layers can be run again, see `fastcam.replay`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastcam.batches import is_out_of_memory
from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.record import Run, call, check_ran, evaluation, first_tensor, owned, unwrap
from fastcam.replay import Argument, Step, Tail
from fastcam.rows import Record


class _Frame:
    """A module call under way: its steps so far, and the memory that was written in it."""

    def __init__(self, module: nn.Module, leads_to_layer: bool) -> None:
        self.module = module
        self.leads_to_layer = leads_to_layer
        self.steps: list[Step] = []
        self.written: set[int] = set()


class _Recorder(TorchDispatchMode):
    """The handler of the recorded run; as a dispatch mode it sees each write before it happens."""

    def __init__(self, net: nn.Module, layers: Sequence[nn.Module], x: Inputs, head: bool) -> None:
        super().__init__()
        self._net, self._pending, self._head = net, set(layers), head
        self._ancestors = _ancestors(net, self._pending)
        self._records: dict[int, list[Record]] = {}  # by the memory that they share with the model
        self._stack = [_Frame(net, True)]
        self._batch = len(x)
        self._inputs, self._rank = x.map(lambda t: self._record(t, True)), x.image.ndim
        self.activations: dict[nn.Module, Tensor] = {}
        self.tails: dict[nn.Module, Tail] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if named := _written_by(func):
            by_place = [v for name, v in zip(named, args, strict=False) if name]
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

    def _at_layer(self, layer: nn.Module, step: Step, output: Any) -> Any:
        self._pending.discard(layer)
        tensor, put_back = first_tensor(layer, output)
        if not all(frame.leads_to_layer for frame in self._stack):
            raise RuntimeError(f"layer {type(layer).__name__} is called by a module that does not hold it")
        way: list[Step] = []
        for frame in self._stack:
            way += [Step(frame.module, inside=True)] if frame.module is not self._net else []
            way += frame.steps
        own = pytree.tree_map_only(Tensor, lambda t: Record(t.detach().clone(), True), output)
        self.tails[layer] = Tail(self._net, layer, self._inputs, self._rank, own, [*way, step])
        activation = tensor.detach().clone()
        self.activations[layer] = activation
        if not self._head or self._pending:
            self._stack[-1].steps.append(step)
            return output
        torch.set_grad_enabled(True)
        activation.requires_grad_()
        return put_back(activation.clone())

    def _step(self, frame: _Frame, arguments: Any, output: Any) -> Step:
        """The call as a step; one whose output is no plain structure of tensors has to be run again."""
        given, leaves = pytree.tree_leaves(arguments), pytree.tree_leaves(output)
        places = {id(t): place for place, t in enumerate(given) if isinstance(t, Tensor)}
        new = [t for t in leaves if id(t) not in places]
        if not all(map(self._is_plain, leaves)) or _shared(new, given):
            return Step(frame.module, again=True)
        sure = any(isinstance(t, Tensor) and t.ndim and len(t) == self._batch for t in given)

        def kept(t: Tensor) -> Record | Argument:
            return Argument(places[id(t)]) if id(t) in places else self._record(t, sure)

        writes = {
            place: self._record(t, sure)
            for place, t in enumerate(given)
            if isinstance(t, Tensor) and _memory(t) in frame.written
        }
        return Step(frame.module, pytree.tree_map_only(Tensor, kept, output), writes)

    def _is_plain(self, leaf: Any) -> bool:
        """Whether a value can be handed back; a number that is the batch size, say, is another for other rows."""
        if isinstance(leaf, Tensor):
            return leaf.layout == torch.strided and not leaf.is_nested
        return leaf is None or isinstance(leaf, bool | float | str) or isinstance(leaf, int) and leaf != self._batch

    def _record(self, t: Tensor, sure: bool) -> Record:
        record = Record(t, sure)
        self._records.setdefault(_memory(t), []).append(record)
        return record

    def records(self) -> list[Record]:
        """All that a replay may need, in the order of the run."""
        found = [leaf for leaf in self._inputs.leaves if isinstance(leaf, Record)]
        for tail in self.tails.values():
            parts = [(step.output, list(step.writes.values())) for step in tail.steps]
            found += [r for r in pytree.tree_leaves([tail.output, parts]) if isinstance(r, Record)]
        return found


@cache
def _written_by(func: Any) -> tuple[str, ...]:
    """The names of the arguments that an operation writes into, "" in the places of the others; empty for none."""
    if not func._schema.is_mutable:
        return ()
    return tuple(a.name if a.alias_info is not None and a.alias_info.is_write else "" for a in func._schema.arguments)


def _ancestors(net: nn.Module, layers: set[nn.Module]) -> set[nn.Module]:
    """The modules that hold one of the layers, wherever it is registered."""
    named = dict(net.named_modules(remove_duplicate=False))
    found = set()
    for name, module in named.items():
        while module in layers and "." in name:
            name = name.rpartition(".")[0]
            found.add(named[name])
    return found


def _shared(new: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether tensors that a call made share memory with its arguments or each other: a write into one writes both."""
    made, there = ([_memory(t) for t in values if isinstance(t, Tensor)] for values in (new, given))
    return len(set(made)) < len(made) or not set(made).isdisjoint(there)


def _memory(t: Tensor) -> int:
    """What tells the memory of a tensor from other memory."""
    return t.untyped_storage()._cdata if t.layout == torch.strided and not t.is_nested else id(t)


class Recording(Run):
    """A run after which what follows its layers can be run again; see `Run` for input, output and activations.

    tails   for each layer, what follows it
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        x: Tensor | Inputs,
        activations: Mapping[nn.Module, Tensor],
        output: Any,
        tails: Mapping[nn.Module, Tail],
    ) -> None:
        super().__init__(layers, x, activations, output)
        self.tails = tails


@contextmanager
def recorded(
    model: nn.Module, layers: Sequence[nn.Module], x: Tensor | Inputs, *, head: bool = False
) -> Iterator[Recording]:
    """Run `model(x)` once, without gradients, so that what follows each of `layers` can be run again.

    head   keep the graph of a linear head behind a single layer, for `fastcam.head.linear_head`
    The model stays in evaluation mode until the block ends. ValueError if a layer does not run, RuntimeError if it
    can't be told how the images lie in what a module returned.
    """
    net = unwrap(model)
    with evaluation(net):
        x = owned(net, x if isinstance(x, Inputs) else Inputs(x))
        recorder, output = _run_with_head(net, layers, x) if head and len(set(layers)) == 1 else _run(net, layers, x)
        _lay_out(recorder, net, layers, x)
        yield Recording(layers, x, recorder.activations, output, recorder.tails)


def _run_with_head(net: nn.Module, layers: Sequence[nn.Module], x: Inputs) -> tuple[_Recorder, Any]:
    try:
        return _run(net, layers, x, head=True)
    except RuntimeError as error:  # what follows the layer may be for tensors without a graph only
        if is_out_of_memory(error):
            raise
    return _run(net, layers, x)


def _run(net: nn.Module, layers: Sequence[nn.Module], x: Inputs, head: bool = False) -> tuple[_Recorder, Any]:
    recorder = _Recorder(net, layers, x, head)
    with torch.no_grad(), intercepted((m for m in net.modules() if m is not net), recorder), recorder:
        output = call(net, x.clone())  # which the model may write into
    check_ran(net, layers, recorder.activations)
    return recorder, output


def _lay_out(recorder: _Recorder, net: nn.Module, layers: Sequence[nn.Module], x: Inputs) -> None:
    """Find where the batch lies in each record: it comes first, or a run with one image more tells."""
    B, records = len(x), recorder.records()
    if all(_batch_first(r, B, x.image.ndim) for r in records):
        return
    longer, _ = _run(net, layers, x.map(lambda t: torch.cat([t, t[:1]])))
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


def _batch_first(record: Record, batch: int, rank: int) -> bool:
    """Whether the batch is certainly the first dimension."""
    t = record.value
    if not record.sure or t.ndim == 0 or len(t) != batch:
        return False
    unlike_the_input = t.ndim == 3 or t.ndim > 3 and t.ndim != rank
    return not (unlike_the_input and t.shape[1] == batch)
