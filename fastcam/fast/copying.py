"""A copy of a model that shares nothing with it but what a user's hooks keep, or why there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from fastcam.record import carrying_gradient

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotCopied(Exception):
    """Says of a model why it cannot be copied."""


def copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without what calls of fastcam under way in other threads have put into the model.

    The model's own hooks become the copy's, those of others are shared: they may hold a recorder, or what cannot be
    copied. Raises NotCopied.
    """
    named = dict(model.named_modules())
    held = [value for m in named.values() for key, value in vars(m).items() if key not in HOOKS]
    shared = _shared_hooks(model, named, {id(part) for part in (*named.values(), *held, *tree_leaves(held))})
    # Tensors inside of a graph cannot be copied as they are.
    shared |= {id(t): t.detach().clone() for t in carrying_gradient(held) if not t.is_leaf}
    try:
        net = copy.deepcopy(model, dict(shared))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise _not_copied(model, f"{_holder(model, named, shared)!r} cannot be copied: {reason}") from error
    for module in net.modules():
        module.training = False  # the model's own train() may do more, or return nothing
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if _is_of_fastcam(hook):
                    del hooks[key]
    return net


def _shared_hooks(model: nn.Module, named: Mapping[str, nn.Module], parts: set[int]) -> dict[int, Any]:
    """The hooks that act on no part of the model, by id."""
    shared = {}
    for name, module in named.items():
        for hook in (h for key in HOOKS for h in getattr(module, key).values()):
            inside = [] if _is_of_fastcam(hook) else [closed for x, closed in _acts_on(hook) if id(x) in parts]
            if any(inside):
                where = name or type(model).__name__
                raise _not_copied(model, f"a hook of {where!r} is a function around a part of the model")
            if not inside:
                shared[id(hook)] = hook
    return shared


def _acts_on(hook: Any) -> Iterator[tuple[Any, bool]]:
    """The objects that a hook is bound to, and whether by a function's closure, which no copy of it changes."""
    waiting, seen = [(hook, False)], set()
    while waiting:
        item, closed = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, partial):
            waiting += [(x, closed) for x in (item.func, *item.args, *item.keywords.values())]
        elif isinstance(item, MethodType):
            waiting.append((item.__self__, closed))
        elif isinstance(item, FunctionType):
            waiting += [(x, True) for x in _enclosed(item)]
        elif hasattr(item, "__dict__") or isinstance(item, dict | list | set):  # a name or a number is nobody's
            yield item, closed


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            continue


def _is_of_fastcam(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("fastcam.")


def _holder(model: nn.Module, named: Mapping[str, nn.Module], shared: Mapping[int, Any]) -> str:
    """The name of the attribute that cannot be copied, with its module's."""
    known = {id(v): v for m in named.values() for v in (m, *m._parameters.values(), *m._buffers.values())}
    for name, module in named.items():
        for key, value in vars(module).items():
            try:
                copy.deepcopy(value, {**known, **shared})
            except Exception:
                return f"{name}.{key}".removeprefix(".")
    return type(model).__name__


def _not_copied(model: nn.Module, why: str) -> NotCopied:
    return NotCopied(f"{type(model).__name__} is explained as it is, without fast mode: {why}")
