"""What a map explains, as callables from one image's output to a scalar.

A class may also define `batched(targets, outputs)`, a static method: the values `(N,)` of N of its targets on N outputs
of `output_rank` dimensions each. It is asked instead of a loop where all targets of a batch are of this very class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcam.ops import wide


class ClassifierOutputTarget:
    """The logit of one class: y_c. On one image's output `(K,)` a scalar, on a batch `(B, K)` a column.

    >>> ClassifierOutputTarget(1)(torch.tensor([0.5, 2.0])).item()
    2.0
    """

    output_rank = 1

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[..., self.category]

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        return _picked(outputs, [t.category for t in targets])


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The probability of one class: softmax(y)_c, for `(K,)` or `(B, K)`."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output.softmax(-1)[..., self.category]

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        return _picked(outputs.softmax(1), [t.category for t in targets])


class ClassifierOutputReST(ClassifierOutputTarget):
    """Logit plus log-probability of one class: y_c + log softmax(y)_c (ShapleyCAM, arXiv:2501.06261)."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return (model_output + model_output.log_softmax(-1))[..., self.category]

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        return _picked(outputs + outputs.log_softmax(1), [t.category for t in targets])


class BinaryClassifierOutputTarget:
    """For a model with one output y: y for category 1, -y for category 0."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output if self.category == 1 else -model_output


class FinerWeightedTarget:
    """How a class differs from similar ones (Finer-CAM, Zhang et al., CVPR 2025, arXiv:2501.11309).

    sum_i p_i (y_c - alpha y_i) / (sum_i p_i + 1e-9),  p = softmax(y), i over the classes compared with

    The gradient flows through p as well. For `(K,)` or `(B, K)`.

    >>> FinerWeightedTarget(0, [1], alpha=1.0)(torch.tensor([3.0, 1.0, 0.0])).item()
    2.0
    """

    output_rank = 1

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        """The class c, the classes it is compared with, at least one, and the strength of the comparison."""
        if len(comparison_categories) == 0:
            raise ValueError("comparison_categories must hold at least one class to compare with, got none")
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: Tensor) -> Tensor:
        y, p = model_output, model_output.softmax(-1)
        others = list(self.comparison_categories)
        difference = y[..., self.main_category, None] - self.alpha * y[..., others]
        return (p[..., others] * difference).sum(-1) / (p[..., others].sum(-1) + 1e-9)

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        """Shorter lists of comparisons are filled up with classes of weight 0."""
        longest = max(len(t.comparison_categories) for t in targets)
        filled = [[*t.comparison_categories, *[0] * (longest - len(t.comparison_categories))] for t in targets]
        counts = [[n < len(t.comparison_categories) for n in range(longest)] for t in targets]
        others = _classes(outputs, filled)  # (N, k)
        alpha = outputs.new_tensor([[t.alpha] for t in targets])
        p = outputs.softmax(1).gather(1, others) * torch.tensor(counts, device=outputs.device)
        main = _picked(outputs, [t.main_category for t in targets]).unsqueeze(1)
        return (p * (main - alpha * outputs.gather(1, others))).sum(1) / (p.sum(1) + 1e-9)


class SemanticSegmentationTarget:
    """The logits of one class, summed over a mask: sum_ij m_ij y_cij, for an image's output `(K, h, w)`.

    >>> SemanticSegmentationTarget(1, torch.eye(2))(torch.arange(8.0).view(2, 2, 2)).item()
    11.0
    """

    output_rank = 3

    def __init__(self, category: int, mask: Any) -> None:
        """The class, and which positions count: an array or tensor `(h, w)` as the output, of any type."""
        self.category = category
        self.mask = torch.as_tensor(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        scores = wide(model_output[self.category])
        return (scores * self._mask_for(scores)).sum()

    def _mask_for(self, scores: Tensor) -> Tensor:
        if self.mask.shape[-scores.ndim :] != scores.shape or self.mask.numel() != scores.numel():
            raise ValueError(f"mask must be (h, w) = {tuple(scores.shape)} as the output, got {tuple(self.mask.shape)}")
        return self.mask.to(scores.device, scores.dtype).view(scores.shape)

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        scores = wide(_picked(outputs, [t.category for t in targets]))
        first, *rest = targets
        if all(t.mask is first.mask for t in rest):
            return (scores * first._mask_for(scores[0])).sum((1, 2))
        masks = torch.stack([t._mask_for(s) for t, s in zip(targets, scores, strict=True)])
        return (scores * masks).sum((1, 2))


class FasterRCNNBoxScoreTarget:
    """How well a detector still finds given boxes, for an image's output with "boxes", "labels" and "scores".

    sum_n [IoU_n > threshold and the label is the same] (IoU_n + score_n), n over the given boxes, IoU_n that of the
    detection that overlaps the n-th box most

    Returns `(1,)` in the graph of the output; 0 without detections.
    """

    def __init__(self, labels: Any, bounding_boxes: Any, iou_threshold: float = 0.5) -> None:
        """Labels `(N,)` and boxes `(N, 4)` as (x1, y1, x2, y2) in pixels, lists, arrays or tensors."""
        if len(labels) != len(bounding_boxes):
            raise ValueError(
                f"labels and bounding_boxes must be of one length, got {len(labels)} and {len(bounding_boxes)}"
            )
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = iou_threshold

    def __call__(self, model_outputs: Mapping[str, Tensor]) -> Tensor:
        found, scores = model_outputs["boxes"], model_outputs["scores"]
        nothing = (found.sum() * 0).reshape(1) + scores.sum() * 0  # in the graph, as a score of 0 must be
        if len(found) == 0 or len(self.labels) == 0:
            return nothing
        wanted = torch.stack([torch.as_tensor(b) for b in self.bounding_boxes]).to(found)
        labels = torch.stack([torch.as_tensor(label) for label in self.labels]).to(found.device)
        iou, best = box_iou(wanted, found).max(1)  # (N,)
        counts = (iou > self.iou_threshold) & (model_outputs["labels"][best] == labels)
        return nothing + torch.where(counts, iou + scores[best], 0).sum()


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `(N, 4)` and `(M, 4)` as (x1, y1, x2, y2): `(N, M)`."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    return intersection / (areas[0][:, None] + areas[1][None] - intersection)


class SimilarityToConceptTarget:
    """How similar an image's embedding is to a concept's: their cosine, for an output `(D,)` or `(B, D)`.

    >>> SimilarityToConceptTarget(torch.tensor([1.0, 0.0]))(torch.tensor([2.0, 0.0])).item()
    1.0
    """

    output_rank = 1

    def __init__(self, features: Any) -> None:
        """The concept's embedding `(D,)`, the mean over some images of it say."""
        self.features = torch.as_tensor(features)
        if self.features.ndim != 1:
            raise ValueError(f"features must be an embedding (D,), got {tuple(self.features.shape)}")

    def __call__(self, model_output: Tensor) -> Tensor:
        return F.cosine_similarity(model_output, self.features.to(model_output), dim=-1)

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        return F.cosine_similarity(outputs, torch.stack([t.features.to(outputs) for t in targets]), dim=1)


class RegressionTarget:
    """One value of a regression: y_o, for an image's output `(O,)`, or a scalar if the model has one output.

    The map shows what makes the value large. For a batch `(B, O)` a column.
    """

    output_rank = 1

    def __init__(self, output: int = 0) -> None:
        self.output = output

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[..., self.output] if model_output.ndim else model_output.reshape(1)[self.output]

    @staticmethod
    def batched(targets: Sequence[Any], outputs: Tensor) -> Tensor:
        return _picked(outputs, [t.output for t in targets])


class SoftmaxOutputTarget:
    """All probabilities, softmax(y), for `(K,)` or `(B, K)`: for metrics; a map needs a scalar."""

    instead = "ClassifierOutputSoftmaxTarget(category)"

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output.softmax(-1)


class RawScoresOutputTarget:
    """The output as it is, an embedding say: for metrics; a map needs a scalar."""

    instead = "ClassifierOutputTarget(category) or SimilarityToConceptTarget(features)"

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output


def _picked(outputs: Tensor, categories: Sequence[int]) -> Tensor:
    """The entry of each of the outputs `(N, K, ...)` for its category."""
    return outputs[torch.arange(len(outputs), device=outputs.device), _classes(outputs, categories)]


def _classes(outputs: Tensor, categories: Any) -> Tensor:
    """Classes of outputs `(N, K, ...)` as a tensor; ValueError for one out of range, which a GPU would not survive."""
    given, K = torch.tensor(categories), outputs.shape[1]
    outside = (given < -K) | (given >= K)
    if outside.any():
        raise ValueError(f"target {given[outside][0].item()} is out of range: the model has {K} classes")
    return (given % K).to(outputs.device)
