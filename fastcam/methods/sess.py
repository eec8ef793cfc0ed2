"""SESS: the maps of many windows of the image at many scales, put together."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam import ops
from fastcam.inputs import Inputs
from fastcam.methods.base import BaseCAM
from fastcam.methods.combine import CombinedCAM
from fastcam.methods.gradient import GradCAM
from fastcam.methods.masking import blur
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.record import Run, record
from fastcam.targets import Targets, find_logits, for_rows, logits_of, per_image, scores

_IMAGES_AT_ONCE = 4  # whose patches and their maps are held

Place = tuple[int, int, int, int]  # x1, y1, scaled width, scaled height


class SESS(CombinedCAM):
    """SESS, Saliency Enhancing with Scaling and Sliding (Tursun et al., ECCV 2022, arXiv:2207.01769).

    map = min_max(blur(mean_p w_p M_p)),  w_p = s_p / max s,  M_p the map of patch p, put back where it lies

    Patches are the windows that slide over the image at several scales, s_p the target's probability for patch p. The
    mean at a position is over the patches whose w_p M_p is above theta there. Maps and scores of the patches come from
    one run of the model. 2-D inputs only; `attribute(normalize=False)` gives the map before the last min_max, and it
    has the input's size for `size=None` too.
    """

    fusion = "scaled once"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: Callable[..., BaseCAM] = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2 / 7,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        """Bind the method to a model; arguments as in `GradCAM`, and

        base_method          the class of the method for the patches; further options go to it
        scales               lengths of the image's shorter side, in pixels; None: `num_scales` of them, from the window
                             size in steps of `scale_step_ratio` times the window size
        window_size          side of the square patches; None: the image's shorter side
        step_size            from one window to the next; None: the window size; the last one ends where the image does
        pre_filter_ratio     share of the patches that is left out, those with the lowest scores, in [0, 1)
        theta                values up to this one do not take part in the mean
        pool                 "mean", or "max" for the largest value at each position
        smooth               blur the result, 11 pixels wide, standard deviation 5
        use_softmax_scores   scores after a softmax over the model's output; False for a model without classes
        batch_size           patches in a run of the model
        Raises ValueError for an argument out of its range.
        """
        super().__init__(model, target_layers, reshape_transform, base_method, **kwargs)
        if pool not in ("mean", "max"):
            raise ValueError(f'pool must be "mean" or "max", got {pool!r}')
        if not 0 <= pre_filter_ratio < 1:
            raise ValueError(f"pre_filter_ratio must be in [0, 1), got {pre_filter_ratio}")
        positive = {"num_scales": num_scales, "window_size": window_size, "step_size": step_size}
        for name, value in {**positive, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.class_discriminative = True  # by its scores
        self.scales, self.num_scales, self.scale_step_ratio = scales, num_scales, scale_step_ratio
        self.window_size, self.step_size = window_size, step_size
        self.pre_filter_ratio, self.theta, self.pool, self.smooth = pre_filter_ratio, theta, pool, smooth
        self.use_softmax_scores, self.batch_size = use_softmax_scores, batch_size

    def __call__(  # type: ignore[override]
        self, input_tensor: Tensor, targets: Targets = None, eigen_smooth: bool = False, aug_smooth: bool = False
    ) -> np.ndarray:
        """The maps of a batch as numpy float32, as from `GradCAM`; in the order of pytorch-grad-cam's arguments.

        The predicted class is that of the whole image, whose logits `outputs` holds.
        """
        return super().__call__(input_tensor, targets, aug_smooth, eigen_smooth)

    def get_scales(self, window_size: int) -> list[int]:
        """The lengths of the image's shorter side; ValueError if one is below the window size, or there is none."""
        step = round(window_size * self.scale_step_ratio)
        scales = [window_size + step * i for i in range(self.num_scales)] if self.scales is None else list(self.scales)
        if not scales or min(scales) < window_size:
            raise ValueError(f"scales must hold lengths of at least the window size {window_size}, got {scales}")
        return scales

    def collect_patches(
        self, input_tensor: Tensor, window_size: int, step_size: int
    ) -> tuple[list[Tensor], list[Place]]:
        """The patches, each `(B, k, window, window)`, and the places (x1, y1, scaled width, scaled height)."""
        patches, places = [], []
        for scale in self.get_scales(window_size):
            scaled = resized(input_tensor, scale)
            height, width = scaled.shape[2:]
            for x, y in sliding_window(height, width, step_size, window_size):
                patches.append(scaled[:, :, y : y + window_size, x : x + window_size])
                places.append((x, y, width, height))
        return patches, places

    def at_once(self, x: Inputs) -> int:
        return min(len(x), _IMAGES_AT_ONCE)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        raise NotImplementedError("SESS has a map of the input's size only: it cannot be another method's base_method")

    def _maps_of_part(
        self,
        inputs: Inputs,
        first: int,
        layers: Sequence[nn.Module],
        targets: Targets,
        eigen_smooth: bool,
        normalize: bool,
        size: Sequence[int] | None,
        complete: bool,
        fused: bool = True,
    ) -> list[Tensor]:
        x = inputs.image
        if x.ndim != 4 or not inputs.is_single:
            raise ValueError(f"SESS is for images (B, k, H, W) and nothing else, got {inputs.shapes} for each")
        with record(self.model, [], x, gradients=False) as run:
            logits = find_logits(run.output)
            self.outputs = None if logits is None else logits.detach()
            window = self.window_size or min(x.shape[2:])
            patches, places = self.collect_patches(run.input, window, self.step_size or window)
            of_rows = _OfRows(targets, run.output, len(x))
            scored_first = self.pre_filter_ratio > 0 and isinstance(self.base_cam, PerturbationCAM)
            if scored_first:  # a map costs far more than a score
                kept = self._kept(self._scored(patches, of_rows))
            else:
                kept = torch.ones(len(patches), len(x), of_rows.T, dtype=torch.bool, device=run.input.device)
            cams, scored = self._cams(patches, kept, of_rows, layers, eigen_smooth)
            kept = kept if scored_first else self._kept(scored)
            best = scored.masked_fill(~kept, -torch.inf).amax(0)  # (B, T)
            weights = torch.where(best > 0, scored / best, 1)
            maps = self._fused(cams * weights[..., None, None], kept, places, x.shape[2:])  # (B, T, H, W)
        flat = maps.flatten(0, 1)
        flat = blur(flat.unsqueeze(1), 11, 5.0).squeeze(1) if self.smooth else flat
        flat = flat if size is None else ops.resize(flat, size)
        flat = ops.min_max(flat) if normalize else flat
        return [flat if per_image(targets) is None else flat.unflatten(0, maps.shape[:2])]

    def _kept(self, scored: Tensor) -> Tensor:
        """Which patches count for each target of each image, by their scores `(P, B, T)`."""
        dropped = int(len(scored) * self.pre_filter_ratio)
        if dropped == 0:
            return torch.ones_like(scored, dtype=torch.bool)
        # numpy's sort, whose order of equal scores is that of pytorch-grad-cam
        best = torch.from_numpy(np.argsort(scored.cpu().numpy(), axis=0)[dropped:])
        return torch.zeros(scored.shape, dtype=torch.bool).scatter(0, best, True).to(scored.device)

    def _scored(self, patches: Sequence[Tensor], of_rows: _OfRows) -> Tensor:
        """The scores of the P patches for each target of each image, `(P, B, T)`."""
        P, B, parts = len(patches), len(patches[0]), []
        for batch, rows in self._batches(patches, list(itertools.product(range(P), range(B)))):
            with record(self.model, [], batch, gradients=False) as run:
                parts.append(self._scores(logits_of(run.output), of_rows(rows)))
        return torch.cat(parts).view(P, B, -1)

    def _cams(
        self,
        patches: Sequence[Tensor],
        kept: Tensor,
        of_rows: _OfRows,
        layers: Sequence[nn.Module],
        eigen_smooth: bool,
    ) -> tuple[Tensor, Tensor]:
        """The base method's maps of the patches `(P, B, T, window, window)` and their scores `(P, B, T)`."""
        window = patches[0].shape[2:]
        cams = torch.zeros(*kept.shape, *window, dtype=ops.wide(patches[0]).dtype, device=kept.device)
        scored = torch.zeros(kept.shape, dtype=cams.dtype, device=kept.device)
        base = copy.copy(self.base_cam)  # whose outputs are this call's
        options = {"eigen_smooth": eigen_smooth, "normalize": True, "size": window, "complete": True}
        for batch, rows in self._batches(patches, kept.any(2).nonzero().tolist()):
            targets = of_rows(rows)
            (maps,) = base._maps(Inputs(batch), layers, targets, **options)
            p, b = torch.tensor(rows, device=kept.device).unbind(1)
            cams[p, b] = maps.view(len(rows), -1, *window).to(cams.dtype)
            scored[p, b] = self._scores(logits_of(base.outputs), targets).to(cams.dtype)
        return cams, scored

    def _batches(
        self, patches: Sequence[Tensor], rows: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Tensor, Sequence[Sequence[int]]]]:
        """The patches of rows (patch, image), sorted by patch, in batches, and the rows of each."""
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            groups = itertools.groupby(part, key=lambda row: row[0])
            yield torch.cat([patches[p][[b for _, b in group]] for p, group in groups]), part

    def _scores(self, logits: Tensor, targets: Targets) -> Tensor:
        """What patches count, `(N, T)`: their targets' values, not below 0."""
        values = ops.wide(logits)
        values = values.softmax(-1) if self.use_softmax_scores else values
        return scores(values, targets, len(values)).clamp(min=0).view(len(values), -1)

    def _fused(self, cams: Tensor, kept: Tensor, places: Sequence[Place], size: Sequence[int]) -> Tensor:
        """The patches' maps put back into the image `(B, T, H, W)`, and their mean or maximum over patches."""
        (H, W), window = size, cams.shape[-1]
        total = cams.new_zeros(*cams.shape[1:3], H, W)
        count = torch.zeros_like(total)
        matrices: dict[tuple[int, int], Tensor] = {}
        for cam, counts, (x, y, width, height) in zip(cams, kept[..., None, None], places, strict=True):
            for n, m in ((height, H), (width, W)):
                if (n, m) not in matrices:
                    matrices[n, m] = resampling(n, m).to(cams)
            rows, columns = matrices[height, H][:, y : y + window], matrices[width, W][:, x : x + window]
            with ops.not_autocast(cam):
                pasted = rows @ cam @ columns.mT
            if self.pool == "max":
                total = total.maximum(pasted * counts)
                continue
            above = (pasted > self.theta) & counts
            total += pasted * above
            count += above
        return total if self.pool == "max" else torch.where(count > 0, total / count, 0)


class _OfRows:
    """The targets of rows (patch, image): those of the images; T of them each."""

    def __init__(self, targets: Targets, output: Any, batch: int) -> None:
        self.targets, self.output, self.batch = targets, output, batch
        self.T = per_image(targets) or 1

    def __call__(self, rows: Sequence[Sequence[int]]) -> Targets:
        return for_rows(self.targets, self.output, self.batch, [image for _, image in rows])


def resized(x: Tensor, short: int) -> Tensor:
    """Images `(B, k, H, W)` with the shorter side as given, bilinear with anti-aliasing, as torchvision's resize."""
    H, W = x.shape[2:]
    size = (short, int(short * W / H)) if H <= W else (int(short * H / W), short)
    if size == (H, W):
        return x
    return F.interpolate(ops.wide(x), size, mode="bilinear", align_corners=False, antialias=True).to(x.dtype)


def sliding_window(height: int, width: int, step_size: int, window_size: int) -> list[tuple[int, int]]:
    """The upper left corners (x, y) of the windows that cover an image, row by row."""
    rows, columns = (window_starts(length, step_size, window_size) for length in (height, width))
    return [(x, y) for y in rows for x in columns]


def window_starts(length: int, step_size: int, window_size: int) -> list[int]:
    """Where windows begin along one side: every `step_size`, the last one at the end of the side."""
    last = max(length - window_size, 0)
    return [*range(0, last, step_size), last]


def resampling(n: int, m: int) -> Tensor:
    """The matrix `(m, n)` that resizes a line of n values to m: linear, half-pixel centres, edges clamped."""
    # To the last bit OpenCV's shares: one of 1e-15 of a patch makes a value that is above theta = 0.
    at = np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)
    low, share = torch.from_numpy(np.floor(at)).long(), torch.from_numpy(at % 1).float()
    matrix = torch.zeros(m, n)
    matrix.scatter_add_(1, low.unsqueeze(1), (1 - share).unsqueeze(1))
    return matrix.scatter_add_(1, (low + 1).clamp(max=n - 1).unsqueeze(1), share.unsqueeze(1))
