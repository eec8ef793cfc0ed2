"""Image files to model inputs and back. The one file that imports Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def load_image(path: str | os.PathLike[str], channels: int = 3) -> Tensor:
    """An image file as a tensor `(channels, H, W)` in [0, 1], upright, with 1 (grey) or 3 (RGB) channels.

    Raises ValueError, naming the file, if it is no image or a truncated one.
    """
    return _tensor(open_image(path, channels))


@dataclass(frozen=True)
class Preprocess:
    """What stands between an image file and the model: resize the short side, crop the centre, normalise.

    resize, crop   in pixels; None leaves the image's own size
    mean, std      per channel, of images in [0, 1]
    interpolation  a name of Pillow's: bilinear, bicubic, ...
    """

    resize: int | None = 256
    crop: int | None = 224
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __call__(self, path: str | os.PathLike[str] | Image.Image) -> tuple[Tensor, Tensor]:
        """The model's input `(k, h, w)` and the picture it saw `(k, h, w)` in [0, 1], k = the length of `mean`."""
        image = path if isinstance(path, Image.Image) else open_image(path, len(self.mean))
        if self.resize is not None:
            width, height = (self.resize * side // min(image.size) for side in image.size)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop is not None:
            left, top = (round((side - self.crop) / 2) for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        picture = _tensor(image)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (picture - mean) / std, picture

    def for_channels(self, channels: int) -> Preprocess:
        """The same for models with 1 input channel: the mean over the three channels' statistics."""
        if channels == len(self.mean):
            return self
        if channels not in (1, 3):
            raise ValueError(f"image files have 1 or 3 channels, the model takes {channels}")
        mean, std = (float(np.mean(v)) for v in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)


def find_images(paths: Sequence[str | os.PathLike[str]], skip: Path) -> list[Path]:
    """Files as given, folders as the image files in and below them, sorted, but for what lies below `skip`.

    ValueError for what does not exist, and for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if path.resolve() != skip.resolve():
                inside = [p for p in inside if not p.resolve().is_relative_to(skip.resolve())]
            if not inside:
                raise ValueError(f"no image in folder {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"no file or folder {path}")
    return found


def preprocess_image(
    img: np.ndarray, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """A picture `(H, W, k)` or `(H, W)` as a model input `(1, k, H, W)`: (img - mean) / std, as in pytorch-grad-cam.

    img         uint8, which is divided by 255, or floating point, which is taken as it is and keeps its type
    mean, std   one value or one a channel
    Raises ValueError for a std of 0 or lengths that do not fit, TypeError for other integers.
    """
    pixels = np.array(img)
    x = torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).movedim(-1, 0).contiguous()
    x = x.float() / 255 if pixels.dtype == np.uint8 else x
    if not x.is_floating_point():
        raise TypeError(f"img must be uint8 or floating point, got {pixels.dtype}")
    for name, given in (("mean", mean), ("std", std)):
        if len(given) not in (1, len(x)):
            raise ValueError(f"{name} must be one value or {len(x)}, got {len(given)}")
    center, scale = (torch.as_tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (mean, std))
    if (scale == 0).any():
        raise ValueError(f"std must not be 0, got {std}")
    return ((x - center) / scale).unsqueeze(0)


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a uint8 picture `(H, W, 3)` or `(H, W)`."""
    Image.fromarray(picture).save(path, format="PNG")


def save_jpeg(picture: np.ndarray, path: Path) -> None:
    """Write a uint8 picture `(H, W, 3)` or `(H, W)`, at quality 95."""
    Image.fromarray(picture).save(path, format="JPEG", quality=95)


def open_image(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """An image file as Pillow's image, upright, grey or RGB; ValueError, naming the file, if it is none."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode == "F":
                raise ValueError("floating-point pixels have no range of their own")
            if upright.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to 8
                upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
            return upright.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's plug-ins raise what they like, struct.error and SyntaxError included
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def as_image(picture: Any) -> Image.Image:
    """A picture as Pillow's image, grey or RGB; a fourth channel, the transparency, does not count.

    picture   Pillow's, a uint8 array `(H, W)` or `(H, W, k)`, or a tensor `(k, H, W)` or `(H, W)`, uint8 or floating
              point in [0, 1]
    Raises TypeError for another type, ValueError for another number of channels.
    """
    if isinstance(picture, Image.Image):
        return picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
    pixels: Any = picture
    if isinstance(picture, Tensor):
        t = picture.detach().cpu()
        t = t.mul(255).byte() if t.is_floating_point() else t
        pixels = (t.movedim(0, -1) if t.ndim == 3 else t).numpy()
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        got = getattr(picture, "dtype", type(picture).__name__)
        raise TypeError(f"a picture must be Pillow's, a uint8 array (H, W, k) or a tensor (k, H, W), got {got}")
    if pixels.ndim not in (2, 3) or pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"a picture must have 1 or 3 channels, got shape {tuple(picture.shape)}")
    return as_image(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).movedim(-1, 0).contiguous()
