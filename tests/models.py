"""Networks for the tests: built without downloads, calibrated on photographs so that comparisons mean something."""

from __future__ import annotations

import copy
import functools

import torch
import torchvision
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional as F


@functools.cache
def photographs(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Crops of scikit-learn's two photographs, `(count, channels, height, width)`, roughly standardised."""
    images = [torch.from_numpy(i.copy()).movedim(-1, 0).float() / 255 for i in load_sample_images().images]
    crops = []
    for n in range(count):
        image = images[n % 2]
        top, left = 37 * n % 150, 61 * n % 250
        crop = image[:, top : top + 277, left : left + 277 * width // height][None]
        crops.append(F.interpolate(crop, (height, width), mode="bilinear", antialias=True))
    batch = (torch.cat(crops) - 0.45) / 0.25
    return batch if channels == 3 else batch.mean(1, keepdim=True)


def grey_resnet18() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return model


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 3, 3, 48, 96, num_classes=10)


class VolumeNet(nn.Module):
    """Two convolutions in three dimensions, and a linear head behind one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv3d(8, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU())
        self.third = nn.Sequential(nn.Conv3d(12, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.head = nn.Linear(16, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3, 4)))


def small_headed_vgg11_bn() -> nn.Module:
    """VGG-11 whose classifier is a thousandth of the usual 120 million weights, the time of which says nothing."""
    model = torchvision.models.vgg11_bn(num_classes=20)
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(inplace=True), nn.Linear(16, 20))
    return model


def tokens_to_map(t: torch.Tensor) -> torch.Tensor:
    """`small_vit`'s tokens `(B, 17, 48)` as `(B, 48, 4, 4)`."""
    return t[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)


BUILDERS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=20),
    "vgg11_bn": small_headed_vgg11_bn,
    "densenet121": lambda: torchvision.models.densenet121(num_classes=20),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=20),
    "grey_resnet18": grey_resnet18,
    "small_vit": small_vit,
    "volume": VolumeNet,
}
LAYERS = {  # the last layer, several, one in the middle
    "resnet18": {"last": ["layer4[-1]"], "several": ["layer3", "layer4"], "middle": ["layer2[-1]"]},
    "vgg11_bn": {"last": ["features[-1]"], "several": ["features[21]", "features[-1]"], "middle": ["features[13]"]},
    "densenet121": {
        "last": ["features.denseblock4"],
        "several": ["features.denseblock3", "features.denseblock4"],
        "middle": ["features.denseblock2"],
    },
    "mobilenet_v3_small": {
        "last": ["features[-1]"],
        "several": ["features[8]", "features[-1]"],
        "middle": ["features[4]"],
    },
    "grey_resnet18": {"last": ["layer4[-1]"], "several": ["layer2", "layer3", "layer4"], "middle": ["layer2[-1]"]},
    "small_vit": {
        "last": ["encoder.layers[-1].ln_1"],
        "several": ["encoder.layers[1].ln_1", "encoder.layers[2].ln_1"],
        "middle": ["encoder.layers[1].ln_1"],
    },
    "volume": {"last": ["third"], "several": ["first", "second", "third"], "middle": ["second"]},
}
SIGNED = {"densenet121", "mobilenet_v3_small", "small_vit"}  # networks with target layers below 0


def inputs(name: str, batch: int = 3, square: bool = False) -> torch.Tensor:
    if name == "volume":
        size = (16, 16, 16) if square else (12, 16, 20)
        return photographs(batch * size[0], *size[1:], 1).view(batch, 1, *size)
    height, width = (64, 64) if name == "small_vit" else (96, 96) if square else (96, 128)
    return photographs(batch, height, width, 1 if name == "grey_resnet18" else 3)


@functools.cache
def _calibrated(name: str) -> nn.Module:
    torch.manual_seed(1)
    model = BUILDERS[name]()
    x = inputs(name, 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None  # the mean over the batches seen
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(x)
        model.eval()
        head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        if head.weight.abs().max() == 0:
            nn.init.normal_(head.weight)
        head.weight.mul_(3 / (model(x) - head.bias).std())
    return model


def build(name: str) -> nn.Module:
    """A calibrated network of its own, in evaluation mode."""
    return copy.deepcopy(_calibrated(name))


class TinyNet(nn.Module):
    """Two convolutions, a target layer `body` followed by an in-place ReLU and one more convolution, a linear head."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.relu = nn.ReLU(inplace=True)
        self.tail = nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(16, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.tail(self.relu(self.body(self.stem(x))))).mean((2, 3))

    def forward(self, x: torch.Tensor):
        return self.head(self.features(x))


def tiny(cls: type[TinyNet] = TinyNet, **keywords) -> TinyNet:
    """A `TinyNet` or a subclass with weights of its own and batch norm that has seen something."""
    torch.manual_seed(3)
    net = cls(**keywords).train()
    with torch.no_grad():
        for _ in range(3):
            net.stem(torch.randn(4, net.stem[0].in_channels, 20, 24))
            net.body(torch.randn(4, 8, 10, 12))
    return net.eval()
