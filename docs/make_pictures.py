"""Makes the pictures in docs/: `python docs/make_pictures.py [NAME ...]`, offline, a few minutes on a CPU.

The networks are the embedded one of the digit scenes, and a small one trained here on the digits by themselves.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastcam
from fastcam.scenes import load_digits, load_network, make_scenes

HERE = Path(__file__).parent


def kernels() -> None:
    net = digit_network()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    fastcam.plot_kernels(net, "conv1", axes[0])
    fastcam.plot_kernels(net, "conv2", axes[1], limit=16)
    figure.savefig(HERE / "kernels.png", dpi=100)


def feature_maps() -> None:
    images, labels = load_digits("train")
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    fastcam.feature_maps(digit_network(), images[labels == 5][2:3], ["conv1", "relu1"]).plot(axes)
    figure.savefig(HERE / "feature_maps.png", dpi=90)


def saliency() -> None:
    scenes = make_scenes(8, "test", seed=3)
    found = fastcam.SmoothGrad(load_network())(scenes.images[:3], scenes.labels[:3])
    found.save(HERE / "saliency.png", image=None)


def compare() -> None:
    scenes = make_scenes(8, "test", seed=3)
    methods = [*("gradcam", "layercam"), *("saliency", "inputxgradient", "smoothgrad", "integratedgradients")]
    found = fastcam.compare(
        load_network(), scenes.images[:3], [*methods, "guidedbackprop"], scenes.labels[:3], layers="stage3"
    )
    found.save(HERE / "compare.png")


def maximize() -> None:
    made = fastcam.maximize(load_network(), ["logit:0-9", "stage4.3:0-4", "stage3.3:1-5"], size=64, settle=0)
    made.save(HERE / "maximize.png", columns=10, size=1.1)


def patches() -> None:
    found = fastcam.top_patches(load_network(), make_scenes(2000).images, "stage3", [11, 19, 22, 28, 33, 36])
    found.save(HERE / "patches.png")


def dream() -> None:
    fastcam.deep_dream(load_network(), photographs(320, 480), "stage4").save(HERE / "dream.png", dpi=80)


def inversion() -> None:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    found = fastcam.invert(load_network(), photographs(107, 160), stages, steps=300, lambda_tv=2.0)
    found.save(HERE / "inversion.png", size=2.0)


def tutorial() -> None:
    """Those of docs/tutorial.md, by its own code."""
    folder = HERE / "tutorial"
    folder.mkdir(exist_ok=True)
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for block in re.findall(r"```python\n(.*?)```", (HERE / "tutorial.md").read_text(), re.DOTALL):
            exec(block, names)


@cache
def digit_network() -> nn.Sequential:
    """Two convolutions and a linear layer, trained on the digits."""
    images, labels = load_digits("train")
    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = [
        *(("conv1", nn.Conv2d(1, 64, 7, padding=3)), ("relu1", nn.ReLU(inplace=True)), ("pool1", nn.MaxPool2d(2))),
        *(("conv2", nn.Conv2d(64, 32, 5, padding=2)), ("relu2", nn.ReLU(inplace=True)), ("pool2", nn.MaxPool2d(2))),
        *(("flatten", nn.Flatten()), ("fc", nn.Linear(1568, 10))),
    ]
    net = nn.Sequential(OrderedDict(layers))
    for name in ("conv1", "conv2"):
        nn.init.normal_(net.get_submodule(name).weight, std=0.02)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.1)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    return net


def photographs(height: int, width: int) -> Tensor:
    """scikit-learn's two sample photographs in grey, `(2, 1, height, width)` in [0, 1]."""
    from sklearn.datasets import load_sample_images

    photos = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    return F.interpolate(photos.movedim(-1, 1).float().mean(1, keepdim=True) / 255, (height, width), mode="area")


PICTURES = (kernels, feature_maps, saliency, compare, maximize, patches, dream, inversion, tutorial)

if __name__ == "__main__":
    for picture in PICTURES:
        if not sys.argv[1:] or picture.__name__ in sys.argv[1:]:
            picture()
            plt.close("all")
            print(picture.__name__)
