"""What is explained: class indices, tensors of them, or callables on the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcam import ops
from fastcam.model_targets import BinaryClassifierOutputTarget as BinaryClassifierOutputTarget
from fastcam.model_targets import ClassifierOutputReST as ClassifierOutputReST
from fastcam.model_targets import ClassifierOutputSoftmaxTarget as ClassifierOutputSoftmaxTarget
from fastcam.model_targets import ClassifierOutputTarget
from fastcam.rows import Rows

# None | int | list[int] | LongTensor (B,) or (B, T) | callable | list of B callables, or of B lists of T
Targets = Any


def find_logits(output: Any) -> Tensor | None:
    """The logits in what a model returned: a tensor, `.logits`, a mapping's "logits" or "out", or the first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Mapping):
        named = [output[key] for key in ("logits", "out") if key in output]
        items = [*named, *output.values()]
    else:
        items = list(output) if isinstance(output, tuple | list) else []
    return next((item for item in items if isinstance(item, Tensor)), None)


def logits_of(output: Any) -> Tensor:
    """`find_logits`, or a TypeError."""
    logits = find_logits(output)
    if logits is None:
        raise TypeError(
            f"the model returns {type(output).__name__}, in which no logits were found: expected a tensor, a tuple or "
            "mapping with one, or an object with .logits; for callables also a list with an output per image"
        )
    return logits


def per_image(targets: Targets) -> int | None:
    """T for targets `(B, T)`, None for one target per image."""
    if targets is None:
        return None
    if are_callables(targets):
        return len(targets[0]) if _are_nested(targets) else None
    indices = _as_indices(targets)
    return indices.shape[1] if indices.ndim == 2 else None


def class_indices(targets: Targets, logits: Tensor) -> Tensor:
    """The explained classes as a LongTensor `(B,)` or `(B, T)` beside the logits `(B, K)`.

    None is the predicted class; one target serves the whole batch; any other mismatch of lengths is a ValueError.
    """
    if logits.ndim != 2:
        raise ValueError(
            f"class indices need logits (B, classes), got {tuple(logits.shape)}: use callables, "
            "SemanticSegmentationTarget or BinaryClassifierOutputTarget say"
        )
    if targets is None:
        return _outside_inference(logits.detach().argmax(1))
    B, K = logits.shape
    given = _as_indices(targets)
    given = given.reshape(1) if given.ndim == 0 else given
    if given.ndim > 2 or given.shape[0] not in (1, B) or given.numel() == 0:
        raise ValueError(f"targets must be one or ({B},) or ({B}, T) for {B} images, got shape {tuple(given.shape)}")
    outside = (given < 0) | (given >= K)
    captured = given.is_cuda and torch.cuda.is_current_stream_capturing()  # which may not wait; it was asked before
    if not captured and outside.any():
        raise ValueError(f"target {given[outside][0].item()} is out of range: the model has {K} classes")
    return _outside_inference(given.to(logits.device).expand(B, *given.shape[1:]))


def _outside_inference(indices: Tensor) -> Tensor:
    """Such as a backward pass can keep, wherever they were made."""
    if not indices.is_inference():
        return indices
    with torch.inference_mode(False):
        return indices.clone()


def scores(output: Any, targets: Targets, batch: int) -> Tensor:
    """What the gradient is taken of, `(B,)` or `(B, T)`, in the graph of the output."""
    if not are_callables(targets):
        logits = logits_of(output)
        _check_rows(logits, batch)
        indices = class_indices(targets, logits)
        return logits.gather(1, indices.view(batch, -1)).view(indices.shape)
    values = _values(_calls(targets, batch), _rows_of(output, batch))
    return values if _are_nested(targets) else values.squeeze(1)


def row_scores(targets: Targets, output: Any, batch: int, probability: bool = False) -> Callable[[Any, Rows], Tensor]:
    """How the rows made from a batch of images are scored: a function of the model's output for them, and the rows.

    It gives `(N, T)` in at least fp32, for each of the N rows the scores of its image's T targets. Predicted classes
    are those of `output`, the model's for the images.
    probability   softmax before a class is picked; callables are taken as they are
    """
    if not are_callables(targets):
        logits = logits_of(output)
        _check_rows(logits, batch)
        indices = class_indices(targets, logits).view(batch, -1)  # (B, T)

        def by_class(rows_output: Any, rows: Rows) -> Tensor:
            values = ops.wide(logits_of(rows_output))
            _check_rows(values, len(rows.listed))
            return (values.softmax(1) if probability else values).gather(1, indices[rows.images.to(indices.device)])

        return by_class
    calls = _calls(targets, batch)

    def by_callable(rows_output: Any, rows: Rows) -> Tensor:
        outputs = _rows_of(rows_output, len(rows.listed))
        return ops.wide(_values([calls[i] for i in rows.listed], outputs))

    return by_callable


def for_rows(targets: Targets, output: Any, batch: int, images: Sequence[int]) -> Targets:
    """The targets of rows made from these images of a batch; predicted classes are those of `output`."""
    if not are_callables(targets):
        return class_indices(targets, logits_of(output))[list(images)]
    calls = _calls(targets, batch)
    return [calls[i] if _are_nested(targets) else calls[i][0] for i in images]


def part_of(targets: Targets, start: int, stop: int, batch: int) -> Targets:
    """The targets of images start to stop of a batch; one target serves all."""
    if targets is None or callable(targets):
        return targets
    if not isinstance(targets, list | tuple):
        targets = _as_indices(targets)
        if targets.ndim == 0:
            return targets
    if len(targets) == 1:
        return targets
    if len(targets) != batch:
        raise ValueError(f"targets must be one or {batch} for {batch} images, got {len(targets)}")
    return targets[start:stop]


def are_callables(targets: Targets) -> bool:
    """Whether targets are callables; `ClassifierOutputTarget`s count as the class indices they hold."""
    if not isinstance(targets, list | tuple):
        return callable(targets) and type(targets) is not ClassifierOutputTarget
    if _are_nested(targets):
        return True
    kinds = {callable(t) for t in targets}
    if len(kinds) == 2:
        raise TypeError(f"targets must be class indices or callables, not both: {targets!r}")
    return kinds == {True} and any(type(t) is not ClassifierOutputTarget for t in targets)


def _are_nested(targets: Targets) -> bool:
    """Whether targets are callables `(B, T)`, a list of lists."""
    if not isinstance(targets, list | tuple) or not targets:
        return False
    if not all(isinstance(row, list | tuple) and row and all(callable(t) for t in row) for row in targets):
        return False
    if len({len(row) for row in targets}) > 1:
        raise ValueError(f"targets must be as many for each image, got {[len(row) for row in targets]}")
    return True


def _as_indices(targets: Targets) -> Tensor:
    """Integer targets as a LongTensor, on the CPU unless given elsewhere."""
    if isinstance(targets, list | tuple):
        targets = [t.category if isinstance(t, ClassifierOutputTarget) else t for t in targets]
        if targets and all(isinstance(t, Tensor) for t in targets):
            targets = torch.stack(list(targets))
    elif isinstance(targets, ClassifierOutputTarget):
        targets = targets.category
    if isinstance(targets, Tensor):
        integers = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    else:
        targets = np.asarray(targets)
        integers = targets.dtype.kind in "iu" or targets.size == 0
    if not integers:
        raise TypeError(f"targets must be class indices or callables, got {targets!r}")
    return torch.as_tensor(targets).long()


def _is_per_image(output: Any, batch: int) -> bool:
    """Whether an output is a sequence of the images' outputs, not a tuple that begins with the batch's logits."""
    if not isinstance(output, tuple | list):
        return False
    first = output[0] if output else None
    return isinstance(output, list) or not (isinstance(first, Tensor) and first.ndim > 1 and len(first) == batch)


def _rows_of(output: Any, batch: int) -> Any:
    """What callables are called with: an output a row."""
    rows = output if _is_per_image(output, batch) else logits_of(output)
    _check_rows(rows, batch)
    return rows


def _calls(targets: Targets, batch: int) -> list[list[Callable[[Any], Tensor]]]:
    """The T callables of each image."""
    calls = [targets] if callable(targets) else list(targets)
    if len(calls) not in (1, batch):
        raise ValueError(f"targets must be one or {batch} for {batch} images, got {len(calls)}")
    return [[t] if callable(t) else list(t) for t in calls] * (batch // len(calls))


def _values(calls: list[list[Callable[[Any], Tensor]]], rows: Any) -> Tensor:
    """The values `(N, T)` of T callables a row for N rows, in one operation if their class knows how."""
    N, T = len(calls), len(calls[0])
    flat = [t for row in calls for t in row]
    kind = type(flat[0])
    batched = vars(kind).get("batched")  # of this very class: one that inherits may compute something else
    if batched and isinstance(rows, Tensor) and rows.ndim == kind.output_rank + 1 and {*map(type, flat)} == {kind}:  # type: ignore[attr-defined]
        return batched.__func__(flat, rows.repeat_interleave(T, 0) if T > 1 else rows).view(N, T)
    return torch.stack([torch.stack([_scalar(t, row) for t in ts]) for ts, row in zip(calls, rows, strict=True)])


def _check_rows(rows: Any, batch: int) -> None:
    if isinstance(rows, Tensor) and rows.ndim == 0 or len(rows) != batch:
        given = "a scalar" if isinstance(rows, Tensor) and rows.ndim == 0 else f"{len(rows)} outputs"
        raise ValueError(f"the model gives {given} for {batch} images")


def _scalar(target: Callable[[Any], Tensor], row: Any) -> Tensor:
    value = target(row)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        instead = f"; for a map take {target.instead}" if hasattr(target, "instead") else ""
        name = type(target).__name__ if instead else repr(target)
        raise ValueError(f"target {name} must give a scalar tensor per image, got {got}{instead}")
    return value.reshape(())
