"""Digit scenes and a small network that reads them: the demo's data and model, both offline.

A scene is one handwritten digit somewhere on a cluttered canvas, with a box around the digit. Because the box is known,
an attribution map can be scored: its peak should lie in the box (the pointing game of Zhang et al., ECCV 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DigitNet", "Scenes", "load_digits", "load_network", "make_scenes"]

DATA = Path(__file__).parent / "demo_data"
CANVAS = 64
PATCH = 32  # a patch holds the largest digit, or a fragment turned by any angle
FRAGMENTS = 12
STROKES = 4
TEST_DIGITS = 497  # of 1797, the rest is for training

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Scenes:
    """Scenes with their labels and boxes.

    Attributes:
        images: (N, 1, 64, 64) float32 in [0, 1].
        labels: (N,) int64, the digit 0 to 9.
        boxes: (N, 4) int64 in pixels, (top, left, bottom, right), half-open.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


def make_scenes(count: int, split: Split = "test", seed: int = 0) -> Scenes:
    """Draw scenes: a digit of 22 to 26 pixels among fragments of other digits, strokes and noise.

    The box covers 14 % of the canvas on average, which is the pointing-game score of a uniform map.

    Args:
        count: number of scenes N.
        split: which digits to draw from; "train" and "test" share none, neither as digits nor as fragments.
        seed: the same arguments give the same scenes.

    Returns:
        Scenes on the CPU.

    Raises:
        ValueError: if count is below 1 or split is unknown.

    Example:
        >>> scenes = make_scenes(4)
        >>> scenes.images.shape, scenes.boxes.shape
        (torch.Size([4, 1, 64, 64]), torch.Size([4, 4]))
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    digits, targets = _digits(split)
    rng = torch.Generator().manual_seed(seed)

    chosen = torch.randint(len(digits), (count,), generator=rng)
    side = 22 + 2 * torch.randint(3, (count,), generator=rng)  # even, so that the box is centred on a pixel corner
    corner = (_uniform(rng, (count, 2), 0, 1) * (CANVAS - side[:, None] + 1)).long()
    boxes = torch.cat([corner, corner + side[:, None]], dim=1)
    centre = corner + side[:, None] // 2

    # Half a cell is left free on each side, where bilinear interpolation fades the ink out.
    patches = _render(digits[chosen], side * 8 / 9, _uniform(rng, (count,), -0.1, 0.1))
    patches = patches * _uniform(rng, (count, 1, 1), 0.65, 1.0)
    ink = _stamp(patches[:, None], centre[:, None])
    ink = torch.maximum(ink, _fragments(digits, centre, side, rng))
    ink = torch.maximum(ink, _strokes(count, rng))
    return Scenes(_expose(ink, rng)[:, None], targets[chosen], boxes)


def load_digits(split: Split = "train", size: int = 28) -> tuple[Tensor, Tensor]:
    """The handwritten digits by themselves, resized from 8 x 8 pixels.

    Args:
        split: "train" (1300 digits) or "test" (497).
        size: side of the images in pixels.

    Returns:
        Images (N, 1, size, size) float32 in [0, 1], and labels (N,) int64.

    Raises:
        ValueError: if split is unknown.

    Example:
        >>> images, labels = load_digits("test")
        >>> images.shape, labels.shape
        (torch.Size([497, 1, 28, 28]), torch.Size([497]))
    """
    digits, labels = _digits(split)
    return F.interpolate(digits[:, None], (size, size), mode="bilinear"), labels.clone()


def _uniform(rng: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


@cache
def _digits(split: Split) -> tuple[Tensor, Tensor]:
    """The digits of a split, (D, 8, 8) in [0, 1], and their labels (D,)."""
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    with np.load(DATA / "digits.npz") as file:
        images, labels = file["images"], file["labels"]
    # Neighbours in the file resemble each other, so the splits are drawn by a fixed permutation.
    order = np.random.RandomState(0).permutation(len(images))
    index = order[:TEST_DIGITS] if split == "test" else order[TEST_DIGITS:]
    return torch.from_numpy(images[index]).float() / 16, torch.from_numpy(labels[index]).long()


def _render(tiles: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """Resize tiles (K, h, h) to `side` (K,) pixels, turn them by `angle` (K,) radians: (K, PATCH, PATCH)."""
    zoom = PATCH / side
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    zero = torch.zeros_like(cos)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(tiles), 1, PATCH, PATCH], align_corners=False)
    return F.grid_sample(tiles[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


def _stamp(patches: Tensor, centres: Tensor) -> Tensor:
    """Put patches (N, K, PATCH, PATCH) at centres (N, K, 2) of empty canvases, the brighter wins: (N, 64, 64)."""
    wide = CANVAS + PATCH  # a margin of half a patch lets a fragment run over the edge
    step = torch.arange(PATCH)
    rows = centres[:, :, 0, None, None] + step[:, None]
    columns = centres[:, :, 1, None, None] + step
    canvas = patches.new_zeros(len(patches), wide * wide)
    canvas.scatter_reduce_(1, (rows * wide + columns).flatten(1), patches.flatten(1), "amax")
    margin = slice(PATCH // 2, PATCH // 2 + CANVAS)
    return canvas.view(-1, wide, wide)[:, margin, margin]


def _fragments(digits: Tensor, centre: Tensor, side: Tensor, rng: torch.Generator) -> Tensor:
    """Clutter of the digit's own texture: turned quarter digits around the digits at centre (N, 2): (N, 64, 64)."""
    count = len(centre)
    windows = digits.unfold(1, 4, 1).unfold(2, 4, 1).flatten(0, 2)  # (D * 25, 4, 4)
    chosen = torch.randint(len(windows), (count * FRAGMENTS,), generator=rng)
    size = _uniform(rng, (count * FRAGMENTS,), 9, 14)
    patches = _render(windows[chosen], size, _uniform(rng, (count * FRAGMENTS,), 0, 2 * torch.pi))
    patches = patches.view(count, FRAGMENTS, PATCH, PATCH) * _uniform(rng, (count, FRAGMENTS, 1, 1), 0.4, 1.0)

    # Of several places take the first that leaves the digit legible.
    places = torch.randint(CANVAS + 1, (count, FRAGMENTS, 8, 2), generator=rng)
    away = (places - centre[:, None, None]).abs().amax(-1)  # (N, FRAGMENTS, 8)
    first = (away >= side[:, None, None] // 2 + 4).int().argmax(-1)
    return _stamp(patches, places.take_along_dim(first[:, :, None, None], dim=2)[:, :, 0])


def _strokes(count: int, rng: torch.Generator) -> Tensor:
    """Thin straight strokes, faint enough to cross a digit without hiding it: (N, 64, 64)."""
    shape = (count, STROKES, 1, 1)
    angle = _uniform(rng, shape, 0, 2 * torch.pi)
    length = _uniform(rng, shape, 10, 40)
    half_width = _uniform(rng, shape, 0.5, 1.0)

    axis = torch.arange(CANVAS) + 0.5
    y = axis[:, None] - _uniform(rng, shape, 0, CANVAS)  # (N, STROKES, 64, 1)
    x = axis - _uniform(rng, shape, 0, CANVAS)  # (N, STROKES, 1, 64)
    along = x * angle.cos() + y * angle.sin()  # (N, STROKES, 64, 64)
    across = y * angle.cos() - x * angle.sin()
    beyond = along - along.clamp(min=0).minimum(length)
    ink = (half_width + 0.5 - across.hypot(beyond)).clamp(0, 1) * _uniform(rng, shape, 0.2, 0.5)
    return ink.amax(1)


def _expose(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Photograph ink (N, 64, 64): uneven background, varying contrast, faint noise."""
    count = len(ink)
    corners = _uniform(rng, (count, 1, 2, 2), 0, 0.35)
    background = F.interpolate(corners, size=(CANVAS, CANVAS), mode="bilinear", align_corners=True)[:, 0]
    contrast = _uniform(rng, (count, 1, 1), 0.6, 1.0)
    noise = 0.04 * torch.randn(ink.shape, generator=rng)
    return (background + contrast * ink * (1 - background) + noise).clamp(0, 1)


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    # Zero padding would draw an edge around every scene, and it shows up as a bright rim in the maps.
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, padding_mode="replicate")
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class DigitNet(nn.Module):
    """A convolutional network of about 120 000 parameters for the digit scenes.

    `stage3` is the layer to explain: a 16 x 16 grid, with two more convolutions in `stage4` above it. Were it right
    below the pooling and the linear head, Grad-CAM, HiResCAM and XGradCAM would all give one and the same map.

    Example:
        >>> DigitNet()(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_block(1, 16, stride=2), *_block(16, 16))
        self.stage2 = nn.Sequential(*_block(16, 32, stride=2), *_block(32, 32))
        self.stage3 = nn.Sequential(*_block(32, 48), *_block(48, 48))
        # No stride here: it would weigh even and odd cells of the grid differently, dots in the element-wise maps.
        self.stage4 = nn.Sequential(*_block(48, 64), *_block(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 64, 64) in [0, 1] to logits (B, 10)."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(images))))
        return self.head(features.mean(dim=(2, 3)))


def load_network() -> DigitNet:
    """The trained `DigitNet`, on the CPU and in eval mode; `demo_data/train.py` made its weights.

    Example:
        >>> load_network().training
        False
    """
    network = DigitNet()
    # Stored in half precision; the copy into the parameters makes them float32 again.
    network.load_state_dict(torch.load(DATA / "weights.pt", map_location="cpu", weights_only=True))
    return network.eval()
