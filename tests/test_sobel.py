"""Sobel edges, number by number those of OpenCV, and beside a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pytorch_grad_cam.sobel_cam import sobel_cam as reference
from sklearn.datasets import load_sample_images

from fastcam.visualize import edges
from fastcam.visualize.edges import sobel_cam


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (1, 2), (3, 3), (5, 64), (97, 33), (224, 224), (300, 517)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_of_opencv(shape):
    for img in (noise(*shape, 3), noise(*shape, 3) // 64 * 85, noise(*shape, 4)):
        edges = sobel_cam(img)
        assert edges.dtype == np.uint8 and edges.shape == shape
        np.testing.assert_array_equal(edges, reference(img))


def test_photographs_and_other_memory():
    for img in load_sample_images().images:
        edges = sobel_cam(img)
        assert edges.max() > 200
        np.testing.assert_array_equal(edges, reference(img))
    turned = img[::-1, ::2].transpose(1, 0, 2)
    np.testing.assert_array_equal(sobel_cam(turned), reference(np.ascontiguousarray(turned)))


def test_every_shade_of_grey():
    ramp = np.arange(256)[:, None, None]
    for weights in np.eye(3, dtype=int):  # all levels of a channel beside others, where the sum is rounded
        img = (ramp * weights + (255 - ramp) * np.roll(weights, 1)).astype(np.uint8).repeat(5, 1)
        np.testing.assert_array_equal(sobel_cam(img), reference(img))


@pytest.mark.parametrize("pixels", [1, 50, 333])
def test_bands_of_rows_meet_without_a_seam(pixels, monkeypatch):
    img = noise(23, 31, 3)
    whole = sobel_cam(img)
    monkeypatch.setattr(edges, "_BAND", pixels)
    np.testing.assert_array_equal(sobel_cam(img), whole)


def test_the_formula_pixel_by_pixel():
    img = noise(9, 12, 3)
    grey = np.floor(img @ np.array([0.299, 0.587, 0.114]) + 0.5)
    padded = np.pad(grey, 1, mode="reflect")
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    expected = np.empty((9, 12))
    for i, j in np.ndindex(9, 12):
        window = padded[i : i + 3, j : j + 3]
        x, y = (min(abs((window * kernel).sum()), 255) for kernel in (across, across.T))
        expected[i, j] = np.rint((x + y) / 2)
    assert expected.std() > 20
    np.testing.assert_array_equal(sobel_cam(img), expected)


def test_the_image_is_only_read():
    img = noise(8, 8, 3)
    before = img.copy()
    img.flags.writeable = False
    sobel_cam(img)
    np.testing.assert_array_equal(img, before)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match="img must be a numpy array of uint8, got float64"):
        sobel_cam(np.zeros((4, 4, 3)))
    with pytest.raises(TypeError, match="img must be a numpy array of uint8, got list"):
        sobel_cam([[0]])
    with pytest.raises(ValueError, match=r"img must be RGB \(H, W, 3\), got \(4, 4\)"):
        sobel_cam(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"got \(0, 4, 3\)"):
        sobel_cam(np.zeros((0, 4, 3), np.uint8))
