"""Score-CAM and its relatives: the input seen through a mask for each channel, a forward pass for each mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam import ops
from fastcam.batches import check_count
from fastcam.inputs import Inputs
from fastcam.layers import image_channel_dim
from fastcam.methods.perturbation import PerturbationCAM, consecutive
from fastcam.record import Run, call, unwrap
from fastcam.rows import Rows
from fastcam.targets import Targets, row_scores

Score = Callable[[Any, Rows], Tensor]


class ScoreCAM(PerturbationCAM):
    """Score-CAM (Wang et al., CVPR Workshops 2020, arXiv:1910.01279).

    w = softmax_c y(x m_c),  map = sum_c w_c A_c,  m_c = A_c resized to the input and scaled to [0, 1]

    y is the target's score. One forward pass a channel; those that are constant have the mask 0 and share one. The
    paper subtracts the score of a baseline, which the softmax takes out again. Of several inputs the image is masked.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> ScoreCAM(model, "0")(torch.rand(2, 1, 8, 8), targets=1).shape
    (2, 8, 8)
    """

    repeats = 1  # how often a mask is scored

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        score = row_scores(targets, run.output, len(run.input))
        activations = [A.to(run.input.device) for A in self.spatial(run, run.activations)]
        lows = []
        for layer, A, chosen in zip(run.layers, activations, self.chosen(run, activations, targets), strict=True):
            weights = self._weights(run, layer, A, chosen, score)  # (B, T, C)
            lows.append(self.weighted_map(A, weights.flatten(0, 1).to(ops.wide(A).dtype), eigen_smooth))
        return lows

    def chosen(self, run: Run, activations: Sequence[Tensor], targets: Targets) -> list[Tensor]:
        """Which channels of each layer are scored, `(B, C)` or for each target `(B, C, T)`; the others weigh 0."""
        return [torch.ones(A.shape[:2], dtype=torch.bool, device=A.device) for A in activations]

    def draws(self, x: Tensor) -> Tensor | None:
        """What is drawn at random for inputs x, `(repeats, ...)`."""
        return None

    def varied(self, batch: Tensor, seen: Tensor, repeat: Tensor, draws: Tensor | None) -> Tensor:
        """The masked images `(N, k, *S)` as they are scored for the repeats `(N,)`; `seen` are the images unmasked."""
        return batch

    def _weights(self, run: Run, layer: nn.Module, A: Tensor, chosen: Tensor, score: Score) -> Tensor:
        net, x, R = unwrap(self.model), channels_first(unwrap(self.model), run.input), self.repeats
        draws, low = self.draws(x), A.flatten(2)
        chosen = chosen.view(*A.shape[:2], -1)
        constant = chosen.any(2) & (low.amax(2) == low.amin(2))
        first = constant & (constant.cumsum(1) == 1)  # of each image, for all its constant channels
        pairs = (chosen.any(2) & ~constant | first).nonzero().tolist()  # image and channel

        def masked(start: int, stop: int) -> Tensor:
            here = torch.tensor([pairs[row // R] for row in range(start, stop)], device=x.device)
            rows = Rows.of((pairs[row // R][0] for row in range(start, stop)), x.device)
            batch = ops.masked_inputs(x, A[tuple(here.unbind(1))], rows.images)
            if type(self).varied is not ScoreCAM.varied:
                batch = self.varied(batch, x[rows.images], torch.arange(start, stop, device=x.device) % R, draws)
            return score(call(net, rows_seen(net, run, batch, rows)), rows)

        def name(row: int) -> str:
            image, channel = pairs[row // R]
            return f"image {run.first + image} masked by channel {channel}"

        scored = self.scores_of(run, layer, len(pairs) * R, masked, score, name)
        scored = scored.unflatten(0, (-1, R)).mean(1)  # (K, T)
        of_channel = scored.new_full((*A.shape[:2], scored.shape[1]), -torch.inf)  # (B, C, T)
        of_channel[tuple(torch.tensor(pairs, device=scored.device).unbind(1))] = scored
        constant, first, chosen = (t.to(scored.device) for t in (constant, first, chosen))
        shared = torch.where(first.unsqueeze(2), of_channel, -torch.inf).amax(1, keepdim=True)
        of_channel = torch.where(constant.unsqueeze(2), shared, of_channel)
        weights = torch.where(chosen, of_channel, -torch.inf).softmax(1)
        return weights.movedim(1, 2).to(A.device)


class FasterScoreCAM(ScoreCAM):
    """Score-CAM over the N most telling channels of an image only: N forward passes.

    w = softmax over these N channels, 0 for the others; map as in `ScoreCAM`

    by="variance"   largest variance of A_c over space (Faster-Score-CAM, Kubota, github.com/tabayashi0117/Score-CAM)
    by="gradient"   largest |w_c| of Grad-CAM, the mean of the gradient (Selvaraju et al., ICCV 2017, arXiv:1610.02391)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        channels: int = 32,
        by: str = "variance",
        **options: Any,
    ) -> None:
        """Arguments as in `ScoreCAM`, and the number N of `channels`, all if there are fewer; by, see the class."""
        super().__init__(model, target_layers, reshape_transform, **options)
        if by not in ("variance", "gradient"):
            raise ValueError(f'by must be "variance" or "gradient", got {by!r}')
        self.channels, self.by = check_count("channels", channels), by
        self.uses_gradients = by == "gradient"

    def chosen(self, run: Run, activations: Sequence[Tensor], targets: Targets) -> list[Tensor]:
        if self.by == "variance":
            importance = [ops.wide(A).flatten(2).var(2).unsqueeze(2) for A in activations]  # (B, C, 1)
        else:
            per_target = [
                [ops.wide(G).flatten(2).mean(2).abs() for G in layers] for layers in self.gradients(run, targets)
            ]
            importance = [torch.stack(layer, 2) for layer in zip(*per_target, strict=True)]  # (B, C, T)
        return [_largest(i, self.channels) for i in importance]


class SSCAM(ScoreCAM):
    """SS-CAM, Smoothed Score-CAM (Wang et al. 2020, arXiv:2006.14255).

    w = softmax_c mean_i y(x_ci),  map = sum_c w_c A_c, m_c as in `ScoreCAM`

    noise="activation"   x_ci = x (m_c + d_i), d_i ~ N(0, std²) for each pixel
    noise="input"        x_ci = x m_c + d_i, d_i ~ N(0, std²) for each pixel and channel of x, in the unit of x
    The same n draws serve all channels and images, so that channels differ by their masks alone. n passes a channel.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        samples: int = 10,
        std: float = 2.0,
        noise: str = "activation",
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Arguments as in `ScoreCAM`, the number n of `samples`, `std` and `noise`, see the class, and the `seed`.

        The noise is drawn from a generator of its own; the defaults are the paper's.
        """
        super().__init__(model, target_layers, reshape_transform, **options)
        if noise not in ("activation", "input"):
            raise ValueError(f'noise must be "activation" or "input", got {noise!r}')
        if not std >= 0:
            raise ValueError(f"std must not be negative, got {std}")
        self.repeats, self.std, self.noise, self.seed = check_count("samples", samples), std, noise, seed

    def draws(self, x: Tensor) -> Tensor:
        """The noise `(n, 1 or k, *S)` for inputs x, the same in each call."""
        generator = torch.Generator().manual_seed(self.seed)
        k = x.shape[1] if self.noise == "input" else 1
        draws = torch.randn(self.repeats, k, *x.shape[2:], generator=generator) * self.std
        return draws.to(x.device, x.dtype)

    def varied(self, batch: Tensor, seen: Tensor, repeat: Tensor, draws: Tensor | None) -> Tensor:
        assert draws is not None
        return batch + (draws[repeat] if self.noise == "input" else seen * draws[repeat])


class ISCAM(ScoreCAM):
    """IS-CAM, Integrated Score-CAM (Naidu et al. 2020, arXiv:2010.03023).

    w = softmax_c mean_i y(b_i x m_c), i = 1..n,  b_i = sum_{j <= i} j / n,  map = sum_c w_c A_c, m_c as in `ScoreCAM`

    The masked input grows in steps that add up, as in torch-cam's ISCAM. n forward passes a channel.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        samples: int = 10,
        **options: Any,
    ) -> None:
        """Arguments as in `ScoreCAM`, and the number n of `samples`."""
        super().__init__(model, target_layers, reshape_transform, **options)
        self.repeats = check_count("samples", samples)

    def varied(self, batch: Tensor, seen: Tensor, repeat: Tensor, draws: Tensor | None) -> Tensor:
        i = repeat + 1
        factor = (i * (i + 1)).to(batch.dtype) / (2 * self.repeats)
        return batch * factor.view(-1, *[1] * (batch.ndim - 1))


class GroupCAM(PerturbationCAM):
    """Group-CAM (Zhang, Rao and Yang 2021, arXiv:2103.13859): a mask for each group of channels, not for each.

    M_g = relu(sum_{c in g} w_c A_c), w Grad-CAM's weights, values up to the 70th percentile set to 0
    a_g = p(x m_g + blur(x) (1 - m_g)) - p(blur(x)),  m_g = M_g resized to the input and scaled to [0, 1]
    map = sum_g a_g (M_g - low_g) / (high_g - low_g), the extremes of the resized M_g

    p is the target's probability (softmax; callables are taken as they are). Neighbouring channels make a group, as
    in the authors' code; a constant M_g counts nothing. blur: Gaussian, 51 pixels wide, standard deviation 50.
    """

    uses_gradients = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        groups: int = 32,
        **options: Any,
    ) -> None:
        """Arguments as in `ScoreCAM`, and the number of `groups`, as many as channels at most."""
        super().__init__(model, target_layers, reshape_transform, **options)
        self.groups = check_count("groups", groups)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        if eigen_smooth:
            raise ValueError("GroupCAM's map is no weighted sum of channels: eigen_smooth does not apply")
        B = len(run.input)
        score = row_scores(targets, run.output, B, probability=True)
        net, device = unwrap(self.model), run.input.device
        activations = self.spatial(run, run.activations)
        masks = [
            [self.masks(A, G).to(device) for A, G in zip(activations, gradients, strict=True)]
            for gradients in self.gradients(run, targets)
        ]
        x, everyone = channels_first(net, run.input), Rows.of(range(B), device)
        blurred = blur(x)
        unseen = score(call(net, rows_seen(net, run, blurred.clone(), everyone)), everyone)  # (B, T)
        lows = []
        for layer, of_layer in zip(run.layers, zip(*masks, strict=True), strict=True):
            maps = []
            for t, M in enumerate(of_layer):
                gain = self._seen(run, layer, blurred, M, score)[..., t] - unseen[:, t, None]  # (B, L)
                maps.append(_scaled_sum(M, gain.to(device), x.shape[2:]))
            lows.append(torch.stack(maps, 1).flatten(0, 1).unsqueeze(1))
        return lows

    def masks(self, A: Tensor, G: Tensor) -> Tensor:
        """The groups' masks M, `(B, L, *S)`."""
        weighted = ops.weighted_activations(A, G, "gradcam")
        M = torch.stack([part.sum(1).relu() for part in weighted.chunk(self.groups, 1)], 1)
        threshold = M.flatten(2).quantile(0.7, 2)
        return torch.where(threshold.view(*threshold.shape, *[1] * (M.ndim - 2)) < M, M, 0)

    def _seen(self, run: Run, layer: nn.Module, blurred: Tensor, M: Tensor, score: Score) -> Tensor:
        """The probabilities `(B, L, T)` of the images seen through the masks."""
        net, x, L = unwrap(self.model), channels_first(unwrap(self.model), run.input), M.shape[1]

        def masked(start: int, stop: int) -> Tensor:
            rows, _ = consecutive(start, stop, L, x.device)
            batch = ops.masked_inputs(x, M.flatten(0, 1)[start:stop], rows.images, blurred, align_corners=False)
            return score(call(net, rows_seen(net, run, batch, rows)), rows)

        def name(row: int) -> str:
            return f"image {run.first + row // L} masked by group {row % L}"

        seen = self.scores_of(run, layer, len(x) * L, masked, score, name)
        return seen.unflatten(0, (-1, L))


def _largest(importance: Tensor, count: int) -> Tensor:
    """Where the `count` largest values along dimension 1 of `(B, C, T)` are."""
    best = importance.topk(min(count, importance.shape[1]), dim=1).indices
    return torch.zeros_like(importance, dtype=torch.bool).scatter(1, best, True)


def channels_first(net: nn.Module, image: Tensor) -> Tensor:
    """The image as `(B, k, *S)`, a view: a video is `(B, T, k, H, W)`."""
    return image.movedim(image_channel_dim(net, image), 1)


def rows_seen(net: nn.Module, run: Run, batch: Tensor, rows: Rows) -> Inputs:
    """What the model is called with for rows that see `batch` `(N, k, *S)` instead of their images."""
    channel = image_channel_dim(net, run.input)
    return run.inputs.for_rows(batch if channel == 1 else batch.movedim(1, channel).contiguous(), rows.images)


def blur(x: Tensor, width: int = 51, std: float = 50.0) -> Tensor:
    """x `(B, k, *S)` convolved with a Gaussian in each dimension, mirrored at the edges; narrower if S is small."""
    for d in range(2, x.ndim):
        half = min(width // 2, x.shape[d] - 1)
        at = torch.arange(-half, half + 1, device=x.device, dtype=ops.wide(x).dtype)
        kernel = (-at.square() / (2 * std**2)).exp()
        line = ops.wide(x).movedim(d, -1)
        padded = F.pad(line.flatten(0, -2).unsqueeze(1), (half, half), mode="reflect")
        smooth = F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1))
        x = smooth.view(line.shape).movedim(-1, d).to(x.dtype)
    return x


def _scaled_sum(M: Tensor, gain: Tensor, size: Any) -> Tensor:
    """sum_g a_g (M_g - low_g) / (high_g - low_g), `(B, *S)`, for masks `(B, L, *S)` and gains a `(B, L)`."""
    resized = ops.resize(M.flatten(0, 1), size, "linear").flatten(1).unflatten(0, M.shape[:2])
    low, high = resized.amin(2), resized.amax(2)
    scale = torch.where(high > low, gain / (high - low), 0)
    ones = [1] * (M.ndim - 2)
    return ((M - low.view(*low.shape, *ones)) * scale.view(*scale.shape, *ones)).sum(1)
