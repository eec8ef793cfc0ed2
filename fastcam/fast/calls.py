"""The calls of methods in fast mode: on a copy of their model, the first beside the exact one."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import chain
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.fast.agreement import Agreement, agreement_of, random_state
from fastcam.fast.compiled import compiling
from fastcam.fast.copies import FastModel, Wanted
from fastcam.fast.copying import NotCopied
from fastcam.fast.graphs import Graphs
from fastcam.fast.settings import Optimize
from fastcam.inputs import Inputs
from fastcam.record import unwrap
from fastcam.targets import Targets, part_of, per_image

_COMPARED = 16  # images; of a compiled model all of the first batch, since another size is compiled anew

Cams = Mapping[str, Any]  # methods of one model, by name
Maps = dict[str, list[Tensor]]
Answer = Callable[[Cams, Inputs, Targets], Maps]


class FastCalls:
    """What fast mode keeps between calls; copies of a method share it, a pickled one begins anew.

    agreement   of the method that it is for, on the first images since the weights last changed
    """

    def __init__(self, settings: Optimize) -> None:
        self.settings = settings
        self.agreement: Agreement | None = None
        self._lock = threading.Lock()
        self._fast: FastModel | None = None
        self._not_copied: Callable[[], nn.Module | None] = lambda: None  # a reference to the model, if it cannot be
        self._messages: list[str] = []

    def __reduce__(self) -> Any:
        return type(self), (self.settings,)

    def of_method(self, cam: Any, x: Inputs, targets: Targets, aug_smooth: bool, **options: Any) -> list[Tensor]:
        """What the method answers, and its `outputs`."""

        def answer(cams: Cams, x: Inputs, targets: Targets) -> Maps:
            return {name: c._answered(x, targets, aug_smooth, **options) for name, c in cams.items()}

        def graphed(graphs: Graphs, cams: Cams, x: Inputs, targets: Targets) -> Maps:
            return {name: graphs.maps(c, x, targets, options) for name, c in cams.items()}

        layers, normalized = tuple(cam._layers(x)), options["normalize"]
        bound, maps, agreement = self.answered(
            *({"": cam}, layers, x, targets, answer, normalized), graphed=None if aug_smooth else graphed
        )
        cam.outputs = self._own(bound[""].outputs, x)
        self.agreement = agreement.get("", self.agreement)
        return maps[""]

    def answered(
        self,
        cams: Cams,
        layers: tuple[nn.Module, ...],
        x: Inputs,
        targets: Targets,
        answer: Answer,
        normalized: bool,
        key: Any = None,
        graphed: Callable[[Graphs, Cams, Inputs, Targets], Maps] | None = None,
    ) -> tuple[Cams, Maps, dict[str, Agreement]]:
        """The methods as they are bound to the copy, all at these layers; their `answer`, and each one's agreement.

        normalized   whether their maps are in [0, 1]
        key          of what is asked: for each the first answer is compared with the exact one
        graphed      `answer` with graphs of the copy, where it may have some
        """
        with torch.inference_mode(False), torch.no_grad():  # a copy made in that mode would be of no use outside
            fast, first = self._ready(cams, layers, x, key)
        bound = {name: exact_method(cam) if fast is None else _bound(cam, fast) for name, cam in cams.items()}
        try:
            if fast is None:
                return bound, answer(bound, x, targets), {}
            with compiling() if self.settings.compile else nullcontext():
                if not first:
                    if graphed is not None and fast.graphs is not None:
                        maps = graphed(fast.graphs, bound, fast.inputs(x), targets)
                    else:
                        maps = answer(bound, fast.inputs(x), targets)
                    return bound, maps, fast.measured.get(key, {})
                maps, agreement = self._compared(cams, bound, fast, x, targets, answer, normalized)
            fast.measured[key] = agreement
            return bound, maps, agreement
        except BaseException:
            if fast is not None and first:
                fast.measured.pop(key, None)
            raise
        finally:
            self._warn()

    def _ready(self, cams: Cams, layers: tuple[nn.Module, ...], x: Inputs, key: Any) -> tuple[FastModel | None, bool]:
        """The copy, made or refreshed where needed, if there can be one; and whether this call is to compare it."""
        cam = next(iter(cams.values()))
        model = unwrap(cam.model)
        wanted = _wanted_by(model, cams, layers, x)
        with self._lock:
            if self._not_copied() is model:
                return None, False
            fast = self._fast
            if fast is None or not fast.is_of(model, wanted):
                self.settings.check(device_of(model))
                try:
                    self._fast = fast = FastModel(model, self.settings, wanted, x, self._messages.append)
                except NotCopied as error:
                    self._fast, self._not_copied = None, weakref.ref(model)
                    self._messages.append(str(error))
                    return None, False
                if self.settings.compile and not wanted.compile:
                    inside = next(type(c).__name__ for c in cams.values() if _asked(c).looks_inside)
                    self._messages.append(f"{type(model).__name__} is not compiled: {inside} looks inside of it")
            first = key not in fast.measured
            fast.measured.setdefault(key, {})
        return fast, first

    def _compared(
        self, cams: Cams, bound: Cams, fast: FastModel, x: Inputs, targets: Targets, answer: Answer, normalized: bool
    ) -> tuple[Maps, dict[str, Agreement]]:
        """The answer, whose first images the model as it is explains too, with the same random numbers."""
        B = len(x)
        few = B if self.settings.compile else min(B, _COMPARED)
        some = targets if few == B else part_of(targets, 0, few, B)
        restore = random_state(device_of(fast.net))
        exact = answer({name: exact_method(cam) for name, cam in cams.items()}, x[:few], some)
        restore()
        if not all(bool(m.isfinite().all()) for maps in exact.values() for m in maps):
            with self._lock:  # what was folded and measured on such images says nothing of others
                self._fast = None
        maps = answer(bound, fast.inputs(x[:few]), some)
        beside = 1 + (per_image(targets) is not None)
        agreement = {name: agreement_of(maps[name], exact[name], beside, normalized) for name in cams}
        if few < B:
            restore()
            maps = answer(bound, fast.inputs(x), targets)
        return maps, agreement

    def _warn(self) -> None:
        """What was met inside of the model's run, at the line of the method's caller."""
        from fastcam.methods.base import warn  # which imports this module

        with self._lock:
            messages, self._messages[:] = list(self._messages), []
        for message in messages:
            warn(message)

    def _own(self, outputs: Tensor | None, x: Inputs) -> Tensor | None:
        """In the images' type."""
        if outputs is None or self.settings.dtype is None:
            return outputs
        return outputs.to(x.image.dtype) if outputs.is_floating_point() else outputs


def _wanted_by(model: nn.Module, cams: Cams, layers: tuple[nn.Module, ...], x: Inputs) -> Wanted:
    """What methods that share a copy ask of it."""
    asked = [_asked(cam) for cam in cams.values()]
    inside = any(cam.looks_inside for cam in asked)
    references = tuple(weakref.ref(layer) for layer in layers)
    plain = any(cam.sums_biases for cam in asked)
    return Wanted(references, plain, compile=not inside, frozen=not inside, called=_described(*x.arguments(model)))


class _Description(pickle.Pickler):
    """What a model is called with, pickled: tensors and arrays without their values, code and modules as references."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.references: list[weakref.ref[Any]] = []

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            return "tensor"
        if isinstance(value, type | FunctionType | nn.Module):
            self.references.append(weakref.ref(value))
            return len(self.references)
        return None


def _described(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What is the same for another call only if all that is no tensor has the values that it had."""
    file = io.BytesIO()
    description = _Description(file)
    try:
        description.dump((args, sorted(kwargs.items(), key=lambda item: item[0])))
    except Exception:  # a lock, say: no other call has the same
        return object()
    return file.getvalue(), description.references


def _asked(cam: Any) -> Any:
    return _asked(cam.base_cam) if getattr(cam, "base_cam", None) is not None else cam


def exact_method(cam: Any) -> Any:
    """The same method without fast mode."""
    other = copy.copy(cam)
    other._fast = None
    return other


def _bound(cam: Any, fast: FastModel) -> Any:
    """The same method on the copy."""
    other = exact_method(cam)
    other.model = fast.net
    other.target_layers = [] if cam.target_layers == [] else list(fast.layers)
    other._with_gradient = fast.with_gradient
    if getattr(cam, "base_cam", None) is not None:
        other.base_cam = _bound(cam.base_cam, fast)
    return other


def device_of(model: nn.Module) -> torch.device:
    return next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))
