"""Image files in, pictures out."""

from __future__ import annotations

import itertools
import struct
import warnings

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from pytorch_grad_cam.utils.image import show_cam_on_image
from torchvision import transforms

import fastcam
from fastcam import check_contrast, denormalize, gradient_picture, load_image, overlay, preprocess_image
from fastcam.figures.grids import method_grid
from fastcam.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, find_images
from fastcam.models import _preprocess_of
from fastcam.results import Images

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


@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos"])
def test_of_an_image_that_would_become_huge_only_the_crop_is_resized(kind, monkeypatch):
    pixels = (photographs(1, 300, 400)[0] * 40 + 128).clamp(0, 255).byte().movedim(0, -1).numpy()
    for (resize, crop), size in itertools.product([(64, 56), (40, 56)], [(300, 7), (7, 400), (300, 90), (120, 400)]):
        preprocess, image = Preprocess(resize, crop, interpolation=kind), Image.fromarray(pixels[: size[0], : size[1]])
        whole = preprocess.pixels(image).int()
        with monkeypatch.context() as patch:
            patch.setattr("fastcam.images._MOST_PIXELS", 0)
            part = preprocess.pixels(image).int()
        assert part.shape == whole.shape and (part - whole).abs().max() <= 2
    line = Image.fromarray(np.arange(20000, dtype=np.uint16).astype(np.uint8)[:, None])  # 5 GB at 256 pixels
    found = Preprocess(256, 224, (0.5,), (0.5,), kind).pixels(line)
    assert found.shape == (1, 224, 224) and (found == found[..., :1]).all() and set(found.unique().tolist()) <= {15, 16}
    with pytest.raises(ValueError, match="1 x 20000 pixels would be resized to 256 x 5120000"):
        Preprocess(256, None, (0.5,), (0.5,)).pixels(line)


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


@pytest.mark.parametrize("colormap", ["jet", "viridis", "tab10"])
@pytest.mark.parametrize("k", [1, 3])
def test_a_batch_is_overlaid_as_its_images_are(k, colormap):
    images, cams = torch.rand(4, k, 20, 30) * torch.tensor([1, 0.5, 0.2, 0.05]).view(4, 1, 1, 1), torch.rand(4, 20, 30)
    expected = [overlay(image, cam, colormap, 0.3) for image, cam in zip(images, cams, strict=True)]
    for given in (images, images.to(memory_format=torch.channels_last), images.double().requires_grad_()):
        for maps in (cams, cams.numpy(), cams.double()):
            pictures = overlay(given, maps, colormap, 0.3)
            assert isinstance(pictures, torch.Tensor) and pictures.dtype == torch.uint8
            np.testing.assert_array_equal(pictures.numpy(), expected)
    bytes_ = (255 * images).byte()
    np.testing.assert_array_equal(overlay(bytes_, cams)[2].numpy(), overlay(bytes_[2], cams[2]))


def test_overlay_leaves_arrays_as_they_are_whatever_their_memory_is_like():
    image, cam = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32), np.random.rand(40, 50)
    expected = overlay(image.copy(), cam)
    image.flags.writeable = cam.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(overlay(image, cam), expected)
        np.testing.assert_array_equal(overlay(image[::-1], cam[::-1])[::-1], expected)
        np.testing.assert_array_equal(overlay(image.copy()[:, ::-1], cam.copy()[:, ::-1])[:, ::-1], expected)
        np.testing.assert_array_equal(
            overlay(np.asfortranarray(image), cam.astype(np.float16).astype(float)).shape, expected.shape
        )
        np.testing.assert_array_equal(overlay(image.astype(np.float64), cam.tolist()), expected)


@pytest.mark.parametrize(
    ("image", "cam", "message"),
    [
        ((4, 3, 8, 9), (4, 9, 8), r"cam must be \(B, H, W\) = \(4, 8, 9\) as the image, got \(4, 9, 8\)"),
        ((4, 3, 8, 9), (8, 9), r"cam must be \(B, H, W\)"),
        ((3, 8, 9), (1, 8, 9), r"cam must be \(H, W\) = \(8, 9\) as the image, got \(1, 8, 9\)"),
        ((4, 2, 8, 9), (4, 8, 9), r"image must be .* or a batch, a tensor .* got \(4, 2, 8, 9\)"),
        ((0, 3, 8, 9), (0, 8, 9), "image must be"),
        ((9,), (9,), "image must be"),
    ],
)
def test_overlay_of_batches_that_do_not_fit(image, cam, message):
    with pytest.raises(ValueError, match=message):
        overlay(torch.rand(image), torch.rand(cam))
    with pytest.raises(ValueError, match=r"a batch, a tensor .* got \(4, 8, 9, 3\)"):
        overlay(np.ones((4, 8, 9, 3)), np.ones((4, 8, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c: overlay(i, c[:5]), r"cam must be \(H, W\) = \(40, 50\) as the image, got \(5, 50\)"),
        (lambda i, c: overlay(i, c * 2), r"cam must be in \[0, 1\], got .* to 2"),
        (lambda i, c: overlay(i, c - 1.5), r"cam must be in \[0, 1\], got -0.5 to -0.5"),
        (lambda i, c: overlay(i, c * float("nan")), "cam must be in"),
        (lambda i, c: overlay(i * float("nan"), c), "image must be in"),
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


IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
MNIST = {"mean": 0.1307, "std": 0.3081}


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 3, 8, 9), (2, 4, 3, 8, 9), (2, 1, 28, 28), (5, 7, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormalize_undoes_preprocess_image(shape, dtype):
    k = shape[-3]
    pictures = torch.rand(shape, dtype=dtype)
    mean, std = torch.rand(k, dtype=torch.float64), torch.rand(k, dtype=torch.float64) + 0.2
    x = preprocess_image(pictures, mean, std)
    by_channel = [(p - m) / s for p, m, s in zip(pictures.double().unbind(-3), mean, std, strict=True)]
    torch.testing.assert_close(x.double(), torch.stack(by_channel, -3).view(x.shape), atol=1e-6, rtol=1e-6)
    assert x.shape == (shape if len(shape) > 3 else (1, *shape)) and x.dtype == dtype
    copy = x.clone()
    for m, s in ((mean, std), (mean.tolist(), tuple(std.tolist())), (mean.view(1, k, 1, 1).numpy(), std.numpy())):
        torch.testing.assert_close(denormalize(x, m, s), pictures.view(x.shape))
    assert torch.equal(x, copy), "out of place"


def test_denormalize_is_as_wide_as_asked_for():
    x = torch.tensor([-9.0, 0.0, 9.0]).view(1, 1, 1, 3).requires_grad_()
    torch.testing.assert_close(denormalize(x, 0.5, 0.25).flatten(), torch.tensor([-1.75, 0.5, 2.75]))
    cut = denormalize(x, 0.5, 0.25, clamp=True)
    assert cut.flatten().tolist() == [0, 0.5, 1]
    (gradient,) = torch.autograd.grad(cut.sum(), x)
    assert gradient.flatten().tolist() == [0, 0.25, 0]
    assert torch.equal(denormalize(x, None, None), x)
    assert denormalize(x.half(), 0.5, 0.25).dtype == torch.float16
    assert torch.equal(Images(x.detach(), mean=0.5).pictures, (x + 0.5).clamp(0, 1))
    assert torch.equal(Images(x.detach(), mean=0.5, std=0.25).pictures, cut)


def test_preprocess_image_takes_what_load_image_gives(photo):
    as_the_reference = preprocess_image(np.asarray(Image.open(photo)), **IMAGENET)
    torch.testing.assert_close(preprocess_image(load_image(photo), **IMAGENET), as_the_reference)
    pixels = torch.from_numpy(np.array(Image.open(photo))).movedim(-1, 0)
    copy = pixels.clone()
    assert torch.equal(preprocess_image(torch.stack([pixels, pixels]), **IMAGENET)[1:], as_the_reference)
    assert torch.equal(pixels, copy)
    grey = preprocess_image(load_image(photo, channels=1), **MNIST)
    torch.testing.assert_close(grey, (load_image(photo, channels=1)[None] - 0.1307) / 0.3081)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: denormalize(x, (0.5, 0.5), 1.0), ValueError, "mean must be one value or 3, got 2"),
        (lambda x: denormalize(x[:, :1], 0.5, IMAGENET_STD), ValueError, "std must be one value or 1, got 3"),
        (lambda x: denormalize(x[0, 0], 0.5, 0.5), ValueError, r"images must be \(..., k, H, W\), got \(8, 8\)"),
        (lambda x: denormalize(x.byte(), 0.5, 0.5), TypeError, "x must be floating point, got uint8"),
        (lambda x: preprocess_image(x.int()), TypeError, "img must be uint8 or floating point, got int32"),
        (lambda x: preprocess_image(x, 0.5, torch.tensor([1.0, 0, 1])), ValueError, "std must be above 0"),
        (lambda x: preprocess_image(x, 0.5, -0.2), ValueError, "std must be above 0, got -0.2"),
        (lambda x: preprocess_image(x[:, :2]), ValueError, "mean must be one value or 2, got 3"),
    ],
)
def test_statistics_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.rand(2, 3, 8, 8))


def test_show_cam_on_image_is_found_beside_the_images():
    assert fastcam.images.show_cam_on_image is fastcam.show_cam_on_image
    with pytest.raises(AttributeError, match="no attribute 'show_cam'"):
        fastcam.images.show_cam  # noqa: B018


def levels(n=3, k=3, low=0, high=255):
    """Pictures whose 8-bit levels lie in a range, both ends included."""
    pixels = torch.randint(low, high + 1, (n, k, 32, 30)).float()
    pixels[..., 0, 0], pixels[..., 0, 1] = low, high
    return pixels / 255


DESTROYED = {
    "twice": levels() / 255,
    "twice-and-dim": levels(high=60) / 255,
    "twice-grey": levels(k=1) / 255,
    "twice-in-16-bits": (levels() / 255).half(),
    "twice-resized": torch.nn.functional.interpolate(levels() / 255, (51, 47), mode="bicubic"),
    "cut-to-bytes-before": (levels() * 1.0).byte().float() / 255,
    "array": (levels(n=1)[0] / 255).movedim(0, -1).numpy(),
    "grey-array": (levels(n=1, k=1)[0, 0] / 255).numpy(),
    "normalised-array": (levels(n=1)[0].movedim(0, -1).numpy() / 255 - IMAGENET_MEAN) / IMAGENET_STD,
    "normalised": preprocess_image((levels() * 255).byte(), **IMAGENET) / 255,
}


@pytest.mark.parametrize("images", DESTROYED.values(), ids=DESTROYED)
def test_an_image_without_contrast_is_told_of(images):
    with pytest.warns(UserWarning, match="nearly no contrast, 0.00.* divided by 255 twice") as caught:
        assert not check_contrast(images)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("statistics", [IMAGENET, MNIST, {"mean": 0.5, "std": 0.5}, {"mean": 0.0, "std": 1.0}], ids=str)
def test_a_normalised_image_without_contrast_is_told_of(statistics):
    destroyed, dark = levels() / 255, levels(high=5)
    for pictures in (dark, dark * 0, dark * 0 + 0.3):
        x = (pictures - torch.tensor(statistics["mean"]).view(-1, 1, 1)) / torch.tensor(statistics["std"]).view(
            -1, 1, 1
        )
        assert check_contrast(x) and check_contrast(x, **statistics)
    x = (destroyed - torch.tensor(statistics["mean"]).view(-1, 1, 1)) / torch.tensor(statistics["std"]).view(-1, 1, 1)
    for known in ({}, statistics):
        with pytest.warns(UserWarning, match="images 0, 1, 2 of 3 have nearly no contrast"):
            assert not check_contrast(x, **known)


SOUND = {
    "photographs": levels(),
    "dark": levels(high=2),
    "a-dark-channel": torch.cat([levels(k=1), levels(k=2, high=1)], 1),
    "bright": levels(low=253),
    "black": torch.zeros(2, 3, 9, 9),
    "one-value": torch.full((2, 3, 9, 9), 0.7),
    "one-colour": torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 9, 9),
    "one-colour-but-for-noise": torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1) + levels(high=1),
    "one-pixel": torch.rand(2, 3, 1, 1) / 255,
    "mask": (torch.rand(2, 1, 9, 9) > 0.9).float(),
    "a-dot": torch.nn.functional.one_hot(torch.tensor(5), 81).view(1, 1, 9, 9).float(),
    "labels": torch.randint(5, (2, 9, 9)),
    "bytes": torch.randint(2, (2, 3, 9, 9), dtype=torch.uint8),
    "array-of-bytes": np.ones((9, 9, 3), np.uint8),
    "levels-of-255": 255 * levels(),
    "noise": torch.randn(2, 3, 9, 9),
    "nothing": torch.zeros(0, 3, 9, 9),
    "broken": torch.full((1, 3, 9, 9), float("nan")),
}


@pytest.mark.parametrize("images", SOUND.values(), ids=SOUND)
@pytest.mark.filterwarnings("error")
def test_no_false_alarm(images):
    assert check_contrast(images)


@pytest.mark.filterwarnings("error")
def test_integers_have_contrast():
    assert check_contrast((255 * levels()).byte(), **MNIST)


def test_only_images_without_contrast_are_named():
    images = levels(n=12)
    images[2:] /= 255
    images[3] = 0
    with pytest.warns(
        UserWarning, match=r"^images 2, 4, 5, 6, 7 \.\.\. of 12 in inputs have nearly no contrast, 0.0039 of"
    ):
        assert not check_contrast(images, name="inputs")
    with pytest.warns(UserWarning, match="^images has nearly no contrast"):
        check_contrast(images[4])


CALLS = {
    "overlay": (overlay, "image"),
    "show_cam_on_image": (fastcam.show_cam_on_image, "img"),
    "preprocess_image": (lambda image, cam: preprocess_image(image), "img"),
}


@pytest.mark.parametrize(("call", "name"), CALLS.values(), ids=CALLS)
def test_who_tells_of_an_image_without_contrast(call, name):
    image, cam = levels(n=1)[0].movedim(0, -1).numpy(), np.random.rand(32, 30).astype(np.float32)
    for destroyed in (image / 255, torch.from_numpy(image / 255).movedim(-1, 0)):
        with pytest.warns(UserWarning, match=f"^{name} has nearly no contrast") as caught:
            call(destroyed, cam)
        assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sound in (image, image * 0, levels(n=1, high=2)[0].movedim(0, -1).numpy()):
            call(sound, cam)
        overlay((image > 2).astype(np.uint8), cam)
        preprocess_image((image > 0.5).astype(np.uint8))


def test_a_batch_without_contrast_is_told_of():
    images = levels(n=4)
    images[1:3] /= 255
    with pytest.warns(UserWarning, match="^images 1, 2 of 4 in image have nearly no contrast"):
        overlay(images, torch.rand(4, 32, 30))


def _ends(text, figure):
    box = text.get_window_extent(figure.canvas.get_renderer())
    return box.x0, box.x1


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(10, None, (2, 5)), (8, None, (1, 8)), (9, 4, (3, 3)), (1, 3, (1, 1))]
)
def test_a_grid_of_images_is_filled_evenly(count, columns, shape):
    options = {} if columns is None else {"columns": columns}
    assert np.shape(np.atleast_2d(Images(torch.rand(count, 3, 8, 8)).plot(**options))) == shape
    plt.close("all")


@pytest.mark.parametrize(("side", "count"), [(28, 3), (224, 10), (300, 6)])
def test_a_grid_of_images_shows_every_pixel_and_whole_titles(side, count):
    titles = [f"layer4.1.conv{n}:45 - 0.5 layer3.0.downsample.0:{n}" for n in range(count)]
    axes = Images(torch.rand(count, 3, side, side), titles=titles).plot()
    figure = axes.flat[0].figure
    figure.set_dpi(120)
    figure.canvas.draw()
    assert all(ax.get_window_extent().width >= side for ax in axes.flat)
    assert ["".join(ax.get_title().split()) for ax in axes.flat] == [title.replace(" ", "") for title in titles]
    for row in axes:
        ends = [_ends(ax.title, figure) for ax in row]
        assert all(left[1] < right[0] for left, right in zip(ends, ends[1:], strict=False))
    plt.close("all")


def test_options_of_a_grid_of_images():
    images, opened = Images(torch.rand(3, 3, 8, 8)), plt.get_fignums()
    with pytest.raises(ValueError, match="columns must be a whole number of 1 or more, got 0"):
        images.plot(columns=0)
    with pytest.raises(ValueError, match="size must be a width in inches above 0, got -1"):
        images.plot(size=-1)
    with pytest.raises(TypeError, match="Images.plot has no option 'image': its options are columns, size"):
        images.plot(image=0)
    assert plt.get_fignums() == opened
    assert images.plot(size=3).flat[0].figure.get_figwidth() > 9
    plt.close("all")
