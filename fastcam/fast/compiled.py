"""What comes before and behind the target layers, compiled block by block: hooks at the layers stay outside of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import nn

_WITHOUT_CALL = (nn.ModuleList, nn.ModuleDict)


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
    """The forward of a module, compiled; as it was, from there on, once compiling has failed."""

    def __init__(
        self, name: str, module: nn.Module, mode: str | None, failed: Callable[[str, Exception], None]
    ) -> None:
        self._name, self._plain, self._failed = name or type(module).__name__, module.forward, failed
        self._compiled: Callable[..., Any] | None = torch.compile(module.forward, mode=mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._compiled = None
                self._failed(self._name, error)
        return self._plain(*args, **kwargs)


def compile_blocks(
    net: nn.Module, layers: Container[nn.Module], cuda_graphs: bool, failed: Callable[[str, Exception], None]
) -> None:
    """In place; `failed(name, error)` is called for a block that cannot be compiled, which then runs as it is."""
    mode = "reduce-overhead" if cuda_graphs else None
    for name, module in list(blocks(net, layers)):
        module.forward = Block(name, module, mode, failed)  # a module's call finds it behind its hooks
