"""Image files and pictures to model inputs, and back. The one file that imports Pillow, and only for files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from fastcam.figures.overlays import show_cam_on_image as show_cam_on_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_FLAT = 1.5 / 255  # of the range: what a second division by 255 leaves, and half as much for the overshoot of a resize
_NARROWEST_STD = 0.2  # of the usual data sets: what a span of normalised values comes to at least
_MOST_PIXELS = 2**26  # of a resized image: what any photograph has, a quarter of a GB


def __getattr__(name: str) -> Any:
    if name == "show_cam_on_image":  # which draws, and is looked for here by those who know the reference
        from fastcam.figures.overlays import show_cam_on_image

        return show_cam_on_image
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        picture = _in_unit_range(self.pixels(path))
        return _normalize(picture, self.mean, self.std), picture

    def normalized(self, pixels: Tensor) -> Tensor:
        """The model's inputs for uint8 pixels `(..., k, h, w)`, on their device: the very numbers of a call."""
        return _normalize(_in_unit_range(pixels), self.mean, self.std)

    def pixels(self, path: str | os.PathLike[str] | Image.Image) -> Tensor:
        """The picture that the model sees, uint8 `(k, h, w)`."""
        from PIL import Image

        image = path if isinstance(path, Image.Image) else open_image(path, len(self.mean))
        if self.resize is not None:
            width, height = (self.resize * side // min(image.size) for side in image.size)
            resampling = Image.Resampling[self.interpolation.upper()]
            if width * height > _MOST_PIXELS:
                return _pixels(self._cropped_from(image, width, height, resampling))
            image = image.resize((width, height), resampling)
        if self.crop is not None:
            image = image.crop(_center(image.size, self.crop))
        return _pixels(image)

    def _cropped_from(self, image: Image.Image, width: int, height: int, resampling: Any) -> Image.Image:
        """The crop of an image that would be too large at this size, one row of pixels say: no more is resized."""
        if self.crop is None:
            raise ValueError(f"{image.width} x {image.height} pixels would be resized to {width} x {height}")
        left, top, right, bottom = _center((width, height), self.crop)
        x, y, x_end, y_end = max(0, left), max(0, top), min(width, right), min(height, bottom)
        across, down = image.width / width, image.height / height
        box = (x * across, y * down, min(x_end * across, image.width), min(y_end * down, image.height))
        part = image.resize((x_end - x, y_end - y), resampling, box=box)
        return part.crop((left - x, top - y, right - x, bottom - y))

    def for_channels(self, channels: int) -> Preprocess:
        """The same for models with 1 input channel: the mean over the three channels' statistics."""
        if channels == len(self.mean):
            return self
        if channels not in (1, 3):
            raise ValueError(f"image files have 1 or 3 channels, the model takes {channels}")
        mean, std = (float(np.mean(v)) for v in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)


def _center(size: Sequence[int], crop: int) -> tuple[int, int, int, int]:
    """The box of a crop."""
    left, top = (round((side - crop) / 2) for side in size)
    return left, top, left + crop, top + crop


def find_images(paths: Sequence[str | os.PathLike[str]], skip: Path | None = None) -> list[Path]:
    """Files as given, folders as the image files in and below them, sorted, but for what lies below `skip`.

    ValueError for what does not exist, and for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if skip is not None and path.resolve() != skip.resolve():
                inside = [p for p in inside if not p.resolve().is_relative_to(skip.resolve())]
            if not inside:
                raise ValueError(f"no image in folder {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"no file or folder {path}")
    return found


def preprocess_image(img: np.ndarray | Tensor, mean: Any = (0.5, 0.5, 0.5), std: Any = (0.5, 0.5, 0.5)) -> Tensor:
    """Pictures as model inputs: (img - mean) / std, for an array as in pytorch-grad-cam.

    img         array `(H, W, k)` or `(H, W)`, or tensor `(..., k, H, W)`, as `load_image` gives it;
                uint8, which is divided by 255, or floating point, which is taken as it is and keeps its type
    mean, std   one value or one a channel
    Gives `(1, k, H, W)` for one picture, for more of them their own shape; on the device of a tensor, out of place.
    Warns of floating-point pictures of nearly no contrast, as `check_contrast` does.
    Raises ValueError for a std of 0 or less or lengths that do not fit, TypeError for other integers.

    >>> import torch
    >>> from fastcam import denormalize, preprocess_image
    >>> pictures = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8)
    >>> x = preprocess_image(pictures, mean=0.1307, std=0.3081)
    >>> bool(torch.allclose(255 * denormalize(x, mean=0.1307, std=0.3081), pictures.float(), atol=1e-3))
    True
    """
    if isinstance(img, Tensor):
        x = img if img.ndim != 3 else img.unsqueeze(0)
    else:
        pixels = np.array(img)
        x = torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).movedim(-1, 0).contiguous().unsqueeze(0)
    if x.dtype == torch.uint8:
        x = x.float() / 255
    elif not x.is_floating_point():
        raise TypeError(f"img must be uint8 or floating point, got {str(x.dtype).removeprefix('torch.')}")
    else:
        check_contrast(x, name="img", stacklevel=3)
    return _normalize(x, mean, std)


def denormalize(x: Tensor, mean: Any, std: Any, *, clamp: bool = False) -> Tensor:
    """Model inputs as pictures again, x std + mean: undoes `preprocess_image`, out of place, with gradients.

    x           floating point `(..., k, H, W)`, any batch and any number of channels; its type and device stay
    mean, std   of pictures in [0, 1], one value or one a channel; None for 0 and 1
    clamp       whether to cut the pictures to [0, 1]
    Raises ValueError for another shape or lengths that do not fit, TypeError for integers.

    >>> import torch
    >>> from fastcam import denormalize
    >>> x = torch.full((2, 3, 4, 4), -1.0)
    >>> denormalize(x, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))[0, :, 0, 0]
    tensor([0.2560, 0.2320, 0.1810])
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {str(x.dtype).removeprefix('torch.')}")
    center, scale = statistics(x, mean, std)
    pictures = x * scale + center
    return pictures.clamp(0, 1) if clamp else pictures


def check_contrast(
    images: np.ndarray | Tensor, mean: Any = None, std: Any = None, *, name: str = "images", stacklevel: int = 2
) -> bool:
    """Whether every image has contrast; warns of those that have nearly none, as after two divisions by 255.

    Nearly none is a span of at most 1.5 / 255 of the valid range, where 8 bits have two levels at most. An image of
    one value passes, black or not, and so do integers, masks of 0 and 1, and dark photographs.

    images      tensor `(..., H, W)`, channels before the rows; array `(H, W)` or `(H, W, k)`
    mean, std   that made the images from pictures in [0, 1], if they are known. Without them images in [0, 1] are
                pictures; the span of others is that of the widest channel times 0.2, the least std in common use
    name        of the images, for the warning
    stacklevel  as in `warnings.warn`: 2 names the caller's line
    A GPU is waited for once.
    """
    if not isinstance(images, Tensor):
        array = np.asarray(images)
        images = torch.from_numpy(np.array(np.moveaxis(array, -1, 0) if array.ndim == 3 else array))
    if not images.is_floating_point() or not images.numel():
        return True
    x = images.detach()[(None,) * max(0, 3 - images.ndim)]  # (..., k, H, W)
    low, high = x.amin((-2, -1)), x.amax((-2, -1))  # (..., k)
    low, high = (v if v.dtype == torch.float64 else v.float() for v in (low, high))
    varied = (high > low).any(-1)
    if mean is None and std is None:
        pictures = (low.amin(-1) >= 0) & (high.amax(-1) <= 1)
        span = torch.where(pictures, high.amax(-1) - low.amin(-1), (high - low).amax(-1) * _NARROWEST_STD)
    else:
        low, high = (denormalize(v[..., None, None], mean, std)[..., 0, 0] for v in (low, high))
        span = high.amax(-1) - low.amin(-1)
    return warn_of_flat(torch.where(varied, span, 0).flatten().tolist(), name, stacklevel + 1)


def warn_of_flat(spans: Sequence[float], name: str, stacklevel: int = 2) -> bool:
    """The verdict and the warning of `check_contrast`, from the share of the valid range that each image spans."""
    flat = [index for index, span in enumerate(spans) if 0 < span <= _FLAT]
    if not flat:
        return True
    which = f"{', '.join(map(str, flat[:5]))}{' ...' if len(flat) > 5 else ''} of {len(spans)}"
    several = (
        f"image{'s' * (len(flat) > 1)} {which}{f' in {name}' * (name != 'images')} {'have' if len(flat) > 1 else 'has'}"
    )
    warnings.warn(
        f"{several if len(spans) > 1 else name + ' has'} nearly no contrast, {max(spans[index] for index in flat):.2g} "
        "of the valid range: pixels divided by 255 twice look like this. Divide uint8 pixels by 255 once, and leave "
        "floats in [0, 1] as they are",
        stacklevel=stacklevel,
    )
    return False


def _normalize(x: Tensor, mean: Any, std: Any) -> Tensor:
    center, scale = statistics(x, mean, std, positive=True)
    return (x - center) / scale


def statistics(x: Tensor, mean: Any, std: Any, positive: bool = False) -> list[Tensor]:
    """mean and std `(1 or k, 1, 1)` as x `(..., k, H, W)` is; None is 0 and 1.

    Raises ValueError for lengths that do not fit and, if `positive`, for a std of 0 or less.
    """
    if x.ndim < 3:
        raise ValueError(f"images must be (..., k, H, W), got {tuple(x.shape)}")
    found = []
    for name, given, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        values = torch.as_tensor(neutral if given is None else given, dtype=x.dtype, device=x.device).flatten()
        if len(values) not in (1, x.shape[-3]):
            raise ValueError(f"{name} must be one value or {x.shape[-3]}, got {len(values)}")
        found.append(values.view(-1, 1, 1))
    if positive and std is not None and not (torch.as_tensor(std) > 0).all():  # where it was given, not where x is
        raise ValueError(f"std must be above 0, got {std}")
    return found


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a uint8 picture `(H, W, 3)` or `(H, W)`."""
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG")


def save_jpeg(picture: np.ndarray, path: Path) -> None:
    """Write a uint8 picture `(H, W, 3)` or `(H, W)`, at quality 95."""
    from PIL import Image

    Image.fromarray(picture).save(path, format="JPEG", quality=95)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """An image with no side longer than `side`; a smaller one as it is."""
    longest = max(image.size)
    if longest <= side:
        return image
    from PIL import Image

    size = [max(1, round(n * side / longest)) for n in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)


def encoded(picture: Image.Image | np.ndarray, kind: str, quality: int = 85) -> bytes:
    """A picture of Pillow's, or uint8 `(H, W, k)`, as the bytes of a file, "JPEG" or "PNG"."""
    from io import BytesIO

    from PIL import Image

    image, file = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture, BytesIO()
    image.save(file, format=kind, **({"quality": quality, "optimize": True} if kind == "JPEG" else {}))
    return file.getvalue()


def open_image(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """An image file as Pillow's image, upright, grey or RGB; ValueError, naming the file, if it is none."""
    from PIL import Image, ImageOps

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
        reason = str(error).replace(f" {os.fspath(path)!r}", "")  # it is named already
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def decoder_version() -> str:
    """Pillow's: what it decodes and resizes may change with it."""
    import PIL

    return PIL.__version__


def as_image(picture: Any) -> Image.Image:
    """A picture as Pillow's image, grey or RGB; a fourth channel, the transparency, does not count.

    picture   Pillow's, a uint8 array `(H, W)` or `(H, W, k)`, or a tensor `(k, H, W)` or `(H, W)`, uint8 or floating
              point in [0, 1]
    Raises TypeError for another type, ValueError for another number of channels.
    """
    from PIL import Image

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
    return _in_unit_range(_pixels(image))


def _in_unit_range(pixels: Tensor) -> Tensor:
    """uint8 divided by 255: by a tensor, as a GPU would multiply with the reciprocal of a number."""
    return pixels.float() / torch.full((), 255.0, device=pixels.device)


def _pixels(image: Image.Image) -> Tensor:
    pixels = np.array(image)
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).movedim(-1, 0).contiguous()
