"""Is what follows a layer exactly a mean over space and a linear map? Asked of the autograd graph, of nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward1", "SqueezeBackward2"}


def linear_head(activation: Tensor, logits: Tensor) -> Tensor:
    """The weights `(K, C)` of logits = W mean(activation) + b, for a recorded activation `(B, C, *S)` and its logits.

    Read off the graph between them: addmm, views, one mean over all of `S`. Raises ValueError, naming the operation
    that is something else, if anything more lies between: a second ReLU changes no value, but the maps.
    """
    product: Any = logits.grad_fn
    if _name(product) == "AddmmBackward0":
        weight, node = product._saved_mat2.mT, product.next_functions[1][0]  # (K, C)
        weight = weight if product._saved_alpha == 1 else weight * product._saved_alpha
    elif _name(product) == "MmBackward0":  # a linear layer without a bias
        weight, node = product._saved_mat2.mT, product.next_functions[0][0]
    else:
        raise _no_head(product)
    node = _through_views(node, activation)
    if _name(node) != "MeanBackward1" or not _over_space(node, activation):
        raise _no_head(node)
    node = node.next_functions[0][0]
    if _name(node) == "UnsqueezeBackward0":  # a signal, which adaptive pooling makes an image of one row
        node = node.next_functions[0][0]
    if _name(node) == "CloneBackward0":  # the copy of the recorded activation that the network went on with
        node = node.next_functions[0][0]
    if not _is(node, activation):
        raise _no_head(node)
    return weight


def _through_views(node: Any, activation: Tensor) -> Any:
    while _name(node) in _VIEWS or _flattens(node, activation):
        node = node.next_functions[0][0]
    return node


def _flattens(node: Any, activation: Tensor) -> bool:
    """Whether a node only restrides a pooled channels_last `(B, C, 1, 1)`, which autograd knows as `as_strided`."""
    if _name(node) != "AsStridedBackward1":
        return False
    B, C = activation.shape[:2]
    size, stride = tuple(node._saved_size), tuple(node._saved_stride)
    as_it_is = size == (B, C, *[1] * (len(size) - 2)) and stride[:2] == (C, 1)
    return as_it_is and node._saved_storage_offset in (0, None)


def _over_space(mean: Any, activation: Tensor) -> bool:
    size = tuple(mean._saved_self_sym_sizes)
    dims = {d % len(size) for d in _signed(mean._saved_dim)}
    row = (*activation.shape[:2], 1, *activation.shape[2:]) if activation.ndim == 3 else None
    return size in (tuple(activation.shape), row) and dims == set(range(2, len(size)))


def _signed(dims: tuple[int, ...]) -> list[int]:
    """Autograd hands out negative dimensions as unsigned 64-bit numbers."""
    return [d - 2**64 if d >= 2**63 else d for d in dims]


def _is(node: Any, tensor: Tensor) -> bool:
    return getattr(node, "variable", None) is tensor if tensor.is_leaf else node is tensor.grad_fn


def _name(node: Any) -> str:
    return type(node).__name__


def _no_head(node: Any) -> ValueError:
    return ValueError(
        "CAM needs global average pooling and one linear layer directly behind the target layer, and something else is "
        f"there (at {_name(node)}): choose the layer that is pooled, or GradCAM, which works at any layer"
    )
