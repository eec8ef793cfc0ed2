"""Image files in, pictures out."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from pytorch_grad_cam.utils.image import show_cam_on_image
from torchvision import transforms

from fastcam import gradient_picture, load_image, overlay
from fastcam.figures.grids import method_grid
from fastcam.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, find_images
from fastcam.models import _preprocess_of

from models import photographs


@pytest.fixture
def photo(tmp_path):
    pixels = ((photographs(1, 90, 150)[0] * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_images_with_16_bits(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    for name in ("ramp.png", "ramp.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        torch.testing.assert_close(loaded[0], torch.from_numpy(ramp / np.float32(65535)), atol=0.005, rtol=0)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point pixels"):
        load_image(tmp_path / "float.tif")


def test_whatever_pillow_raises_names_the_file(photo, monkeypatch):
    def broken(image):
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    with pytest.raises(ValueError, match="photo.png cannot be read as an image: required argument"):
        load_image(photo)


def test_load_image(photo, tmp_path):
    pixels = np.asarray(Image.open(photo))
    np.testing.assert_array_equal((load_image(photo) * 255).round().byte().movedim(0, -1), pixels)
    assert load_image(photo, channels=1).shape == (1, 90, 150)
    turned = Image.open(photo)
    turned.getexif()[0x0112] = 6  # taken with the camera on its side
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert load_image(tmp_path / "turned.jpg").shape == (3, 150, 90)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        load_image(photo, channels=2)
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png")


@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (96, 96), (120, 112)])
def test_preprocess_is_torchvisions(photo, resize, crop):
    x, picture = Preprocess(resize, crop)(photo)
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()]
    expected = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(Image.open(photo))
    assert x.shape == picture.shape == (3, crop, crop)
    torch.testing.assert_close(x, expected)
    assert picture.min() >= 0 and picture.max() <= 1


def test_preprocess_takes_the_weights_interpolation(photo):
    weights = torchvision.models.EfficientNet_B0_Weights.DEFAULT
    torch.testing.assert_close(_preprocess_of(weights)(photo)[0], weights.transforms()(Image.open(photo)))
    with pytest.raises(ValueError, match="not for the classification of images"):
        _preprocess_of(torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT)


def test_preprocess_for_grey_models(photo):
    grey = Preprocess(64, 56).for_channels(1)
    assert grey(photo)[0].shape == (1, 56, 56) and grey.mean == pytest.approx([0.449], abs=1e-3)
    with pytest.raises(ValueError, match="image files have 1 or 3 channels, the model takes 4"):
        Preprocess().for_channels(4)


def test_find_images(photo, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert find_images([tmp_path, photo], nowhere) == [photo, photo]
    results = tmp_path / "results"
    results.mkdir()
    (results / "photo.png").write_bytes(photo.read_bytes())
    assert find_images([tmp_path], results) == [photo]
    assert find_images([tmp_path, results / "photo.png"], results) == [photo, results / "photo.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in folder"):
        find_images([tmp_path / "empty"], nowhere)


def test_overlay_is_the_references_picture():
    image = (photographs(1, 40, 50)[0].movedim(0, -1).numpy() * 0.25 + 0.45).clip(0, 1)
    cam = np.linspace(0, 1, 2000, dtype=np.float32).reshape(40, 50)
    theirs = show_cam_on_image(image, cam, use_rgb=True, image_weight=0.4)
    ours = overlay(image, cam, image_weight=0.4)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 3
    assert cv2.absdiff(ours, theirs).mean() < 0.5


def test_overlay_takes_every_kind_of_image():
    image = photographs(1, 40, 50)[0].mul(0.25).add(0.45).clamp(0, 1)
    cam = torch.rand(40, 50)
    expected = overlay(image, cam)
    np.testing.assert_array_equal(overlay(image.movedim(0, -1).numpy(), cam.numpy()), expected)
    grey = image.mean(0)
    np.testing.assert_array_equal(overlay(grey, cam), overlay(grey[None], cam))
    assert overlay((image * 255).byte(), cam).shape == (40, 50, 3)
    assert overlay(image * 0, cam * 0, colormap="gray").max() == 0
    assert not np.array_equal(overlay(image, cam, colormap="viridis"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c: overlay(i, c[:5]), r"cam must be \(H, W\) = \(40, 50\) as the image, got \(5, 50\)"),
        (lambda i, c: overlay(i, c * 2), r"cam must be in \[0, 1\], got .* to 2"),
        (lambda i, c: overlay(i, c * float("nan")), "cam must be in"),
        (lambda i, c: overlay(i * 2, c), r"image must be in \[0, 1\] or uint8, got 1.8 to 1.8"),
        (lambda i, c: overlay(i, c, colormap="jett"), "a name that matplotlib knows, got 'jett'"),
        (lambda i, c: overlay(i[:2], c), "image must be"),
        (lambda i, c: overlay(i, c, image_weight=1.5), r"image_weight must be in \[0, 1\], got 1.5"),
    ],
)
def test_overlay_errors(change, message):
    image = torch.full((3, 40, 50), 0.9)
    cam = torch.ones(40, 50)
    with pytest.raises(ValueError, match=message):
        change(image, cam)


def test_method_grid(tmp_path):
    maps = {"a": list(torch.rand(2, 8, 8)), "b": list(torch.rand(2, 8, 8)), "gradient": list(torch.randn(2, 1, 8, 8))}
    figure = method_grid(list(torch.rand(2, 1, 8, 8)), maps, ["x", "y"])
    assert [a.get_ylabel() for a in figure.axes[::2]] == ["image", "a", "b", "image", "gradient", ""]
    assert [figure.axes[n].get_title() for n in (0, 1, 6, 7)] == ["x", "y", "x", "y"] and len(figure.axes) == 12
    assert not figure.axes[-1].axison and len(figure.axes[-1].images) == 0


def test_gradient_picture():
    gradient = torch.zeros(3, 10, 10)
    gradient[0, 0, 0], gradient[2, 0, 1] = 2, -1
    picture = gradient_picture(gradient)
    assert picture.shape == (10, 10, 3) and picture.dtype == np.uint8
    assert picture[5, 5].tolist() == [128] * 3  # 0 is neutral
    assert picture[0, 0].tolist() == [255, 128, 128] and picture[0, 1].tolist() == [128, 128, 0]
    one = gradient_picture(torch.linspace(-1, 1, 101).view(1, 1, 101))
    assert one[0, 0, 2] > one[0, 0, 0] and one[0, -1, 0] > one[0, -1, 2] and np.ptp(one[0, 50]) < 12
    assert gradient_picture(torch.zeros(1, 4, 4)).std() < 5
    np.testing.assert_array_equal(gradient_picture(gradient.movedim(0, -1).numpy()), picture)
    with pytest.raises(ValueError, match=r"gradient must be \(k, H, W\) or \(H, W, k\).*got \(4, 4\)"):
        gradient_picture(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="not finite"):
        gradient_picture(torch.full((1, 4, 4), torch.nan))
