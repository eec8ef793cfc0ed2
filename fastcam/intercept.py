"""Answer for modules: a function of one thread is asked instead of each call of them, until the block ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastcam.record import hooked, surely

Handler = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_lock = threading.Lock()
_handlers: dict[nn.Module, dict[int, list[Handler]]] = {}  # module -> thread -> its handlers, the innermost last
_compiled: dict[nn.Module, Any] = {}  # what the module's own `torch.compile` had left, if anything


@contextmanager
def intercepted(modules: Iterable[nn.Module], handler: Handler) -> Iterator[None]:
    """`handler(module, forward, args, kwargs)` instead of each call of the modules by this thread.

    `forward(*args, **kwargs)` is the call itself, uncompiled, with the module's hooks. Other threads are not concerned.
    """
    chosen, thread = list(dict.fromkeys(modules)), threading.get_ident()
    entered: list[nn.Module] = []

    def leave() -> None:
        with _lock:
            while entered:
                module = entered[-1]
                by_thread = _handlers.get(module, {})
                if handlers := by_thread.get(thread):
                    handlers.remove(handler) if handler in handlers else None
                if not by_thread.get(thread):
                    by_thread.pop(thread, None)
                if not by_thread and module in _handlers:
                    _restore(module)
                entered.pop()

    try:
        for module in chosen:
            with _lock:
                entered.append(module)
                if module not in _handlers:
                    _compiled[module] = vars(module).get("_compiled_call_impl")
                    _handlers[module] = {}
                    # A module's call looks here first, before its hooks: where `module.compile()` puts its own.
                    vars(module)["_compiled_call_impl"] = _dispatcher(module)
                _handlers[module].setdefault(thread, []).append(handler)
        # Any hook keeps these off their fused path, which calls no modules.
        with hooked((m for m in chosen if isinstance(m, nn.TransformerEncoderLayer)), lambda *_: None):
            yield
    finally:
        surely(leave)


def _restore(module: nn.Module) -> None:
    if _compiled.get(module) is None:
        vars(module).pop("_compiled_call_impl", None)
    else:
        vars(module)["_compiled_call_impl"] = _compiled[module]
    _compiled.pop(module, None)
    _handlers.pop(module, None)


def _dispatcher(module: nn.Module) -> Callable[..., Any]:
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        handlers = _handlers.get(module, {}).get(threading.get_ident())
        if handlers:
            return handlers[-1](module, module._call_impl, args, kwargs)
        return (_compiled.get(module) or module._call_impl)(*args, **kwargs)

    return dispatch
