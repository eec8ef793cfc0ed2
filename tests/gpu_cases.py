"""What the GPU tests run: every operator on inputs drawn for it, every method on a network that it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.methods import ATTENTION, METHODS, ViTReciproCAM
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.visualize import SALIENCY
from fastcam.visualize.sampled import SampledGradient, draws

from models import LAYERS, TinyNet, build, inputs, tiny

TOKENS = {**ATTENTION, "vitreciprocam": ViTReciproCAM}
EVERY = {**METHODS, **TOKENS, **SALIENCY}
SCORED = [n for n, cls in EVERY.items() if issubclass(cls, PerturbationCAM)]  # by passes of changed rows
MANY = ("sess", "smoothfullgrad", "smoothgradcam++", "smoothgrad", "integratedgradients")  # passes of the whole network
ONE_PASS = [n for n in EVERY if n not in (*SCORED, *TOKENS, *MANY)]


@dataclass(frozen=True)
class Operation:
    """An operator of `fastcam.ops`, and how to draw inputs for it on the CPU, floats in fp32."""

    run: Callable[..., Tensor]
    draw: Callable[[], tuple[Tensor, ...]]

    def inputs(self, device: Any, dtype: torch.dtype = torch.float32, last: bool = False) -> list[Tensor]:
        """Inputs on a device, floats in a type; images and activations in channels_last on request."""
        layout = torch.channels_last if last else torch.contiguous_format
        drawn = [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in self.draw()]
        return [t.to(memory_format=layout) if t.ndim == 4 else t for t in drawn]


def _activations(*shape: int) -> Tensor:
    """As behind a ReLU, with a pattern that stands out, so that a leading component exists."""
    pattern = torch.randn(shape[0], 1, *shape[2:]) * torch.randn(*shape[:2], *[1] * (len(shape) - 2))
    return (pattern + torch.randn(shape)).relu()


def _reduction(weighting: str, *shape: int) -> Operation:
    return Operation(
        lambda A, G: ops.channel_reduce(A, G, weighting).sum(1), lambda: (_activations(*shape), torch.randn(shape))
    )


def _rows(*size: int, baseline: bool = True, align_corners: bool = True) -> Operation:
    def draw() -> tuple[Tensor, ...]:
        drawn = torch.randn(2, 3, *size), torch.randn(9, 7, 7), torch.arange(9) % 2, torch.randn(2, 3, *size)
        return drawn if baseline else drawn[:3]

    return Operation(partial(ops.masked_inputs, align_corners=align_corners), draw)


def _pictures(*size: int, channels: int = 3, in_bytes: bool = False) -> Operation:
    table = torch.randint(256, (256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw() -> tuple[Tensor, ...]:
        pixels = torch.rand(3, channels, *size)
        return (255 * pixels).byte() if in_bytes else pixels, torch.rand(3, *size), table

    return Operation(ops.overlay, draw)


def _pooled(weighting: str, *shape: int) -> Operation:
    """Several classes an image, whose weights are `shape`."""
    return Operation(
        lambda A, W: ops.pooled_maps(A, W, weighting), lambda: (_activations(3, 64, 14, 14), torch.randn(shape))
    )


OPERATIONS = {
    **{f"channel_reduce {w}": _reduction(w, 4, 512, 7, 7) for w in ops.WEIGHTINGS},
    "channel_reduce gradcam 14x14": _reduction("gradcam", 3, 300, 14, 14),
    "channel_reduce gradcam++ 56x56": _reduction("gradcam++", 2, 64, 56, 56),
    "channel_reduce xgradcam 65x70": _reduction("xgradcam", 2, 9, 65, 70),  # in two launches
    "channel_reduce of lines": _reduction("layercam", 2, 33, 130),
    "channel_sum": Operation(
        lambda A, weights: ops.channel_sum(A, weights).sum(1),
        lambda: (_activations(3, 300, 14, 14), torch.randn(3, 300)),
    ),
    "channel_sum of classes": Operation(
        ops.channel_sum, lambda: (_activations(3, 300, 14, 14), torch.randn(3, 5, 300))
    ),
    "pooled_maps gradcam": _pooled("gradcam", 3, 5, 64),
    "pooled_maps gradcam++": _pooled("gradcam++", 3, 5, 64),
    "pooled_maps xgradcam of all": _pooled("xgradcam", 5, 64),
    "finish": Operation(lambda low: ops.finish([low], (224, 224)), lambda: (torch.randn(3, 8, 7, 7),)),
    "finish of two layers": Operation(
        lambda low, other: ops.finish([low, other], (61, 90)),
        lambda: (torch.randn(3, 2, 7, 7), torch.randn(3, 3, 14, 21)),
    ),
    "masked_inputs": _rows(61, 90),
    "masked_inputs 224x224": _rows(224, 224),
    "masked_inputs without baseline": _rows(61, 90, baseline=False),
    "masked_inputs by half pixels": _rows(61, 90, align_corners=False),
    "overlay": _pictures(61, 90),
    "overlay 224x224": _pictures(224, 224),
    "overlay of bytes": _pictures(61, 90, in_bytes=True),
    "overlay of one channel": _pictures(61, 90, channels=1),
    "principal_component": Operation(ops.principal_component, lambda: (_activations(3, 512, 7, 7),)),
    "principal_component 5x6": Operation(ops.principal_component, lambda: (_activations(2, 33, 5, 6),)),
    "principal_component 14x14": Operation(ops.principal_component, lambda: (_activations(2, 100, 14, 14),)),
}
PYTORCHS = (  # products of matrices by cuBLAS: several classes an image, and what is beyond the kernel's size
    *("channel_sum of classes", "pooled_maps gradcam", "pooled_maps gradcam++", "pooled_maps xgradcam of all"),
    "principal_component 14x14",
)


class Pooled(TinyNet):
    """Global average pooling and the head directly behind `tail`, as CAM needs it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.relu(self.body(self.stem(x)))).mean((2, 3)))


@dataclass(frozen=True)
class Explanation:
    """A method bound to a network of its own, two images for it on the CPU in fp32, and their targets."""

    net: nn.Module
    method: Any
    x: Tensor
    targets: Any

    def __call__(self, x: Tensor) -> Tensor:
        """A map or a gradient an image."""
        np.random.seed(0)  # RandomCAM's generator
        return self.method.attribute(x, self.targets)

    def with_a_method_of_its_own(self) -> Explanation:
        """Another of the same kind, bound to the same network."""
        return replace(self, method=copy.copy(self.method))


def explanation(name: str, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Explanation:
    """On small networks, with the same weights and images whatever the device and type."""
    cls = EVERY[name]
    if name in TOKENS:
        net, x, layers = build("small_vit"), inputs("small_vit", 2), []
    else:
        net, layers = tiny(Pooled), _layers(name, "tail" if name == "cam" else "body")
        x = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
        net.head.weight.data.mul_(20)  # scores far enough apart that their differences are no rounding
    return _bound(net.to(device, dtype), cls, x, layers, [0, 1])


def on_resnet(name: str, layers: str = "last", device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Explanation:
    """On photographs; `layers` as in `models.LAYERS`.

    Its ReLUs and its maximum are smooth ones here: at a kink rounding decides which gradient is taken, and a few such
    decisions are worth 5 % of a map.
    """
    net, x = build("resnet18"), inputs("resnet18", 2)
    for module in net.modules():
        if hasattr(module, "relu"):
            module.relu = nn.Softplus(beta=20)
    net.maxpool = nn.AvgPool2d(3, 2, 1)
    return _bound(net.to(device, dtype), EVERY[name], x, _layers(name, LAYERS["resnet18"][layers]), None)


def _layers(name: str, chosen: Any) -> list:
    """The layers as arguments: gradients of the input and FullGrad take none."""
    return [] if name in SALIENCY and name != "guidedgradcam" or "fullgrad" in name else [chosen]


def _bound(net: nn.Module, cls: Any, x: Tensor, layers: list, targets: Any) -> Explanation:
    """Rows go in batches of a given size: one that is found by the clock would change the rounding from run to run."""
    options = {"batch_size": 8} if issubclass(cls, PerturbationCAM | SampledGradient) else {}
    return Explanation(net, cls(net, *layers, **options), x, targets)


def drawn_on_the_cpu(kind: str, seed: int, count: int, x: Tensor) -> Callable[[int], Tensor]:
    """In place of `sampled.draws`, whose numbers differ between devices and types: the CPU's in fp32."""
    draw = draws(kind, seed, count, x.float().cpu())
    return lambda n: draw(n).to(x.device, ops.wide(x[:0]).dtype)


def off(result: Tensor, exact: Tensor) -> float:
    """The largest error as a share of the largest value; NaN does not pass for small."""
    result, exact = result.double().cpu(), exact.double().cpu()
    assert result.shape == exact.shape and result.isfinite().all()
    assert (exact.flatten(1).amax(1) > exact.flatten(1).amin(1)).all(), "a constant compares nothing"
    return float((result - exact).abs().max() / exact.abs().max())
