"""Ablation-CAM: what the score loses without a channel, by running again only what follows the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.batches import check_batch_size
from fastcam.fast.settings import Optimize
from fastcam.head import linear_head
from fastcam.inputs import Inputs
from fastcam.layers import layer_name
from fastcam.methods.ablation_layers import (
    FAR_BELOW,
    AblationLayer,
    AblationLayerFasterRCNN,
    AblationLayerVit,
    ablate_in_levels,
    ablation_values,
)
from fastcam.methods.base import warn
from fastcam.methods.perturbation import PerturbationCAM, consecutive, no_number
from fastcam.record import Run, first_tensor
from fastcam.recording import Recording, recorded
from fastcam.replay import Tail
from fastcam.rows import Rows
from fastcam.targets import Targets, are_callables, class_indices, find_logits, row_scores
from fastcam.tokens import channel_axis

Score = Callable[[Any, Rows], Tensor]


class ReplayCAM(PerturbationCAM):
    """A method that changes activations, and runs again only what follows their layer."""

    looks_inside = True

    head = False  # whether the graph of a linear head is of use

    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> AbstractContextManager[Run]:
        return recorded(self.model, layers, x, head=self.head)

    def replayed(
        self,
        run: Recording,
        layer: nn.Module,
        per_image: int,
        change: Callable[[Rows, Tensor, Any], Any],
        score: Score,
        name: Callable[[int, int], str],
    ) -> Tensor:
        """The scores `(B, n, T)` of n = `per_image` changed rows of each image.

        change(rows, places, output)   changes the layer's output for the rows, each of which is its image's
                                       places[i]-th, and returns it
        name(image, place)             what a row is, for errors; the image as the caller counts
        The unchanged images are run again too: RuntimeError if their scores are not what they were.
        """
        B, tail, x = len(run.input), run.tails[layer], run.input

        def again(start: int, stop: int) -> Tensor:
            rows = Rows.of(order[start:stop], x.device)
            return score(replay(rows, tail.rows(rows)), rows)

        def changed(start: int, stop: int) -> Tensor:
            rows, places = consecutive(start, stop, per_image, x.device)
            return score(replay(rows, change(rows, places, tail.rows(rows))), rows)

        order = [*range(B - 1, -1, -1), 0]  # other rows than those recorded
        with tail.replaying() as replay:
            same = self.queued(layer, x, B + 1, again, progress=False)
            scores = self.queued(layer, x, B * per_image, changed)
        unchanged = score(run.output, Rows.of(range(B), x.device))
        off = (same - unchanged[order]).abs()
        if not bool(scores.isfinite().all() & (off <= _tolerance(run.output, same)).all()):  # the one time that we wait
            if not bool(same.isfinite().all()):
                raise no_number(same, lambda row: f"image {run.first + order[row]}", x)
            if not bool(scores.isfinite().all()):
                raise no_number(scores, lambda row: name(run.first + row // per_image, row % per_image), x)
            raise RuntimeError(
                f"running again what follows the layer changes a score by {off.max().item():.1e}: the model keeps "
                "something that the calls of its modules do not show; use a method with gradients"
            )
        scores = scores.unflatten(0, (B, per_image))
        if not bool((scores != unchanged.unsqueeze(1)).any()):
            where = layer_name(self.model, layer)
            warn(f"nothing that is changed at layer {where!r} moves the score, its map is empty")
        return scores


def _tolerance(output: Any, scores: Tensor) -> Tensor:
    """How far rounding alone may take scores, on the scale of the model's output: reduced precision included."""
    logits = find_logits(output)
    kind = scores.dtype if logits is None else logits.dtype
    share = {torch.float64: 1e-6, torch.float32: 0.02}.get(kind, 0.1)
    scale = scores.abs().amax() if logits is None else torch.maximum(scores.abs().amax(), logits.abs().amax())
    return share * scale


class AblationCAM(ReplayCAM):
    """Ablation-CAM (Desai and Ramaswamy, WACV 2020).

    w_c = (y - y_c) / y,  map = sum_c w_c A_c,  y_c the score without channel c

    A channel is taken away by setting it to 0 where the image's smallest activation is 0, otherwise to 1e7 less than
    that, which is pytorch-grad-cam's choice: a layer behind a ReLU is the better one. A negative y turns the map round,
    as there; where y is 0 it is left out. One replay a channel of what follows the layer; where that is a mean over
    space and one linear layer, y_c is known without any.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> AblationCAM(model, "0")(torch.rand(2, 1, 8, 8), targets=1).shape
    (2, 8, 8)
    """

    head = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        ablation_layer: Any = None,
        batch_size: int | str = 32,
        ratio_channels_to_ablate: float = 1.0,
        *,
        reference_batching: bool = False,
        progress: bool = False,
        sign: str = "activation",
        interpolation: str | None = None,
        optimize: bool | Optimize | None = None,
    ) -> None:
        """Bind the method to a model; arguments as in `ScoreCAM`, and

        ablation_layer             an `AblationLayer`, of fastcam or pytorch-grad-cam, or an object with its methods;
                                   None finds out where the channels are
        ratio_channels_to_ablate   in (0, 1]: below 1 only some channels, see `AblationLayer`, get a weight
        reference_batching         pytorch-grad-cam's map on layers that go below 0, where each ablated row of a batch
                                   pushes the next one 1e7 further down: it depends on `batch_size`, a number then
        """
        common: dict[str, Any] = {
            "progress": progress,
            "sign": sign,
            "interpolation": interpolation,
            "optimize": optimize,
        }
        super().__init__(model, target_layers, reshape_transform, batch_size=batch_size, **common)
        if isinstance(ablation_layer, type):
            raise TypeError(f"ablation_layer must be an instance, got the class {ablation_layer.__name__}")
        if not isinstance(ratio_channels_to_ablate, int | float) or not 0 < ratio_channels_to_ablate <= 1:
            raise ValueError(f"ratio_channels_to_ablate must be in (0, 1], got {ratio_channels_to_ablate!r}")
        if reference_batching:
            check_batch_size(batch_size)
        self.ablation_layer = ablation_layer
        self.ratio_channels_to_ablate = ratio_channels_to_ablate
        self.reference_batching = reference_batching

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        assert isinstance(run, Recording)
        B = len(run.input)
        score = row_scores(targets, run.output, B)
        original = score(run.output, Rows.of(range(B), run.input.device))  # (B, T)
        lows = []
        for layer in run.layers:
            A = self._activations(run, layer)
            drop = self._drops(run, layer, A, targets, score, original)  # (B, T, C)
            weights = drop / torch.where(original == 0, 1, original).unsqueeze(2)
            lows.append(self.weighted_map(A, weights.flatten(0, 1).to(ops.wide(A).dtype), eigen_smooth))
        return lows

    def _activations(self, run: Recording, layer: nn.Module) -> Tensor:
        """The layer's activations `(B, C, *S)`; a mapping goes through reshape_transform as a whole."""
        tail = run.tails[layer]
        if isinstance(tail.output, Mapping) and self.reshape_transform is not None:
            return self.reshape_transform(tail.rows(Rows.of(range(len(run.input)), run.input.device)))
        return self.spatial_of(run, layer, run.attached(layer).detach())

    def _drops(
        self, run: Recording, layer: nn.Module, A: Tensor, targets: Targets, score: Score, original: Tensor
    ) -> Tensor:
        """y - y_c, `(B, T, C)`; 0 for channels that are not ablated."""
        tail, (B, C) = run.tails[layer], A.shape[:2]
        ablation = self._ablation_layer(run, tail)
        axis = getattr(ablation, "axis", None)
        if axis is not None and tail.by_channel(tail.activation, axis).shape[1] != C:
            raise ValueError(
                f"the {C} channels of layer {layer_name(self.model, layer)!r} are not in dimension {axis} of its "
                f"output {tuple(tail.activation.shape)}: leave ablation_layer out, or choose another"
            )
        if type(ablation) not in (AblationLayer, AblationLayerVit, AblationLayerFasterRCNN):
            without = self._by_protocol(run, layer, A, ablation, score)  # (B, C, T), NaN where nothing was ablated
            drop = original.unsqueeze(1) - without
            return torch.where(without.isnan(), 0, drop).movedim(1, 2)
        channels = self._channels(ablation, A)  # (B, n)
        values = None if ablation.axis is None else self._values(tail, channels.shape[1])  # (B, n)
        weights = self._head(run, layer, A, ablation, targets)
        if weights is not None and values is not None:  # (B, T, C)
            mean = ops.wide(A).flatten(2).mean(2).gather(1, channels)  # (B, n)
            W = weights.gather(2, channels.unsqueeze(1).expand(-1, weights.shape[1], -1))
            found = W * (mean - ops.wide(values)).unsqueeze(1)
            without = original.unsqueeze(2) - found
            if not bool(without.isfinite().all()):
                n = channels.shape[1]
                rows = without.movedim(1, 2).flatten(0, 1)
                raise no_number(
                    rows, lambda row: _named(run.first + row // n, int(channels[row // n, row % n])), run.input
                )
        else:
            without = self._replayed_without(run, layer, ablation, channels, values, score)  # (B, n, T)
            found = (original.unsqueeze(1) - without).movedim(1, 2)
        drop = found.new_zeros(B, original.shape[1], C)
        return drop.scatter(2, channels.unsqueeze(1).expand_as(found), found)

    def _ablation_layer(self, run: Recording, tail: Tail) -> Any:
        if self.ablation_layer is not None:
            return self.ablation_layer
        axis = channel_axis(self.model, tail.layer, run.inputs, tail.activation.shape, tail.rank)
        return AblationLayer() if axis == 1 else AblationLayerVit()

    def _channels(self, ablation: AblationLayer, A: Tensor) -> Tensor:
        """The channels to ablate, `(B, n)`."""
        B, C = A.shape[:2]
        if self.ratio_channels_to_ablate == 1:
            return torch.arange(C, device=A.device).expand(B, C)
        ratio = self.ratio_channels_to_ablate
        chosen = [ablation.activations_to_be_ablated(image, ratio) for image in ops.wide(A).cpu().numpy()]
        if len(chosen[0]) == 0:
            raise ValueError(f"ratio_channels_to_ablate = {ratio} leaves none of {C} channels")
        return torch.as_tensor(np.stack(chosen)).long().to(A.device)

    def _values(self, tail: Tail, n: int) -> Tensor:
        """What the n ablated channels of each image become, `(B, n)`."""
        A = tail.by_channel(tail.activation, 1).flatten(1)
        first = ablation_values(A.amin(1))  # (B,)
        if not self.reference_batching:
            return first.unsqueeze(1).expand(-1, n)
        in_chunk = [first]
        for _ in range(1, min(n, check_batch_size(self.batch_size))):
            in_chunk.append(torch.where(first == 0, first, in_chunk[-1] - FAR_BELOW))
        return torch.stack(in_chunk, 1)[:, torch.arange(n, device=A.device) % len(in_chunk)]

    def _head(
        self, run: Recording, layer: nn.Module, A: Tensor, ablation: AblationLayer, targets: Targets
    ) -> Tensor | None:
        """The weights `(B, T, C)` of the linear head for the targets, if one is all that follows the layer."""
        logits = find_logits(run.output)
        plain = type(ablation) is AblationLayer and self.reshape_transform is None and not are_callables(targets)
        if not plain or logits is None or logits.grad_fn is None:
            return None
        try:
            weights = linear_head(run.attached(layer), logits)
        except ValueError:
            return None
        return ops.wide(weights)[class_indices(targets, logits).view(len(A), -1)]

    def _replayed_without(
        self,
        run: Recording,
        layer: nn.Module,
        ablation: AblationLayer,
        channels: Tensor,
        values: Tensor | None,
        score: Score,
    ) -> Tensor:
        """The scores `(B, n, T)` without each of the channels `(B, n)`."""
        tail = run.tails[layer]

        def change(rows: Rows, places: Tensor, output: Any) -> Any:
            at, which = torch.arange(len(places), device=places.device), channels[rows.images, places]
            if values is None:
                ablate_in_levels(output, at, which)
                return output
            assert ablation.axis is not None
            t = tail.by_channel(first_tensor(layer, output)[0], ablation.axis)
            t[at, which] = values[rows.images, places].view(-1, *[1] * (t.ndim - 2))
            return output

        return self.replayed(
            run, layer, channels.shape[1], change, score, lambda b, n: _named(b, int(channels[b - run.first, n]))
        )

    def _by_protocol(self, run: Recording, layer: nn.Module, A: Tensor, ablation: Any, score: Score) -> Tensor:
        """The scores `(B, C, T)` by somebody else's ablation layer, as pytorch-grad-cam asks it; NaN for the others."""
        tail, (B, C) = run.tails[layer], A.shape[:2]
        everything = tail.rows(Rows.of(range(B), A.device))
        scores = None
        with tail.replaying() as replay:
            for image in range(B):
                image_maps = ops.wide(A[image]).cpu().numpy()
                chosen = np.asarray(ablation.activations_to_be_ablated(image_maps, self.ratio_channels_to_ablate))

                def without(start: int, stop: int, b: int = image, chosen: np.ndarray = chosen) -> Tensor:
                    rows = Rows.of([b] * (stop - start), A.device)
                    ablation.indices = chosen[start:stop]
                    ablation.set_next_batch(
                        input_batch_index=b, activations=everything, num_channels_to_ablate=stop - start
                    )
                    return score(replay(rows, ablation(None)), rows)

                names = [_named(run.first + image, int(c)) for c in chosen]
                found = self.scores_of(run, layer, len(chosen), without, score, names.__getitem__)
                if scores is None:
                    scores = found.new_full((B, C, found.shape[1]), torch.nan)
                scores[image, torch.as_tensor(chosen).long().to(A.device)] = found
        assert scores is not None
        return scores


def _named(image: int, channel: int) -> str:
    return f"image {image} without channel {channel}"
