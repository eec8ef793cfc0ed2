"""The private copy of a model that fast mode runs, and whether it still is one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from traceback import walk_tb
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastcam.fast.agreement import Agreement, random_state
from fastcam.fast.compiled import compile_blocks
from fastcam.fast.copying import copied
from fastcam.fast.folding import Folded, Pair, foldable, folded_weights, is_convolution, is_norm, put
from fastcam.fast.graphs import Graphs
from fastcam.fast.settings import Optimize
from fastcam.inputs import Inputs
from fastcam.ops import not_autocast
from fastcam.record import all_modules, call, evaluation, first_tensor, hooked, owned, to_device_of
from fastcam.tokens import layout_of

_TOLERANCE = 1e-3  # of the folded model's output, over its largest value; more where the type or TF32 is coarser
_STEPS = 16  # of rounding of such a type
Tell = Callable[[str], None]


class Wanted(NamedTuple):
    """What a method asks of the copy.

    layers    references to the target layers, in the model, which they keep alive no longer
    plain     whether the sum over all biases is looked at: convolutions with a bias of their own are not folded, and
              the memory order stays, on which rounding depends that such a sum can amplify
    compile   whether it works on compiled blocks
    frozen    whether parameters may do without a gradient
    called    what the model is called with, but for the values of tensors: with other arguments something else may run
    """

    layers: tuple[weakref.ref[nn.Module], ...]
    plain: bool = False
    compile: bool = True
    frozen: bool = True
    called: Any = None


class FastModel:
    """A copy of a model, changed as the settings say.

    net       the copy
    measured  for each question, the agreement of the first answer with the exact one
    graphs    what its calls are captured in, if they are
    """

    def __init__(self, model: nn.Module, settings: Optimize, wanted: Wanted, x: Inputs, tell: Tell) -> None:
        """Raises NotCopied, and what the model raises on one image of x; `tell` is called with a warning."""
        self.settings, self.wanted = settings, wanted
        self.measured: dict[Any, dict[str, Agreement]] = {}
        self.graphs = Graphs(tell) if settings.cuda_graphs else None
        self.with_gradient: set[nn.Module] = set()  # as that of a method is, of layers of the copy
        self._seen = _Seen(model)
        self._names = [_name(model, layer()) for layer in wanted.layers]
        self._pairs: list[Pair] = []
        self.net = copied(model)
        x = owned(self.net, x[:1])
        if settings.fold and any(map(is_norm, self.net.modules())):
            self._fold(model, x, tell)
        self.layers = [self.net.get_submodule(name) for name in self._names]
        if settings.channels_last and not wanted.plain:
            self._channels_last(x, tell)
        if settings.dtype is not None:
            self.net.to(settings.torch_dtype)
        if wanted.frozen:
            self.net.requires_grad_(False)
        if settings.compile and wanted.compile:
            self._lay_out(self.inputs(x))
            compile_blocks(self.net, set(self.layers), _told_once(tell))

    def inputs(self, x: Inputs) -> Inputs:
        """x as the copy takes it."""
        dtype = self.settings.torch_dtype
        if dtype is None:
            return x
        x = to_device_of(self.net, x)
        return x.map(lambda t: t.to(dtype) if t.is_floating_point() else t, everywhere=True)

    def is_of(self, model: nn.Module, wanted: Wanted) -> bool:
        """Whether it is a copy of this model, made for such a method. New values of the model are taken first."""
        if wanted != self.wanted:
            return False
        if not self._seen.still(model):
            if not self._seen.alike(model):
                return False
            self._refresh(model)
        return True

    @torch.no_grad()
    def _refresh(self, model: nn.Module) -> None:
        """Take the model's values."""
        folded = {name for pair in self._pairs for name in pair}
        for (name, source), (other, target) in zip(_tensors(model, folded), _tensors(self.net, folded), strict=True):
            assert name == other
            target.copy_(source)
        for pair in self._pairs:
            convolution: Any = self.net.get_submodule(pair.convolution)
            weight, bias = folded_weights(*map(model.get_submodule, pair))
            convolution.weight.copy_(weight)
            convolution.bias.copy_(bias)
        self._seen, self.measured = _Seen(model), {}

    def _fold(self, model: nn.Module, x: Inputs, tell: Tell) -> None:
        """Fold what can be folded, if the output stays what it was."""
        restore = random_state(x.image.device)
        layers = {self.net.get_submodule(name) for name in self._names}
        with evaluation(self.net), not_autocast(x.image):
            pairs, expected = foldable(self.net, x, layers, not self.wanted.plain)
        restore()
        self._pairs = pairs
        for pair in pairs:
            convolution, norm = map(self.net.get_submodule, pair)
            convolution.weight, convolution.bias = folded_weights(convolution, norm)
            put(self.net, norm, Folded(norm).eval())
        if not pairs and not self.wanted.plain:
            first = next(name for name, m in model.named_modules() if is_norm(m))
            tell(
                f"no batch norm of {type(model).__name__} is folded: {first!r}, the first, reads no convolution's "
                "output, or is not alone in reading it, as where a target layer or a hook shows it"
            )
        if not pairs:
            return
        with evaluation(self.net), not_autocast(x.image):
            found = call(self.net, x.clone())
        restore()
        if not _near(found, expected):
            self._pairs, self.net = [], copied(model)
            tell(
                f"{type(model).__name__} is not folded: with {pairs[0].norm!r} in {pairs[0].convolution!r}, and others "
                "like it, its output is another"
            )

    def _channels_last(self, x: Inputs, tell: Tell) -> None:
        """Lay convolutions out so, if the model runs with what they give then: `view` asks for the usual order."""
        planar = [m for m in self.net.modules() if is_convolution(m) and isinstance(m, nn.Conv2d)]
        if not planar:
            return
        restore = random_state(x.image.device)
        try:
            for module in planar:
                module.to(memory_format=torch.channels_last)
            with evaluation(self.net):
                call(self.net, x.clone())
        except RuntimeError as error:
            for module in planar:
                module.to(memory_format=torch.contiguous_format)
            restore()
            with evaluation(self.net):
                call(self.net, x.clone())  # which raises what is no matter of the order
            where = _innermost(self.net, error) or type(self.net).__name__
            reason = str(error).strip().partition("\n")[0]
            tell(
                f"{type(self.net).__name__} does not run in channels_last, and keeps its order: in {where!r}, {reason}"
            )
        finally:
            restore()

    def _lay_out(self, x: Inputs) -> None:
        """Find out how the layers' outputs lie in space while nothing is compiled: that takes a few runs."""
        shapes: dict[nn.Module, tuple[int, ...]] = {}
        with evaluation(self.net), hooked(self.layers, lambda m, o: _note(shapes, m, o)):
            call(self.net, x.clone())
        for layer, shape in shapes.items():
            try:
                layout_of(self.net, layer, x, shape)
            except ValueError:  # which the call raises too, if it needs it
                continue


def _told_once(tell: Tell) -> Callable[[str, Exception], None]:
    """What is called for each block that cannot be compiled, and says so of the first."""
    told: list[str] = []

    def failed(name: str, error: Exception) -> None:
        told.append(name)
        if len(told) == 1:
            reason = str(error).strip().partition("\n")[0]
            tell(f"{name!r} is not compiled, nor what else cannot be: {type(error).__name__}: {reason}")

    return failed


def _note(shapes: dict[nn.Module, tuple[int, ...]], module: nn.Module, output: Any) -> None:
    shapes.setdefault(module, tuple(first_tensor(module, output)[0].shape))


def _name(model: nn.Module, layer: nn.Module | None) -> str:
    for name, module in model.named_modules():
        if module is layer:
            return name
    raise ValueError(f"target layer {type(layer).__name__} is no longer in the model {type(model).__name__}")


def _innermost(net: nn.Module, error: Exception) -> str:
    """The name of the module whose forward raised an error."""
    names = {id(m): name for name, m in net.named_modules()}
    running = [id(frame.f_locals.get("self")) for frame, _ in walk_tb(error.__traceback__)]
    return next((names[module] for module in reversed(running) if module in names), "")


def _near(found: Any, expected: Any) -> bool:
    """Whether two outputs of a model have the same floating-point tensors, but for rounding; NaN is what NaN is."""
    pairs = list(zip(_floating(found), _floating(expected), strict=False))
    return bool(pairs) and all(a.shape == b.shape and _close(a, b) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    apart = (a - b).abs().masked_fill(a.isnan() & b.isnan(), 0)
    return bool(apart.max() <= _tolerance(a) * b.nan_to_num().abs().max() + 1e-30)


def _tolerance(t: Tensor) -> float:
    rounded = 2.0**-10 if t.device.type == "cuda" and t.dtype == torch.float32 else torch.finfo(t.dtype).eps  # TF32
    return max(_TOLERANCE, _STEPS * rounded)


def _floating(output: Any) -> list[Tensor]:
    """The tensors in what a model returned, also in an object of its own."""
    found = tree_leaves(output)
    leaves = tree_leaves([t if isinstance(t, Tensor) else getattr(t, "__dict__", None) for t in found])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]


def _tensors(net: nn.Module, without: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, but for those of the modules with some names, and of what those hold."""
    for name, module in net.named_modules():
        if name not in without:
            own = {**module._parameters, **module._buffers}
            yield from ((f"{name}.{key}", t) for key, t in own.items() if t is not None)


class _Seen:
    """A model's modules and tensors as they are now, told from what they are when somebody looks again.

    A write through `.data`, numpy or another view that shares memory but no version is not seen.
    """

    def __init__(self, net: nn.Module) -> None:
        modules, tensors = _parts(net)
        self._modules, self._tensors = [weakref.ref(m) for m in modules], [weakref.ref(t) for t in tensors]
        self._kinds = [(t.shape, t.dtype, t.device) for t in tensors]
        self._versions = _versions(tensors)

    def still(self, net: nn.Module) -> bool:
        """Whether nothing has changed."""
        modules, tensors = _parts(net)
        same = _are(self._modules, modules) and _are(self._tensors, tensors)
        return same and self._versions == _versions(tensors)

    def alike(self, net: nn.Module) -> bool:
        """Whether nothing but values has changed."""
        modules, tensors = _parts(net)
        return _are(self._modules, modules) and self._kinds == [(t.shape, t.dtype, t.device) for t in tensors]


def _parts(net: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    modules = all_modules(net)
    return modules, [t for m in modules for own in (m._parameters, m._buffers) for t in own.values() if t is not None]


def _versions(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where they lie, and how often they were written to; tensors made in inference mode don't count that."""
    return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]


def _are(before: Sequence[Callable[[], Any]], now: Sequence[Any]) -> bool:
    """Whether references are to these very objects."""
    return len(before) == len(now) and all(reference() is x for reference, x in zip(before, now, strict=True))
