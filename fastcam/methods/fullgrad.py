"""FullGrad and its relatives: what the input and every bias add to the score of the target, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.full_gradients import FullGradientRun, full_gradients
from fastcam.inputs import Inputs
from fastcam.methods.base import BaseCAM, warn
from fastcam.methods.fusion import resized, scaled_once
from fastcam.record import Run, record, unwrap
from fastcam.targets import Targets, are_callables, class_indices, logits_of, scores

_CACHED = 300_000  # numbers that stay in a core's cache
_AT_ONCE = 640_000  # numbers of the input, a thread


class FullGrad(BaseCAM):
    """FullGrad (Srinivas and Fleuret, NeurIPS 2019, arXiv:1905.00780).

    map = sum_c r(x_c dy/dx_c) + sum_l sum_c resize(r(b_lc dy/dz_lc)),  r(v) = min_max(|v|)

    x is the input, z_l `(B, C, *S)` the output of the l-th call of a convolution or a batch norm that adds a bias b_l,
    a batch norm's being β - γ μ / sqrt(σ² + ε). For a network of ReLUs the terms, with the biases of its linear layers,
    add up to the score itself. Calls whose output is not `(B, C, *S)` beside an input `(B, k, *S)` have no place here;
    those in scripted code are not seen.

    With r over each channel by itself, as in pytorch-grad-cam, the size of a bias drops out but for min_max's 1e-7;
    r over all channels of a layer, as the authors have it, lets it count.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> FullGrad(model)(torch.rand(2, 1, 8, 8), targets=1).shape
    (2, 8, 8)
    """

    looks_inside = True
    sums_biases = True

    rescale = "channel"  # unless the constructor is told
    fusion = "scaled once"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        *,
        rescale: str | None = None,
        **options: Any,
    ) -> None:
        """Bind the method to a model; nothing runs yet.

        target_layers, reshape_transform   not used, the layers are all those with a bias; a warning if layers are given
        rescale   what r takes the extremes over: "channel" or "layer"; None for "channel", the variants' "layer"
        options   as for `GradCAM`
        """
        super().__init__(model, None, reshape_transform, **options)
        unwrap(model)
        if rescale not in (None, "channel", "layer"):
            raise ValueError(f'rescale must be "channel" or "layer", got {rescale!r}')
        if target_layers is not None and not (isinstance(target_layers, list | tuple) and not target_layers):
            warn(f"target_layers is ignored: {type(self).__name__} takes every layer with a bias")
        self.target_layers = []
        self.rescale = rescale or self.rescale

    def at_once(self, x: Inputs) -> int:
        """On a CPU about four photographs a thread, in equal parts: a graph of more leaves its caches."""
        room = _AT_ONCE * torch.get_num_threads()
        parts = -(-x.image.numel() // room) if x.image.device.type == "cpu" else 1
        return -(-len(x) // parts)

    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> AbstractContextManager[Run]:
        return full_gradients(self.model, x)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        assert isinstance(run, FullGradientRun)
        columns = _columns(run, targets)
        maps = [self._map(run, c, eigen_smooth, keep_graph=t < len(columns)) for t, c in enumerate(columns, 1)]
        return [torch.stack(maps, 1).flatten(0, 1).unsqueeze(1)]

    def finished(self, lows: Sequence[Tensor], normalize: bool, size: Sequence[int] | None) -> list[Tensor]:
        """The map at a size, the input's for None."""
        size = lows[0].shape[2:] if size is None else size
        return [scaled_once(lows, size, self.interpolation) if normalize else self._resized(lows[0].sum(1), size)]

    def _map(self, run: FullGradientRun, column: Tensor, eigen_smooth: bool, keep_graph: bool) -> Tensor:
        """The map `(B, *S)` of one target per image. A layer's gradient is reduced while the backward pass goes on."""
        layers: list[Tensor] = []  # (B, *s) each, from the last call to the first

        def receive(_: int, bias: Tensor, G: Tensor) -> None:
            layers.append(self._saliency(G, self._factor(bias)).to(run.input.device))

        G = run.gradient(column, receive, keep_graph)
        return self._fused(ops.wide(run.input) * ops.wide(G), layers[::-1], eigen_smooth)

    def _factor(self, bias: Tensor) -> Tensor | None:
        """What r is taken of, over the gradient of the output that the bias `(C,)` is added to."""
        return bias

    def _saliency(self, G: Tensor, factor: Tensor | None = None) -> Tensor:
        """sum_c r(f_c G_c), `(B, *S)`, f `(C,)`, 1 if None; in parts that stay in a CPU's cache."""
        flat = G.flatten(2)  # (B, C, N)
        f = None if factor is None else ops.wide(factor).abs().unsqueeze(1)
        if flat.device.type != "cpu":
            v, scale = self._shifted(ops.wide(flat).abs(), f)
            return ops.channel_sum(v, scale.squeeze(2)).sum(1).view(len(G), *G.shape[2:])
        maps = flat.new_zeros(len(G), 1, flat.shape[2], dtype=ops.wide(flat[:0]).dtype)
        images, channels = self._part(flat)
        room = torch.empty_like(flat[:images, :channels], dtype=maps.dtype)
        with ops.not_autocast(maps):
            for i in range(0, len(G), images):
                for c in range(0, flat.shape[1], channels):
                    g = flat[i : i + images, c : c + channels]
                    v = torch.abs(ops.wide(g), out=room[: len(g), : g.shape[1]])
                    v, scale = self._shifted(v, None if f is None else f[c : c + channels])
                    maps[i : i + images].baddbmm_(scale.mT, v)
        return maps.view(len(G), *G.shape[2:])

    def _part(self, flat: Tensor) -> tuple[int, int]:
        """How many images, and how many of their channels, are taken at once on a CPU."""
        C, N = flat.shape[1:]
        room = _CACHED * torch.get_num_threads()  # which share a part
        if self.rescale == "layer" or room >= C * N or flat.stride(2) != 1:
            return max(1, room // (C * N)), C
        return 1, -(-C // -(-C * N // room))

    def _shifted(self, v: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of v >= 0, `(B, C, N)`, which is written into, v - min and what makes r(f v) of that, `(B, C, 1)`."""
        if self.rescale == "layer":
            v, factor = v if factor is None else v.mul_(factor), None
        over = 2 if self.rescale == "channel" else (1, 2)
        low = v.amin(over, keepdim=True)
        width = v.amax(over, keepdim=True).sub_(low)
        scale = 1 / (1e-7 + width) if factor is None else factor / (1e-7 + factor * width)
        return v.sub_(low), scale.expand(*v.shape[:2], 1)

    def _fused(self, inputs: Tensor, layers: Sequence[Tensor], eigen_smooth: bool) -> Tensor:
        """The map `(B, *S)` from x dy/dx, `(B, k, *S)`, and the layers' maps in the order of their calls."""
        size = inputs.shape[2:]
        if not eigen_smooth:
            by_size: dict[torch.Size, Tensor] = {}
            for m in (self._saliency(inputs), *layers):  # resizing is linear: the sum first
                by_size[m.shape] = by_size[m.shape] + m if m.shape in by_size else m
            return torch.stack([self._resized(m, size) for m in by_size.values()]).sum(0)
        v, scale = self._shifted(inputs.flatten(2).abs())
        channels = [*(v * scale).unflatten(2, size).unbind(1), *self._all_resized(layers, size)]
        X = torch.stack(channels, 1)  # (B, k + L, *S)
        small = self._resized(ops.min_max(X.flatten(0, 1)), [max(1, s // 8) for s in size]).unflatten(0, X.shape[:2])
        return self._resized(ops.min_max(ops.principal_component(small, self.sign).sum(1)), size)

    def _resized(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        return resized(maps, size, self.interpolation)

    def _all_resized(self, maps: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Maps `(B, *s)` at one size, in their order; those of one size together."""
        found: dict[int, Tensor] = {}
        for shape in dict.fromkeys(m.shape for m in maps):
            alike = [n for n, m in enumerate(maps) if m.shape == shape]
            together = self._resized(torch.cat([maps[n] for n in alike]), size)
            found.update(zip(alike, together.chunk(len(alike)), strict=True))
        return [found[n] for n in range(len(maps))]


class SimpleFullGrad(FullGrad):
    """FullGrad with the gradients alone, as the authors' code has it beside `FullGrad`.

    map = sum_c r(x_c dy/dx_c) + sum_l sum_c resize(r(dy/dz_lc)),  r over all channels of a layer
    """

    rescale = "layer"

    def _factor(self, bias: Tensor) -> Tensor | None:
        return None


class SmoothFullGrad(FullGrad):
    """FullGrad of the mean over noisy copies of the input, as the authors' code has it beside `FullGrad`.

    map = r(mean_i sum_c x_ic dy/dx_ic) + sum_l sum_c resize(r(b_lc mean_i dy/dz_ilc)),  r over all channels of a layer
    x_i = x + d_i,  d_i ~ N(0, (spread (max x - min x))²) for each pixel and channel, the extremes those of the image

    The predicted class is that of x itself. The same draws serve all images; one forward pass and one forward and
    backward pass a draw, with a gradient of each layer kept until the mean is known.
    """

    rescale = "layer"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        *,
        samples: int = 25,
        spread: float = 0.15,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Arguments as in `FullGrad`, the number of `samples`, their `spread`, see the class, and the `seed`.

        The noise is drawn from a generator of its own; the defaults are the authors'.
        """
        super().__init__(model, target_layers, reshape_transform, **options)
        if samples < 1 or spread < 0:
            raise ValueError(f"samples must be 1 or more and spread not negative, got {samples} and {spread}")
        self.samples, self.spread, self.seed = samples, spread, seed

    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> AbstractContextManager[Run]:
        return record(self.model, [], x, gradients=False)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        if not are_callables(targets):
            targets = class_indices(targets, logits_of(run.output))
        sums: list[_Sum] = []
        for copy in self.noisy(run.input):
            with full_gradients(self.model, run.inputs.with_image(copy)) as noisy:
                columns = _columns(noisy, targets)
                sums = sums or [_Sum() for _ in columns]
                for t, (total, column) in enumerate(zip(sums, columns, strict=True), 1):
                    G = noisy.gradient(column, total.receive, keep_graph=t < len(columns))
                    total.add(ops.wide(copy) * ops.wide(G))
        maps = []
        for total in sums:
            layers = [self._saliency(G / self.samples, self._factor(b)) for _, (b, G) in sorted(total.layers.items())]
            inputs = (total.inputs / self.samples).sum(1, keepdim=True)
            maps.append(self._fused(inputs, [m.to(inputs.device) for m in layers], eigen_smooth))
        return [torch.stack(maps, 1).flatten(0, 1).unsqueeze(1)]

    def noisy(self, x: Tensor) -> Iterator[Tensor]:
        """The copies of the inputs, one after the other."""
        over = tuple(range(1, x.ndim))
        std = self.spread * (x.amax(over, keepdim=True) - x.amin(over, keepdim=True))
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.samples):
            yield x + std * torch.randn(x.shape[1:], generator=generator).to(x.device, x.dtype)


class _Sum:
    """The sums over the noisy copies: of x dy/dx, and of each layer's gradient, beside its bias."""

    def __init__(self) -> None:
        self.inputs = torch.zeros(())
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, inputs: Tensor) -> None:
        self.inputs = inputs + self.inputs.to(inputs.device)

    def receive(self, place: int, bias: Tensor, G: Tensor) -> None:
        G = ops.wide(G)
        self.layers[place] = (bias, self.layers[place][1].add_(G) if place in self.layers else G.clone())


def _columns(run: Run, targets: Targets) -> tuple[Tensor, ...]:
    """The score of each image, `(B,)`, for each of its targets."""
    with torch.enable_grad():
        return scores(run.output, targets, len(run.input)).view(len(run.input), -1).unbind(1)
