"""Pictures as pytorch-grad-cam makes them, level by level."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam.utils import image as reference

import fastcam
from fastcam.figures import colours, factors, overlays


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"use_rgb": True}, {"image_weight": 0.8}, {"image_weight": 0.0}])
def test_show_cam_on_image_is_the_references(rng, options, dtype):
    img, mask = rng.random((40, 50, 3)).astype(dtype), rng.random((40, 50)).astype(np.float32)
    mask[0, :2] = 0, 1
    ours = fastcam.show_cam_on_image(img, mask, **options)
    np.testing.assert_array_equal(ours, reference.show_cam_on_image(img, mask, **options))
    assert ours.dtype == np.uint8 and ours.std() > 10


@pytest.mark.parametrize("seed", range(8))
def test_the_overlay_is_the_references_to_the_level(seed):
    rng = np.random.default_rng(seed)
    images = rng.random((3, 64, 61, 3)).astype(np.float32) * rng.random((3, 1, 1, 1)).astype(np.float32)
    masks, weight = rng.random((3, 64, 61)).astype(np.float32), rng.random()
    expected = [
        reference.show_cam_on_image(image, mask, use_rgb=True, image_weight=weight)
        for image, mask in zip(images, masks, strict=True)
    ]
    batch = torch.from_numpy(images).movedim(-1, 1), torch.from_numpy(masks)
    np.testing.assert_array_equal(fastcam.overlay(*batch, image_weight=weight), expected)
    for image, mask, picture in zip(images, masks, expected, strict=True):
        np.testing.assert_array_equal(fastcam.overlay(image, mask, image_weight=weight), picture)
        np.testing.assert_array_equal(fastcam.show_cam_on_image(image, mask, True, 2, weight), picture)


@pytest.mark.parametrize("brightest", [255, 254, 61])
def test_the_overlay_of_8_bits_is_the_references_to_the_level(rng, brightest):
    pixels, mask = rng.integers(0, brightest + 1, (200, 190, 3), dtype=np.uint8), rng.random((200, 190), np.float32)
    expected = reference.show_cam_on_image(pixels / np.float32(255), mask, use_rgb=True)  # many a level is a whole one
    np.testing.assert_array_equal(fastcam.overlay(pixels, mask), expected)
    batch = torch.from_numpy(pixels).movedim(-1, 0)[None]
    np.testing.assert_array_equal(fastcam.overlay(batch, mask[None])[0], expected)
    for img in (pixels / np.float32(255), pixels / 255.0):  # fp32 and fp64
        theirs = reference.show_cam_on_image(img, mask, use_rgb=True)
        np.testing.assert_array_equal(fastcam.show_cam_on_image(img, mask, use_rgb=True), theirs)


def test_show_cam_on_image_takes_tensors(rng):
    img, mask = rng.random((40, 50, 3)).astype(np.float32), rng.random((40, 50)).astype(np.float32)
    expected = reference.show_cam_on_image(img, mask, use_rgb=True)
    tensor = torch.from_numpy(img).requires_grad_()
    for given in (tensor, tensor.movedim(-1, 0)):
        np.testing.assert_array_equal(fastcam.show_cam_on_image(given, torch.from_numpy(mask), use_rgb=True), expected)


@pytest.mark.parametrize("number", range(22))
def test_colour_maps_are_opencvs(number):
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], number)[0, :, ::-1]
    level = 0 if number in (2, 7, 8, 13, 14, 15, 16, 17, 20) or number not in colours._OF_OPENCV else 1
    assert np.abs(colours.table(number).astype(int) - table).max() <= level


def test_a_colour_map_that_only_opencv_has_needs_it(monkeypatch):
    colours.table.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    assert colours.table(2).shape == (256, 3)
    with pytest.raises(ImportError, match="colormap 11 is OpenCV's own"):
        colours.table(11)
    assert (colours.table("hot")[0] < 15).all()  # by its name it is matplotlib's


def test_show_cam_on_image_refuses_what_the_reference_refuses(rng):
    img, mask = rng.random((4, 5, 3)), rng.random((4, 5))
    for module in (fastcam, reference):
        with pytest.raises(Exception, match=r"should np.float32 in the range \[0, 1\]"):
            module.show_cam_on_image(img * 255, mask)
        with pytest.raises(Exception, match=r"image_weight should be in the range \[0, 1\]"):
            module.show_cam_on_image(img, mask, image_weight=1.5)
    black = fastcam.show_cam_on_image(img * 0, mask * 0, image_weight=1.0)  # 0 / 0 in the reference
    assert (black == 0).all()
    assert fastcam.show_cam_on_image(img, mask, colormap="viridis").shape == (4, 5, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 7, 3), (6, 7)])
def test_preprocess_image_is_the_references(rng, dtype, shape):
    img = (rng.random(shape) * (255 if dtype is np.uint8 else 1)).astype(dtype)
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]} if len(shape) == 3 else {"mean": [0.4], "std": [0.2]}
    for options in ({}, statistics) if len(shape) == 3 else (statistics,):
        ours, theirs = fastcam.preprocess_image(img, **options), reference.preprocess_image(img, **options)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs) and ours.std() > 0.1
    turned = img[::-1]
    assert torch.equal(fastcam.preprocess_image(turned, **statistics), reference.preprocess_image(turned, **statistics))


def test_preprocess_image_refuses_bad_input():
    with pytest.raises(ValueError, match="std must be above 0"):
        fastcam.preprocess_image(np.zeros((2, 2, 3), np.float32), std=[1, 0, 1])
    with pytest.raises(TypeError, match="uint8 or floating point, got int64"):
        fastcam.preprocess_image(np.zeros((2, 2, 3), int))
    with pytest.raises(ValueError, match="mean must be one value or 1, got 3"):
        fastcam.preprocess_image(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deprocess_image_is_the_references(rng, dtype):
    gradient = rng.normal(size=(20, 30, 3)).astype(dtype) ** 3
    ours = fastcam.deprocess_image(gradient)
    np.testing.assert_array_equal(ours, reference.deprocess_image(gradient))
    assert ours.std() > 5


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("labelled", [False, True])
def test_factorization_on_an_image_is_the_references(rng, n, labelled):
    img, maps = rng.random((96, 112, 3)).astype(np.float32), rng.random((n, 96, 112)).astype(np.float32)
    colors = [np.array([*rng.random(3), 1.0]) for _ in range(n)]
    labels = [f"concept {i}:0.5\nother:0.1" for i in range(n)] if labelled else None
    before = maps.copy()
    ours = fastcam.show_factorization_on_image(img, maps, colors, 0.3, labels)
    assert np.array_equal(maps, before), "the reference writes into its argument"
    theirs = reference.show_factorization_on_image(img, maps.copy(), colors, 0.3, labels)
    off = np.abs(ours[:, :112].astype(int) - theirs[:, :112])
    assert off.max() <= 1 and off.mean() < 0.1  # OpenCV rounds the last pixels of a row by another rule
    assert ours.shape == theirs.shape and ours.std() > 20
    if labelled:
        assert np.abs(ours[:, 112:].astype(int) - theirs[:, 112:]).mean() < 1
    assert fastcam.show_factorization_on_image(img, maps).shape == (96, 112, 3)  # the reference cannot, Q37


def test_factorization_on_an_image_checks_shapes(rng):
    with pytest.raises(ValueError, match=r"explanations must be \(n, H, W\) = \(n, 8, 9\)"):
        fastcam.show_factorization_on_image(rng.random((8, 9, 3)), rng.random((2, 9, 8)))


def test_hsv_is_opencvs():
    colours = np.random.default_rng(1).integers(0, 256, (3000, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(colours[None], cv2.COLOR_RGB2HSV)[0]
    assert [factors._hue_saturation(c) for c in colours] == [tuple(row) for row in hsv[:, :2].tolist()]
    h, s, v = np.meshgrid(np.arange(180), np.arange(0, 256), np.arange(0, 256, 4), indexing="ij")
    every = np.stack([h, s, v], -1).astype(np.uint8).reshape(180, -1, 3)
    ours = factors._rgb_of_hsv(every[..., 0], every[..., 1], every[..., 2])
    np.testing.assert_array_equal(ours, cv2.cvtColor(every, cv2.COLOR_HSV2RGB))


def test_labels_of_concepts_are_the_references(rng):
    scores, labels = rng.random((4, 6)), {i: f"a{i}, b, c, d" for i in range(6)}
    assert factors.create_labels_legend(scores, labels, 3) == reference.create_labels_legend(scores, labels, 3)


def test_what_resizing_leaves_beyond_1_is_cut_off(rng):
    img, mask = rng.random((40, 50, 3)).astype(np.float32), rng.random((40, 50)).astype(np.float32)
    img[0, 0], mask[0, 0], img[1, 1], mask[1, 1] = 1, 1, 0, 0
    over, above = img.copy(), mask.copy()
    over[0, 0], above[0, 0] = 1.0000002, 1.00001
    np.testing.assert_array_equal(
        fastcam.show_cam_on_image(over, mask, use_rgb=True), reference.show_cam_on_image(img, mask, use_rgb=True)
    )
    over[1, 1], above[1, 1] = -1e-6, -1e-6
    np.testing.assert_array_equal(fastcam.overlay(over, above), fastcam.overlay(img, mask))
    np.testing.assert_array_equal(overlays.pixels_of(over), img)
    for beyond in (over + 2e-4, over - 2e-4):
        with pytest.raises(ValueError, match="image must be in"):
            fastcam.overlay(beyond, mask)
    with pytest.raises(ValueError, match="cam must be in"):
        fastcam.overlay(img, mask + 2e-4)
    with pytest.raises(ValueError, match="should np.float32 in the range"):
        fastcam.show_cam_on_image(over + 2e-4, mask)
