"""A run of a model seen at the borders of its modules: which tensors go in and come out, and in what order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.record import call, evaluation, first_tensor, owned


class Sight(NamedTuple):
    """The first floating-point tensor that a module was given, or that it returned.

    number   the same for the same tensor, whichever modules it passes
    """

    module: nn.Module
    returned: bool
    shape: tuple[int, ...]
    number: int


def observe(net: nn.Module, x: Inputs) -> list[Sight]:
    """What one run of `net(x)` shows, in the order of the run."""
    sights: list[Sight] = []
    known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
    numbers = count()

    def number(t: Tensor) -> int:
        ref, found = known.get(id(t), (None, 0))
        if ref is None or ref() is not t:
            found = next(numbers)
            known[id(t)] = weakref.ref(t), found
        return found

    def see(module: nn.Module, returned: bool, t: Tensor) -> None:
        sights.append(Sight(module, returned, tuple(t.shape), number(t)))

    _run(net, x, see)
    return sights


def follow(net: nn.Module, x: Inputs, source: int | None, visit: Callable[[int, Tensor, Tensor], bool]) -> None:
    """Run `net(x)` with a leaf in the place of the source, and show what was made of it.

    source   what a module returned, by the place of its sight in the list of `observe`; None for the input itself
    visit    called with place, leaf and tensor of each later sight that has a graph; the run ends when it returns True
    """
    leaf = owned(net, x).image.detach().clone().requires_grad_() if source is None else None
    places = count()

    def see(module: nn.Module, returned: bool, t: Tensor) -> Tensor | None:
        nonlocal leaf
        place = next(places)
        if place == source:
            torch.set_grad_enabled(True)
            leaf = t.detach().clone().requires_grad_()
            return leaf.clone()
        if leaf is not None and t.requires_grad and visit(place, leaf, t):
            raise _Seen
        return None

    with suppress(_Seen):
        _run(net, x if leaf is None else x.with_image(leaf), see, gradients=source is None)


class _Seen(BaseException):
    """Ends a run; no Exception, so that a model's own `except Exception` lets it through."""


def _run(net: nn.Module, x: Inputs, see: Callable[[nn.Module, bool, Tensor], Any], gradients: bool = False) -> None:
    def handler(module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        given = next((t for t in pytree.tree_leaves((args, kwargs)) if _is_floating(t)), None)
        if given is not None:
            see(module, False, given)
        output = forward(*args, **kwargs)
        if not any(map(_is_floating, pytree.tree_leaves(output))):
            return output
        try:
            tensor, put_back = first_tensor(module, output)
        except TypeError:  # nested deeper than a target layer's may be
            return output
        replaced = see(module, True, tensor)
        return output if replaced is None else put_back(replaced)

    inside = [m for m in net.modules() if m is not net]
    with evaluation(net), intercepted(inside, handler):
        torch.set_grad_enabled(gradients)
        call(net, owned(net, x).clone())


def _is_floating(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()
