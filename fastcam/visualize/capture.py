"""What goes into layers or comes out of them in one run of a model, and how it lies in space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcam.channels import by_width
from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.layers import default_layer, image_channel_dim, layer_name
from fastcam.observe import observe
from fastcam.record import Stop, check_ran, evaluation, first_tensor, hooked, owned, unwrap
from fastcam.record import call as run_model
from fastcam.tokens import channel_axis, layout_of


def captured(model: nn.Module, layers: Sequence[nn.Module], x: Inputs, which: str, call: int = 0) -> list[Tensor]:
    """A copy of the first floating-point tensor that each layer is given, or gives, in its call of this number from 0.

    One run in evaluation mode without gradients, which ends as soon as all of them are there. Raises ValueError for a
    layer that runs less often, TypeError for one that is given or gives no such tensor.
    """
    net = unwrap(model)
    met: Counter[nn.Module] = Counter()
    found: dict[nn.Module, Tensor] = {}
    wanted = set(layers)

    def keep(module: nn.Module, t: Tensor) -> None:
        found[module] = t.detach().clone()  # whatever is written into it from here on
        if len(found) == len(wanted):
            raise Stop

    def see(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        met[module] += 1
        if met[module] != call + 1:
            return forward(*args, **kwargs)
        if which == "input":
            keep(module, _first_given(module, (args, kwargs)))
            return forward(*args, **kwargs)
        output = forward(*args, **kwargs)
        keep(module, first_tensor(module, output)[0])
        return output

    with evaluation(net), ExitStack() as stack, suppress(Stop):
        x = owned(net, x)
        inside = [m for m in net.modules() if m is not net]
        compiled = [m for m in inside if getattr(m, "_compiled_call_impl", None)]  # which calls no module inside it
        stack.enter_context(intercepted(compiled, lambda _, forward, args, kwargs: forward(*args, **kwargs)))
        stack.enter_context(intercepted([m for m in inside if m in wanted], see))
        stack.enter_context(hooked(wanted, lambda *_: None))  # keeps transformers off the path that calls no modules
        seen = x.clone()  # a model may write into it
        if net in wanted:
            see(net, lambda *_, **__: run_model(net, seen), *x.arguments(net))
        else:
            run_model(net, seen)
    check_ran(net, [m for m in layers if not met[m]], found)
    if few := [m for m in layers if m not in found]:
        name, times = layer_name(net, few[0]), met[few[0]]
        often = f"{times} time{'s' * (times != 1)}"
        raise ValueError(f"call must be from 0 to {times - 1}, layer {name!r} ran {often}: got {call}")
    return [found[m].clone() if found[m].is_inference() else found[m] for m in layers]


def in_space(model: nn.Module, layer: nn.Module, x: Inputs, t: Tensor, which: str) -> Tensor:
    """What a layer gives or is given for inputs x as maps `(B, C, *S)`; ValueError, with what to pass, if it is none.

    Where it can't be seen from the layer and the shape, the model is run again, as `layout_of` does.
    """
    net, shape = unwrap(model), tuple(t.shape)
    name = layer_name(net, layer)
    if len(shape) == 2:
        hint = ""
        with suppress(ValueError):
            hint = f", layer {layer_name(net, default_layer(net, x))!r} has maps"
        raise ValueError(f"the {which} of layer {name!r}, {shape}, is a value a channel and no map: see .data{hint}")
    source: nn.Module | None = layer if which == "output" else _source(net, layer, x)
    if source is None and shape == tuple(x.image.shape):
        return t.movedim(image_channel_dim(net, x.image), 1)
    if len(shape) != x.image.ndim:
        t = layout_of(net, source or layer, x, shape)(t)
    elif source is not None:
        t = t.movedim(channel_axis(net, source, x, shape, len(shape)), 1)
    elif not any(layer.children()) and by_width(layer, shape, incoming=True):
        t = t.movedim(-1, 1)
    if len(t) != len(x):
        raise ValueError(
            f"the {which} of layer {name!r}, {shape}, has {len(t)} maps for {len(x)} images, windows of them say: pass "
            "a reshape_transform that gives (B, C, h, w)"
        )
    return t


def _source(net: nn.Module, layer: nn.Module, x: Inputs) -> nn.Module | None:
    """The module that gave what the layer is given in its first call, if a module did."""
    sights = observe(net, x[:1])
    place = next((i for i, s in enumerate(sights) if s.module is layer and not s.returned), 0)
    made = [s.module for s in sights[:place] if s.returned and s.number == sights[place].number]
    return made[-1] if made else None


def _first_given(module: nn.Module, arguments: Any) -> Tensor:
    leaves = pytree.tree_leaves(arguments)
    given = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)
    if given is None:
        kinds = ", ".join(type(t).__name__ for t in leaves) or "nothing"
        raise TypeError(f"layer {type(module).__name__} is given no floating-point tensor but {kinds}")
    return given
