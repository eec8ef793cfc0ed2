"""What comes before and behind the target layers, compiled block by block: hooks at the layers stay outside of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import nn

_WITHOUT_CALL = (nn.ModuleList, nn.ModuleDict)
_NO_LIMIT = 2**30
# Blocks of one class share its forward's code, in which PyTorch finds again what it has compiled: where it can, each
# has a place of its own, and is not stopped by what others, or the user's own, have left there.
_APART: dict[str, Any] = {}
if "isolate_recompiles" in signature(torch.compile).parameters:
    _APART["isolate_recompiles"] = True


def blocks(module: nn.Module, layers: Container[nn.Module], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules of more than one operation that have no layer inside; a layer itself may be one."""
    if isinstance(module, torch.jit.ScriptModule) or not any(True for _ in module.children()):
        return
    holds_layer = any(part in layers for part in module.modules() if part is not module)
    if not holds_layer and not isinstance(module, _WITHOUT_CALL):
        yield name, module
        return
    for key, child in module.named_children():
        yield from blocks(child, layers, f"{name}.{key}" if name else key)


class Block:
    """The forward of a module, compiled for each shape it meets; as it was, from there on, once compiling has failed.

    compiled   whether it has not failed
    """

    def __init__(self, name: str, module: nn.Module, failed: Callable[[str, Exception], None]) -> None:
        self._name, self._plain, self._failed = name or type(module).__name__, module.forward, failed
        self._compiled: Callable[..., Any] | None = None
        try:
            # Not dynamic: the shapes of blocks that share their code differ, which does not make them change.
            self._compiled = torch.compile(module.forward, dynamic=False, **_APART)
        except RuntimeError as error:  # a Python that PyTorch does not compile for
            failed(self._name, error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._compiled = None
                self._failed(self._name, getattr(error, "inner_exception", error))
        return self._plain(*args, **kwargs)

    @property
    def compiled(self) -> bool:
        return self._compiled is not None


def compile_blocks(net: nn.Module, layers: Container[nn.Module], failed: Callable[[str, Exception], None]) -> None:
    """In place; `failed(name, error)` is called for a block that cannot be compiled, which then runs as it is."""
    for name, module in list(blocks(net, layers)):
        module.forward = Block(name, module, failed)  # a module's call finds it behind its hooks


def compiled_blocks(net: nn.Module) -> list[str]:
    """The names of the blocks that are compiled."""
    found = ((name, vars(module).get("forward")) for name, module in net.named_modules())
    return [name for name, forward in found if isinstance(forward, Block) and forward.compiled]


@contextmanager
def compiling() -> Iterator[None]:
    """Around the calls of compiled blocks, in this thread."""
    from torch._dynamo import config
    from torch._functorch import config as backward

    # Blocks may not write into what a second backward pass of theirs needs. A backward pass is compiled with what it
    # belongs to, where a failure has the block's name, not in the midst of autograd.
    changes: dict[str, Any] = {"donated_buffer": False, "force_non_lazy_backward_lowering": True}
    changes = {name: value for name, value in changes.items() if hasattr(backward, name)}
    # Beyond these limits a block would run as it is without a word.
    with config.patch(recompile_limit=_NO_LIMIT, accumulated_recompile_limit=_NO_LIMIT), backward.patch(changes):
        yield
