"""Which part of a layer's output is a channel, and how one is ablated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcam import ops

FAR_BELOW = 1e7


class AblationLayer:
    """Ablates channels of an output `(B, C, *S)`; for `AblationCAM`, with pytorch-grad-cam's interface.

    A channel becomes 0 where the smallest activation is 0, otherwise 1e7 less than the smallest.
    A subclass may replace `set_next_batch` and the call: what `AblationCAM` runs then is what they give, in batches of
    one image, after it has set `indices`, the channels of the rows to come.
    """

    axis: int | None = 1  # of the channels; None where the output is a mapping

    def __init__(self) -> None:
        self.indices: Any = np.empty(0, np.int32)
        self.activations: Any = None

    def activations_to_be_ablated(self, activations: Any, ratio_channels_to_ablate: float = 1.0) -> np.ndarray:
        """The channels worth ablating in an image's activations `(C, *S)`: int32, also left in `indices`.

        All for a ratio of 1; otherwise the C * ratio whose activation lies most, and the C * ratio whose lies least,
        where the first principal component is more than 0.01 of its largest value.
        """
        values = np.asarray(activations.cpu() if isinstance(activations, Tensor) else activations)
        C = len(values)
        if ratio_channels_to_ablate == 1.0:
            self.indices = np.arange(C, dtype=np.int32)
            return self.indices
        inside = self.objectiveness_mask_from_svd(values).reshape(1, -1)
        flat = np.abs(values).reshape(C, -1)
        with np.errstate(invalid="ignore"):  # channels without activation are 0 / 0 and count as the best
            flat = flat - flat.min(1, keepdims=True)
            flat = flat / flat.max(1, keepdims=True)
            share = np.float32((inside * flat).sum(1) / flat.sum(1))
        order, count = np.argsort(share), int(C * ratio_channels_to_ablate)
        chosen = [*order[::-1][:count], *order[:count]]
        self.indices = np.array(list(dict.fromkeys(chosen)), dtype=np.int32)
        return self.indices

    def objectiveness_mask_from_svd(self, activations: Any, threshold: float = 0.01) -> np.ndarray:
        """Where an image's activations `(C, *S)` have a first principal component above the threshold: bool `S`."""
        component = ops.principal_component(torch.as_tensor(np.asarray(activations))[None])[0, 0].abs().numpy()
        component = component - component.min()
        return component / component.max() > threshold

    def set_next_batch(self, input_batch_index: int, activations: Any, num_channels_to_ablate: int) -> None:
        """Repeat an image's output, which the next call ablates."""
        self.activations = _repeated(activations, input_batch_index, num_channels_to_ablate)

    def __call__(self, x: Any) -> Any:
        """The output with channel `indices[n]` of row n ablated; x does not matter.

        As in pytorch-grad-cam each row looks for the smallest activation after the rows before it were ablated.
        """
        output = self.activations
        rows = output.movedim(self.axis, 1)
        for row, channel in enumerate(self.indices[: len(output)]):
            rows[row, channel] = ablation_values(output.amin())
        return output


class AblationLayerVit(AblationLayer):
    """The same for tokens `(B, N, C)`, and any other output whose channels are last."""

    axis = -1


class AblationLayerFasterRCNN(AblationLayer):
    """The same for the feature pyramid of a Faster R-CNN, a mapping name -> `(B, C, h, w)`: channels become -1000.

    Channels are counted through the levels in their order, as in the concatenation of all levels.
    """

    axis = None
    value = -1000.0

    def __call__(self, x: Any) -> Any:
        output = self.activations
        channels = torch.as_tensor(np.asarray(self.indices)).long().to(next(iter(output.values())).device)
        ablate_in_levels(output, torch.arange(len(channels), device=channels.device), channels)
        return output


def ablation_values(lowest: Tensor) -> Tensor:
    """What an ablated channel becomes, from the smallest activation of its image: 0 if that is 0, or 1e7 below it."""
    return torch.where(lowest == 0, lowest, lowest - FAR_BELOW)


def ablate_in_levels(levels: Mapping[str, Tensor], rows: Tensor, channels: Tensor) -> None:
    """Set channel `channels[n]` of row `rows[n]` to -1000, the channels counted through all levels."""
    first = 0
    for level in levels.values():
        inside = (channels >= first) & (channels < first + level.shape[1])
        # Rows of other levels keep what they have: a write of every row, without asking the device which.
        at = (channels - first).clamp(0, level.shape[1] - 1)
        old = level[rows, at]
        new = torch.full_like(old, AblationLayerFasterRCNN.value)
        level[rows, at] = torch.where(inside.view(-1, *[1] * (old.ndim - 1)), new, old)
        first += level.shape[1]


def _repeated(activations: Any, image: int, count: int) -> Any:
    if isinstance(activations, Mapping):
        return OrderedDict((name, _repeated(level, image, count)) for name, level in activations.items())
    return activations[image : image + 1].repeat_interleave(count, 0)
