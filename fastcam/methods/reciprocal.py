"""Recipro-CAM: the score if only one position of the activations is left, by running again what follows the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.methods.ablation import ReplayCAM
from fastcam.record import Run, first_tensor
from fastcam.recording import Recording
from fastcam.replay import Tail
from fastcam.rows import Rows
from fastcam.targets import Targets, row_scores
from fastcam.tokens import channel_axis


class ReciproCAM(ReplayCAM):
    """Recipro-CAM (Byun and Lee, CVPR Workshops 2024, arXiv:2209.14074).

    map_q = p(A K_q) - min over the positions,  K_q = 1 at position q and 0 elsewhere

    p is the target's probability (softmax; callables are taken as they are) with the activations A K_q. With
    `gaussian` K_q is the 3 x 3 binomial filter around q instead, 1/4 at q, 1/8 beside, 1/16 in the corners; in one or
    three dimensions the product of as many (1/4, 1/2, 1/4). One replay a position. `eigen_smooth` does not apply.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        gaussian: bool = False,
        **options: Any,
    ) -> None:
        """Arguments as in `ScoreCAM`, and `gaussian`, see the class."""
        super().__init__(model, target_layers, reshape_transform, **options)
        self.gaussian = gaussian

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        assert isinstance(run, Recording)
        if eigen_smooth:
            raise ValueError(f"{type(self).__name__}'s map is no sum of channels: eigen_smooth does not apply")
        score = row_scores(targets, run.output, len(run.input), probability=True)
        lows = []
        for layer in run.layers:
            S = self.spatial_of(run, layer, run.attached(layer)).shape[2:]
            tail = run.tails[layer]
            axis = channel_axis(self.model, layer, run.inputs, tail.activation.shape, tail.rank)
            entries = self._entries(run, tail, axis).flatten()  # (Q,), which of the layer's each position of the map is

            def change(
                rows: Rows, q: Tensor, output: Any, tail: Tail = tail, axis: int = axis, S: Any = S, at: Any = entries
            ) -> Any:
                t = tail.by_channel(first_tensor(tail.layer, output)[0], axis)  # (N, C, ...)
                kept = torch.ones(len(t), t[0, 0].numel(), device=t.device)  # others, class tokens say, as they are
                kept[:, at] = _neighbourhoods(S, q, self.gaussian)
                t *= kept.view(len(t), 1, *t.shape[2:]).to(t.dtype)
                return output

            scores = self.replayed(
                run, layer, len(entries), change, score, lambda image, q: f"image {image} with position {q} only"
            )  # (B, Q, T)
            maps = scores - scores.amin(1, keepdim=True)  # (B, Q, T)
            lows.append(maps.movedim(1, 2).flatten(0, 1).unflatten(1, S).unsqueeze(1))
        return lows

    def _entries(self, run: Run, tail: Tail, axis: int) -> Tensor:
        """Which entry of the layer's output each position of the map is; `reshape_transform` is asked."""
        one = tail.by_channel(tail.activation, axis)[:1]  # (1, C, ...)
        numbers = torch.arange(one[0, 0].numel(), device=one.device, dtype=torch.float32)
        numbered = numbers.view(1, 1, *one.shape[2:]).expand(one.shape)
        laid_out = self.transform(run, tail.layer, tail.activation.shape)(tail.as_given(numbered, axis))[0, 0]
        found = laid_out.round().long()
        if not torch.equal(found.to(laid_out.dtype), laid_out) or len(found.unique()) != found.numel():
            raise ValueError("reshape_transform must lay out the entries of the layer's output, and it changes them")
        return found


class ViTReciproCAM(ReciproCAM):
    """ViT-Recipro-CAM (Byun and Lee 2023, arXiv:2310.02588): Recipro-CAM on tokens.

    map_q as in `ReciproCAM`, of tokens `(B, N, C)`: only the token of position q is left, and the class token

    The first norm of the last block is a good layer. `reshape_transform` says how the tokens lie in space; those that
    it leaves out, class and register tokens, are kept in every pass.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        gaussian: bool = True,
        **options: Any,
    ) -> None:
        """Arguments as in `ReciproCAM`; the filter is on by default."""
        super().__init__(model, target_layers, reshape_transform, gaussian=gaussian, **options)

    def _entries(self, run: Run, tail: Tail, axis: int) -> Tensor:
        if axis == 1:
            raise ValueError(
                f"ViTReciproCAM is for tokens (B, N, C), got {tuple(tail.activation.shape)}: use ReciproCAM"
            )
        return super()._entries(run, tail, axis)


def _neighbourhoods(S: torch.Size, q: Tensor, gaussian: bool) -> Tensor:
    """K_q for positions q `(N,)` of a map of shape S, `(N, Q)`."""
    at = torch.arange(S.numel(), device=q.device)
    if not gaussian:
        return (q.unsqueeze(1) == at).float()
    K = torch.ones(1, device=q.device)
    for i, j in zip(torch.unravel_index(at, S), torch.unravel_index(q, S), strict=True):  # dimension by dimension
        K = K * (2 - (i - j.unsqueeze(1)).abs()).clamp(min=0) / 4
    return K
