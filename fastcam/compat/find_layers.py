"""Find and replace layers of a model, as `pytorch_grad_cam.utils.find_layers` does; children that are None are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: Any) -> bool:
    """Put `new_layer` where `old_layer` is first found below the model; whether it was."""
    for name, child in model._modules.items():
        if child is old_layer:
            model._modules[name] = new_layer
            return True
        if isinstance(child, nn.Module) and replace_layer_recursive(child, old_layer, new_layer):
            return True
    return False


def replace_all_layer_type_recursive(model: nn.Module, old_layer_type: Any, new_layer: Any) -> None:
    """Put `new_layer` wherever a layer below the model is an instance of the type, and go on inside what was there."""
    for name, child in model._modules.items():
        if isinstance(child, old_layer_type):
            model._modules[name] = new_layer
        if isinstance(child, nn.Module):
            replace_all_layer_type_recursive(child, old_layer_type, new_layer)


def find_layer_types_recursive(model: nn.Module, layer_types: Sequence[type]) -> list[nn.Module]:
    """The layers below the model whose type is exactly one of these, in the model's order."""
    return find_layer_predicate_recursive(model, lambda layer: type(layer) in layer_types)


def find_layer_predicate_recursive(model: nn.Module, predicate: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The layers below the model for which the predicate holds, in the model's order; a shared one each time."""
    found: list[nn.Module] = []
    for child in model._modules.values():
        if child is None:
            continue
        found += [child] if predicate(child) else []
        found += find_layer_predicate_recursive(child, predicate)
    return found
