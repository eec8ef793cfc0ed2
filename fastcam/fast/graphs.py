"""A whole call of a method as one CUDA graph: run, gradient and maps are launched at once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastcam.inputs import Inputs
from fastcam.record import owned
from fastcam.targets import Targets, are_callables, class_indices, per_image

_IMAGES = 16  # of a larger batch the work takes longer than its launches
_KEPT = 8  # graphs, each of which holds the memory of a run
_WARM_UPS = 3
_OF_A_CALL = ("outputs", "target_layers", "_with_gradient")  # of a method, and no part of what it computes
Work = Callable[[], list[Tensor]]


class CudaGraph:
    """Work on a GPU, captured: what it reads and writes stays where it is.

    output   what the work gave, written anew by each replay
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        """Raises what the work raises, and RuntimeError where it waits for the GPU."""
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            self._done, stream = torch.cuda.Event(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may go on with what a capture forbids: those of a loader, say.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self.output = work()

    def replay(self) -> None:
        self._graph.replay()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """For one use at a time, whatever streams the uses are in."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._done)
            yield
            self._done.record()


class Graphs:
    """The graphs of the calls on one copy of a model, whose new values, written in place, they follow.

    tell   is called with a warning if a call cannot be captured; from there on all run as they are
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._failed = tell, False
        self._lock = threading.Lock()
        self._calls: dict[Hashable, _Call] = {}

    def maps(self, cam: Any, x: Inputs, targets: Targets, options: dict[str, Any]) -> list[Tensor]:
        """The maps, and `outputs`, of a method that is bound to the copy, in memory that no later call writes to."""
        key = None if self._failed else _key(cam, x, targets, options)
        if key is None:
            return cam._answered(x, targets, False, **options)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if (known := self._calls.get(key)) is not None:
                return known.maps(cam, x, targets)
            maps = cam._answered(x, targets, False, **options)
            if not self._failed and _is_alive(cam, targets):
                self._capture(key, cam, x, targets, options)
            return maps

    def _capture(self, key: Hashable, *call: Any) -> None:
        while len(self._calls) >= _KEPT:
            del self._calls[next(iter(self._calls))]
        try:
            self._calls[key] = _Call(*call)
        except Exception as error:  # whatever a model does that a graph cannot hold
            self._failed = True
            cam, reason = call[0], str(error).strip().partition("\n")[0]
            self._tell(
                f"{type(cam).__name__} of {type(cam.model).__name__} is not captured as a CUDA graph: "
                f"{type(error).__name__}: {reason}"
            )


class _Call:
    """A captured call: inputs and classes of its own, which those of each call are copied into."""

    def __init__(self, cam: Any, x: Inputs, targets: Targets, options: dict[str, Any]) -> None:
        self._cam, self._options = copy.copy(cam), options
        self._x = owned(cam.model, x).clone()
        self._targets = None if targets is None else class_indices(targets, cam.outputs).clone()
        self._logits: Tensor | None = None
        self._graph = CudaGraph(self._run, self._x.image.device)

    def _run(self) -> list[Tensor]:
        maps = self._cam._answered(self._x, self._targets, False, **self._options)
        self._logits = self._cam.outputs
        return maps if self._logits is None else [*maps, self._logits]

    def maps(self, cam: Any, x: Inputs, targets: Targets) -> list[Tensor]:
        with self._graph.in_turn():
            if self._targets is not None and self._logits is not None:
                self._targets.copy_(class_indices(targets, self._logits))  # which looks at them
            for ours, given in zip(self._x.leaves, x.leaves, strict=True):
                ours.copy_(given)
            self._graph.replay()
            found = [t.clone() for t in self._graph.output]
        cam.outputs = None if self._logits is None else found.pop()
        return found


def _key(cam: Any, x: Inputs, targets: Targets, options: dict[str, Any]) -> Hashable | None:
    """What calls have in common that one graph serves; None for calls that none can serve."""
    tensors = all(isinstance(leaf, Tensor) for leaf in x.leaves) and not x.forward_kwargs
    # Of a class of the user's own nobody knows what it does; a spline's matrix comes from the host.
    known = cam.is_capturable and not cam.looks_inside and type(cam).__module__.startswith("fastcam.methods.")
    known = known and cam.interpolation != "cubic" and x.image.ndim <= 4
    if not known or not tensors or are_callables(targets) or len(x) > _IMAGES:
        return None
    key = (
        type(cam),
        *((name, value) for name, value in sorted(vars(cam).items()) if name not in _OF_A_CALL),
        *(repr(x._structure), *((t.shape, t.dtype) for t in x.leaves)),
        *(targets is None, per_image(targets)),
        *((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted(options.items())),
        *(torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
    )
    try:
        hash(key)
    except TypeError:  # an attribute of a subclass
        return None
    return key


def _is_alive(cam: Any, targets: Targets) -> bool:
    """Whether nothing is left to say of a call like the one before: of layers without a gradient, or of classes."""
    known = not cam.uses_gradients or cam._with_gradient.issuperset(cam.target_layers)
    return known and (targets is None or cam.outputs is not None)
