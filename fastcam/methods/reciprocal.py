"""Recipro-CAM: the score if only one position of the activations is left, by running again what follows the layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.layers import channel_axis
from fastcam.methods.ablation import ReplayCAM
from fastcam.record import Run, first_tensor
from fastcam.recording import Recording
from fastcam.replay import Tail
from fastcam.rows import Rows
from fastcam.targets import Targets, row_scores


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
        reshape_transform: Callable[[Any], Tensor] | None = None,
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
            axis = channel_axis(layer, tail.activation.shape, tail.rank)
            kept = self._kept(tail, axis, S)  # (Q, P)

            def change(
                rows: Rows, places: Tensor, output: Any, tail: Tail = tail, axis: int = axis, kept: Tensor = kept
            ) -> Any:
                t = tail.by_channel(first_tensor(tail.layer, output)[0], axis)  # (N, C, ...)
                t *= kept[places].view(len(t), 1, *t.shape[2:]).to(t.dtype)
                return output

            scores = self.replayed(
                run, layer, len(kept), change, score, lambda image, q: f"image {image} with position {q} only"
            )  # (B, Q, T)
            maps = scores - scores.amin(1, keepdim=True)  # (B, Q, T)
            lows.append(maps.movedim(1, 2).flatten(0, 1).unflatten(1, S).unsqueeze(1))
        return lows

    def _kept(self, tail: Tail, axis: int, S: torch.Size) -> Tensor:
        """How much of each of the P entries of the layer's output is kept for each position: `(Q, P)`.

        Entries that are no position of the map, class tokens say, are kept as they are.
        """
        entries = tail.by_channel(tail.activation, axis)[0, 0]  # the shape of one channel
        at = self._entries(tail, axis).flatten()  # (Q,), where each position of the map is among the entries
        Q, P = len(at), entries.numel()
        kept = torch.ones(Q, P, device=entries.device)
        kept[:, at] = _neighbourhoods(S, self.gaussian).to(kept)
        return kept

    def _entries(self, tail: Tail, axis: int) -> Tensor:
        """Which entry of the layer's output each position of the map is; `reshape_transform` is asked."""
        one = tail.by_channel(tail.activation, axis)[:1]  # (1, C, ...)
        numbers = torch.arange(one[0, 0].numel(), device=one.device, dtype=torch.float32)
        numbered = numbers.view(1, 1, *one.shape[2:]).expand(one.shape)
        if self.reshape_transform is None:
            return numbers.long()
        laid_out = self.reshape_transform(tail.as_given(numbered, axis))[0, 0]
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
        reshape_transform: Callable[[Any], Tensor] | None = None,
        *,
        gaussian: bool = True,
        **options: Any,
    ) -> None:
        """Arguments as in `ReciproCAM`; the filter is on by default."""
        super().__init__(model, target_layers, reshape_transform, gaussian=gaussian, **options)

    def _entries(self, tail: Tail, axis: int) -> Tensor:
        if axis == 1:
            raise ValueError(
                f"ViTReciproCAM is for tokens (B, N, C), got {tuple(tail.activation.shape)}: use ReciproCAM"
            )
        return super()._entries(tail, axis)


def _neighbourhoods(S: torch.Size, gaussian: bool) -> Tensor:
    """K for each position of a map of shape S: `(Q, Q)`."""
    if not gaussian:
        return torch.eye(S.numel())
    places = [torch.arange(n) for n in S]
    return functools.reduce(torch.kron, [(2 - (i[:, None] - i).abs()).clamp(min=0) / 4 for i in places])
