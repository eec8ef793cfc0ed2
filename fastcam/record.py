"""One run of a model: activations at chosen layers, gradients back to them, and nothing left behind.

Nothing before the first target layer builds a graph: its output is cut off, and gradients are on from there. The
backward pass stops at the layers, so no parameter ever gets a gradient.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.inputs import check_input as check_input

AnyInput = TypeVar("AnyInput", Tensor, Inputs)
Hook = Callable[[nn.Module, Any], Any]  # (module, output) -> another output or None

_lock = threading.Lock()
_held: dict[nn.Module, tuple[bool, set[object]]] = {}  # module -> its training flag, and the calls under way


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DataParallel`, `DistributedDataParallel` and the wrapper of `torch.compile`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def all_modules(net: nn.Module) -> list[nn.Module]:
    """The modules of `net.modules()`, in another order; that takes ten times as long."""
    found, waiting = {net}, [net]
    for module in waiting:
        for child in module._modules.values():
            if child is not None and child not in found:
                found.add(child)
                waiting.append(child)
    return waiting


def made_in_inference(net: nn.Module) -> bool:
    """Whether a parameter was created in inference mode, and so gives no gradient."""
    parameters = (p for module in all_modules(net) for p in module._parameters.values())
    return any(p is not None and p.is_inference() for p in parameters)


def first_convolution(net: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | None:
    """The convolution that was registered first, usually the one that takes the input; None without any."""
    return next((m for m in net.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)


def to_device_of(net: nn.Module, x: AnyInput) -> AnyInput:
    """`x` on the device of the model's first parameter or buffer, otherwise as it is."""
    device = next((t.device for t in chain(net.parameters(), net.buffers())), None)
    if device is None:
        return x
    return x.map(lambda t: t.to(device)) if isinstance(x, Inputs) else x.to(device)


def to_cpu(t: Tensor, wait: bool = True) -> Tensor:
    """`t` on the CPU, from a GPU through page-locked memory: no copy of a copy, no pages that are touched first.

    That memory is the result's own; once it and the numpy arrays of it are gone, it serves a later one.
    wait   False: the copy is queued in the current stream
    """
    if not t.is_cuda:
        return t.cpu()
    return torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True).copy_(t, non_blocking=not wait)


def owned(net: nn.Module, x: AnyInput) -> AnyInput:
    """`x` as a run takes it: on the model's device, and no inference tensor."""
    x = to_device_of(net, x)
    return x.map(_no_inference, everywhere=True) if isinstance(x, Inputs) else _no_inference(x)


def _no_inference(t: Tensor) -> Tensor:
    return t.clone() if t.is_inference() else t


def surely(restore: Callable[[], None]) -> None:
    """`restore()`, which may be repeated, to its end even if a Ctrl-C falls into it."""
    try:
        restore()
    except BaseException:
        restore()
        raise


@contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients off and no inference mode for this thread; all as before at the end.

    Several threads may be inside with one model: training flags are counted per module, the last one out restores.
    """
    modules, this_call = all_modules(net), object()
    # An autocast cache filled while gradients are off would hand the caller's own training graph-less weights.
    cached = torch.is_autocast_cache_enabled()

    def restore() -> None:
        torch.set_autocast_cache_enabled(cached)
        with _lock:
            for module in modules:
                training, calls = _held.get(module, (False, set()))
                calls.discard(this_call)
                if module in _held and not calls:
                    if module.training != training:  # an assignment takes a module its time
                        module.training = training
                    del _held[module]

    try:
        torch.set_autocast_cache_enabled(False)
        with _lock:
            for module in modules:
                _held.setdefault(module, (module.training, set()))[1].add(this_call)
                if module.training:
                    module.training = False
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        surely(restore)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """`hook(module, output)` after each forward call of the modules by this thread, until the block ends."""
    owner = threading.get_ident()

    def forward_hook(module: nn.Module, _inputs: Any, output: Any) -> Any:
        return hook(module, output) if threading.get_ident() == owner else None

    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            if isinstance(module, torch.jit.RecursiveScriptModule):  # which takes no hook
                continue
            stack.callback(module.register_forward_hook(forward_hook).remove)
        yield


def call(net: nn.Module, x: Tensor | Inputs) -> Any:
    """`net(x)`, uncompiled, with a clear error for the usual mistakes: channels, batch dimension, type, a list."""
    args, kwargs = x.arguments(net) if isinstance(x, Inputs) else ((x,), {})
    try:
        # Hooks added after a compilation are ignored by compiled code.
        return (net._call_impl if getattr(net, "_compiled_call_impl", None) else net)(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except TypeError as error:
        if len(args) > 1 and not _accepts(net, args, kwargs):
            raise TypeError(
                f"{error}: input_tensor is a {type(args).__name__} of {len(args)}, which are {len(args)} arguments of "
                f"the model. Images of a batch go into one tensor: torch.stack of (k, H, W), torch.cat of (1, k, H, W)"
            ) from error
        raise
    except (RuntimeError, ValueError) as error:
        alone = x if isinstance(x, Tensor) else x.image if x.is_single else None  # of several any may be the culprit
        if alone is not None and (mistake := _mistake(net, alone, str(error))) is not None:
            raise ValueError(mistake) from error
        raise


def _accepts(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(net.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a forward that is not written in Python
        return True
    return True


def _mistake(net: nn.Module, x: Tensor, message: str) -> str | None:
    """What is wrong with an input that the model answered with this message, if it is one of the usual things."""
    first = first_convolution(net)
    if first is None:
        return None
    if x.ndim < first.weight.ndim:
        return f"input_tensor has no batch dimension: {tuple(x.shape)}; pass x[None]"
    if "channels" in message and x.shape[1] != first.in_channels:
        last = x.ndim == 4 and x.shape[-1] == first.in_channels
        return (
            f"the model's first convolution takes {first.in_channels} channels, "
            f"input_tensor has {x.shape[1]}: {tuple(x.shape)}{'; pass x.permute(0, 3, 1, 2)' if last else ''}"
        )
    if "type" in message and x.dtype != first.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"input_tensor is {x.dtype}, the model {first.weight.dtype}: pass x.to({first.weight.dtype})"
    return None


class Run:
    """What a run of the model left: the output and, for each target layer, its activation.

    inputs        what the model was called with, on its device
    input         the image among it: the tensor `(B, k, *S)` that is explained
    output        what the model returned; None if the run was stopped at the last layer
    activations   a tensor per target layer, in the order the layers were given
    first         the place of its first image in the batch that the caller gave
    kept          where several methods share the run: targets, and for each of an image the gradients at the layers
    """

    def __init__(
        self, layers: Sequence[nn.Module], x: Tensor | Inputs, recorded: Mapping[nn.Module, Tensor], output: Any
    ) -> None:
        self.first = 0
        self.kept: list[tuple[Any, list[list[Tensor]]]] | None = None
        self.layers = list(layers)
        self.inputs = x if isinstance(x, Inputs) else Inputs(x)
        self.input: Tensor = self.inputs.image
        self.output = output
        self._recorded = recorded

    @property
    def activations(self) -> list[Tensor]:
        return [self._recorded[layer].detach() for layer in self.layers]

    def attached(self, layer: nn.Module) -> Tensor:
        """The recorded activation with its place in the autograd graph."""
        return self._recorded[layer]

    def reached(self) -> bool:
        """Whether every recorded activation is part of the output's graph."""
        wanted = {id(t if t.is_leaf else t.grad_fn) for t in self._recorded.values()}
        nodes: list[Any] = [t.grad_fn for t in carrying_gradient(self.output)]
        seen: set[Any] = set()
        while nodes and wanted:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            if type(node).__name__ == "CheckpointFunctionBackward":
                raise RuntimeError(
                    "the model checkpoints activations in the reentrant way, which gives no gradient of a layer: "
                    "use torch.utils.checkpoint with use_reentrant=False, or switch it off"
                )
            seen.add(node)
            wanted -= {id(node), id(getattr(node, "variable", None))}
            nodes.extend(child for child, _ in node.next_functions)
        return not wanted

    def gradients(self, scores: Tensor, keep_graph: bool = False, create_graph: bool = False) -> list[Tensor]:
        """d sum(scores) / d activation for each target layer; zeros where the scores do not depend on it.

        create_graph   let the gradients have a graph of their own, for second derivatives
        """
        wanted = list(self._recorded)
        grads = torch.autograd.grad(
            scores,
            [self._recorded[m] for m in wanted],
            torch.ones_like(scores),
            retain_graph=keep_graph or create_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
        by_layer = {
            m: torch.zeros_like(self._recorded[m]) if g is None else g for m, g in zip(wanted, grads, strict=True)
        }
        return [by_layer[layer] for layer in self.layers]


@contextmanager
def record(
    model: nn.Module, layers: Sequence[nn.Module], x: Tensor | Inputs, *, gradients: bool = True, complete: bool = True
) -> Iterator[Run]:
    """Run `model(x)` once and give its activations at `layers`.

    gradients   build the graph from the layers to the output, for `Run.gradients`
    complete    False stops the run as soon as every layer has run; there is no output then
    Raises ValueError if a layer does not run, RuntimeError if no gradient can flow from the output to a layer.
    """
    net = unwrap(model)
    if gradients and made_in_inference(net):
        raise RuntimeError(
            f"{type(net).__name__} was created or loaded inside torch.inference_mode(), its parameters give no "
            "gradient: create it outside, or use a method without gradients, EigenCAM or ScoreCAM"
        )
    with evaluation(net), ExitStack() as stack:
        x = owned(net, x if isinstance(x, Inputs) else Inputs(x))
        forward = partial(_forward, net, layers, x, gradients, complete, stack)
        with torch.no_grad():  # which a hook ends at the first target layer
            run = forward()
        if gradients and not run.reached():
            # The model switches gradients off in a part of its own forward: what it restores behind that must be on.
            with torch.enable_grad():
                run = forward()
            if not carrying_gradient(run.output):
                raise RuntimeError(
                    f"the output of {type(net).__name__} carries no gradient back to the target layers: its forward "
                    "switches gradients off behind them; methods without gradients, such as EigenCAM, still work"
                )
        yield run


def _forward(
    net: nn.Module, layers: Sequence[nn.Module], x: Inputs, gradients: bool, complete: bool, stack: ExitStack
) -> Run:
    recorded: dict[nn.Module, Tensor] = {}
    wanted = set(layers)

    def keep(module: nn.Module, output: Any) -> Any:
        if module in recorded:  # a module called twice: its first call counts
            return None
        tensor, put_back = first_tensor(module, output)
        if gradients:
            if torch.is_inference_mode_enabled():  # inside the model's own forward; left when the run ends
                stack.enter_context(torch.inference_mode(False))
            torch.set_grad_enabled(True)
        # The clone is ours alone: whatever is written in place before or behind the layer, it keeps the layer's output.
        ours = tensor.clone() if gradients and tensor.requires_grad else tensor.detach().clone()
        recorded[module] = ours.requires_grad_(gradients) if ours.is_leaf else ours
        if not complete and len(recorded) == len(wanted):
            raise Stop
        return put_back(ours.clone()) if gradients else None

    with hooked(wanted, keep):
        try:
            output = call(net, x.clone())  # which the model may write into
        except Stop:
            output = None
    check_ran(net, layers, recorded)
    return Run(layers, x, recorded, output)


def check_not_scripted(net: nn.Module, what: str) -> None:
    """RuntimeError if a part of the model is scripted or traced, in which `what` can't be seen."""
    scripted = next((n for n, m in net.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        where = f"its part {scripted!r}" if scripted else type(net).__name__
        raise RuntimeError(f"{where} is scripted or traced, {what} can't be seen in it: use the Python model")


def check_ran(net: nn.Module, layers: Sequence[nn.Module], recorded: Mapping[nn.Module, Tensor]) -> None:
    """ValueError if one of the layers left no activation."""
    if missing := [layer for layer in layers if layer not in recorded]:
        names = {m: n for n, m in net.named_modules()}
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in missing):
            check_not_scripted(net, "the calls of its layers")
        listed = ", ".join(repr(names.get(m, type(m).__name__)) for m in missing)
        raise ValueError(f"target layer {listed} did not run in this forward pass")


class Stop(BaseException):
    """Ends a forward pass early; no Exception, so that a model's own `except Exception` lets it through."""


def first_tensor(module: nn.Module, output: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A layer's output, or the first floating-point tensor in it, and how to put another in its place."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return output, lambda t: t
    items = output.items() if isinstance(output, Mapping) else enumerate(output) if _is_sequence(output) else ()
    for key, item in items:
        if isinstance(item, Tensor) and item.is_floating_point():
            return item, lambda t: _replaced(output, key, t)  # noqa: B023 (called for this key only)
    raise TypeError(f"target layer {type(module).__name__} gives no floating-point tensor but {type(output).__name__}")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _replaced(output: Any, key: Any, t: Tensor) -> Any:
    if isinstance(output, Mapping):
        return type(output)({**output, key: t})  # type: ignore[call-arg]
    items = [*output[:key], t, *output[key + 1 :]]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def carrying_gradient(output: Any) -> list[Tensor]:
    """The tensors that have a graph in an output, whatever holds them: it may be an object, and refer to itself."""
    found: list[Tensor] = []
    waiting, seen = [output], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | nn.Module):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found += [item] if item.requires_grad else []
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif _is_sequence(item):
            waiting.extend(item)
        elif hasattr(item, "__dict__"):
            waiting.extend(vars(item).values())
    return found
