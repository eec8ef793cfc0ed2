"""Networks and images to measure on, made here: nothing is downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, convnext_tiny, efficientnet_b0, resnet18, resnet50, vgg16, vit_b_16
from torchvision.models.resnet import BasicBlock

_STAGES = ("layer1", "layer2", "layer3", "layer4")  # of a ResNet


@dataclass(frozen=True)
class Recipe:
    """How to build a network, the layer to explain, several for methods that combine them, and the input's side."""

    build: Callable[[], nn.Module]
    layer: str = "layer4[-1]"
    stages: tuple[str, ...] = _STAGES
    size: int = 224


def _parts(prefix: str, *places: int, suffix: str = "") -> tuple[str, ...]:
    return tuple(f"{prefix}[{place}]{suffix}" for place in places)


RECIPES = {
    "resnet18": Recipe(resnet18),
    "resnet50": Recipe(resnet50),
    "vgg16": Recipe(vgg16, "features[-1]", _parts("features", 9, 16, 23, 30)),
    "efficientnet_b0": Recipe(efficientnet_b0, "features[-1]", _parts("features", 2, 3, 5, 8)),
    "convnext_tiny": Recipe(convnext_tiny, "features[-1]", _parts("features", 1, 3, 5, 7)),
    "vit_b_16": Recipe(vit_b_16, "encoder.layers[-1].ln_1", _parts("encoder.layers", 2, 5, 8, 11, suffix=".ln_1")),
    "toy": Recipe(lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), size=64),
}


@cache
def network(name: str, device: str) -> nn.Module:
    """A network in evaluation mode. Random weights; statistics and head calibrated on images as `images` makes them."""
    recipe = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = recipe.build()
        calibrate(net, images(16, recipe.size, seed=1))
    return net.eval().to(device)


@torch.no_grad()
def calibrate(net: nn.Module, x: Tensor) -> None:
    """Statistics of batch norms from one pass over the images; logits of mean 0 and deviation 1 over them.

    In a network without any norm the layers themselves are scaled, so that its features differ from image to image.
    """
    net.eval()
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    hooks = []
    if not any(isinstance(m, nn.BatchNorm2d | nn.LayerNorm) for m in net.modules()):
        scaled = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not head]
        hooks = [m.register_forward_hook(_standardize) for m in scaled]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms or hooks:
        net(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.eval().momentum = momentum
    for hook in hooks:
        hook.remove()
    if not head.weight.any():  # as torchvision leaves that of a vision transformer
        head.reset_parameters()
    logits = net(x)  # (B, K)
    deviation = (logits - logits.mean(0)).std()
    head.bias.sub_(logits.mean(0)).div_(deviation)
    head.weight.div_(deviation)


def _standardize(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Scale and shift a layer so that each channel of its output has mean 0 and deviation 1; that output."""
    assert layer.bias is not None
    std, mean = torch.std_mean(output.transpose(0, 1).flatten(1), dim=1)
    layer.weight.div_(std.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.sub_(mean).div_(std)
    shape = (-1, *[1] * (output.ndim - 2))
    return (output - mean.view(shape)) / std.view(shape)


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Structured random images `(count, 3, size, size)` of mean 0 and deviation 1: octaves of noise, as in nature."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for octave in range(1, int(math.log2(size))):
        cells = torch.randn(count, 3, 2**octave, 2**octave, generator=generator)
        x += F.interpolate(cells, (size, size), mode="bilinear", align_corners=False) / 2 ** (octave / 2)
    dims = (1, 2, 3)
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True)


@torch.no_grad()
def predicted(net: nn.Module, x: Tensor) -> list[int]:
    """The classes to explain, as indices: those the network predicts, so that maps are not empty."""
    return net(x).argmax(1).tolist()
