"""The attention maps of a run, however the model computes them; the model is not touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class AttentionMaps(TorchFunctionMode):
    """Inside this block every self-attention computes its map softmax(QK' / sqrt(d)), which is kept in `maps`.

    Met are `F.scaled_dot_product_attention`, `nn.MultiheadAttention` and a softmax over the last of two equal
    dimensions, as written out by hand. From the first map on gradients are on, and nothing before it builds a graph.
    A map is a tensor `(B, heads, N, N)` or `(B * heads, N, N)` with its place in that graph. What runs inside compiled
    or scripted code is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(args, kwargs)
        output = func(*args, **kwargs)
        if func in (torch.softmax, Tensor.softmax, F.softmax) and _is_map(output) and _over_keys(output, args, kwargs):
            return self._kept(output)
        return output

    def _kept(self, A: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        if not A.requires_grad:
            A = A.detach().requires_grad_()
        self.maps.append(A)
        return A

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`F.scaled_dot_product_attention` in evaluation mode, step by step."""
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None:
            attended = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attended else logits + attn_mask
        A = logits.softmax(-1)
        return (self._kept(A) if _is_map(A) else A) @ value

    def _multi_head(self, args: Any, kwargs: Any) -> Any:
        """`F.multi_head_attention_forward`, asked for its weights; a graph not there yet begins at the query."""
        wanted, average = kwargs.get("need_weights", True), kwargs.get("average_attn_weights", True)
        kwargs = {**kwargs, "need_weights": True, "average_attn_weights": False}
        if not torch.is_grad_enabled():
            own = {id(t): t.detach() for t in (*args, *kwargs.values()) if isinstance(t, Tensor)}
            args = [own.get(id(a), a) for a in args]  # one tensor as query, key and value stays one
            kwargs = {name: own.get(id(a), a) for name, a in kwargs.items()}
            (args[0] if args else kwargs["query"]).requires_grad_()
            torch.set_grad_enabled(True)
        output, weights = F.multi_head_attention_forward(*args, **kwargs)
        # What is returned is a view of the map that went on; without a base it is that map itself.
        assert weights is not None
        A = weights if weights._base is None else weights._base
        if _is_map(A):
            self.maps.append(A)
        if not wanted:
            return output, None
        return output, weights.mean(-3) if average else weights


def _is_map(A: Tensor) -> bool:
    return A.ndim >= 3 and A.shape[-1] == A.shape[-2] > 1


def _over_keys(A: Tensor, args: Any, kwargs: Any) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim is not None and dim % A.ndim == A.ndim - 1
