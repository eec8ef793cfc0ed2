"""Networks and images to measure on, made here: nothing is downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, resnet18, resnet50
from torchvision.models.resnet import BasicBlock


@dataclass(frozen=True)
class Recipe:
    """How to build a network, the layer to explain, and the side of its input in pixels."""

    build: Callable[[], ResNet]
    layer: str = "layer4[-1]"
    size: int = 224


RECIPES = {
    "resnet18": Recipe(resnet18),
    "resnet50": Recipe(resnet50),
    "toy": Recipe(lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), size=64),
}


@cache
def network(name: str, device: str) -> ResNet:
    """A network in evaluation mode. Random weights; statistics and head calibrated on images as `images` makes them."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    net = recipe.build()
    calibrate(net, images(16, recipe.size, seed=1))
    return net.eval().to(device)


@torch.no_grad()
def calibrate(net: ResNet, x: Tensor) -> None:
    """Batch-norm statistics from one pass in training mode; logits of mean 0 and deviation 1 over the images."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    net.train()(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    logits = net.eval()(x)  # (B, K)
    deviation = (logits - logits.mean(0)).std()
    net.fc.bias.sub_(logits.mean(0)).div_(deviation)
    net.fc.weight.div_(deviation)


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
