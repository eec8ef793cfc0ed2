"""Pictures from numbers: inverse transforms by hand, roots of covariances, spectra that hold still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcam.visualize.parametrization import PARAMETRIZATIONS, Fourier, Maco, Pixels, colour_root, parametrization_of

SIZES = [(8, 8), (7, 7), (6, 9), (9, 6), (1, 5), (28, 28)]
generator = torch.Generator().manual_seed(0)


def pictures(count, channels, height, width):
    return torch.rand(count, channels, height, width, dtype=torch.float64, generator=generator) * 0.9 + 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["pixel", "fourier"])
def test_numbers_of_pictures_give_them_back(kind, size):
    p = pictures(2, 3, *size)
    made = PARAMETRIZATIONS[kind]((3, *size), colour_root(3))
    numbers = made.numbers(p)
    assert numbers.shape == (2, *made.size) and not torch.is_complex(numbers)
    torch.testing.assert_close(made.pictures(numbers), p)


@pytest.mark.parametrize("size", SIZES[:4])
def test_fourier_is_the_inverse_transform_of_the_scaled_spectrum(size):
    """Against numpy's full complex transform, the other half of the spectrum filled in by symmetry."""
    H, W = size
    made = Fourier((1, H, W), decay=1.5)
    numbers = made.numbers(pictures(1, 1, H, W))  # of a real image, so that nothing is lost
    half = (torch.view_as_complex(numbers)[0, 0] * made.scale).numpy()
    full = np.zeros((H, W), complex)
    for v in range(H):
        for u in range(W):
            full[v, u] = half[v, u] if u < W // 2 + 1 else np.conj(half[-v % H, W - u])
    picture = 1 / (1 + np.exp(-np.fft.ifft2(full, norm="ortho").real))
    np.testing.assert_allclose(made.pictures(numbers)[0, 0].numpy(), picture, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_scale_falls_with_the_frequency_at_a_spread_of_one(size):
    H, W = size
    scale = Fourier((1, H, W)).scale
    noise = np.random.RandomState(0).randn(4000, H, W)
    spectrum = torch.fft.rfft2(torch.from_numpy(noise), norm="ortho") * scale
    spread = torch.fft.irfft2(spectrum, s=(H, W), norm="ortho").square().mean().sqrt()
    assert spread.item() == pytest.approx(1, rel=0.03)
    torch.testing.assert_close(Fourier((1, H, W), decay=0).scale, torch.ones(H, W // 2 + 1), msg="each frequency once")
    if H == W == 28:
        assert (scale[1, 0] / scale[4, 0]).item() == pytest.approx(4)
        assert (scale[0, 0] / scale[0, 1]).item() == pytest.approx(1)


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_starts_depend_on_the_seed_alone(kind):
    made = PARAMETRIZATIONS[kind]((3, 9, 12))
    both = made.start([torch.Generator().manual_seed(s) for s in (4, 5)])
    torch.testing.assert_close(both[1:], made.start([torch.Generator().manual_seed(5)]), rtol=0, atol=0)
    shown = made.pictures(both)
    assert shown.shape == (2, 3, 9, 12) and not torch.equal(shown[0], shown[1])
    assert shown.min() >= 0 and shown.max() <= 1
    if kind != "maco":
        assert (shown - 0.5).abs().max() < 0.1, "near grey"


def test_pixels_stay_pictures():
    made = Pixels((1, 2, 2))
    numbers = torch.tensor([[[[-0.5, 0.25], [1.0, 3.0]]]])
    assert made.within(numbers).flatten().tolist() == [0, 0.25, 1, 1]


def test_maco_keeps_the_magnitude_of_the_users_pictures():
    given = pictures(1, 1, 10, 13)
    made = Maco((1, 10, 13), None, given)
    logits = torch.logit(given)
    phases = made.numbers(given - 0)
    torch.testing.assert_close(made.pictures(phases), given, atol=1e-5, rtol=0)  # one picture is its own mean
    made = Maco((1, 10, 13), None, pictures(5, 1, 10, 13))
    start = made.start([torch.Generator().manual_seed(0)]).double()
    z = torch.logit(made.pictures(start))
    magnitude = torch.fft.rfft2(z - z.mean(), norm="ortho").abs()[0]
    inner = magnitude[:, :, 1:-1], made.magnitude[:, :, 1:-1].double()  # elsewhere the two halves must agree
    torch.testing.assert_close(*inner, atol=1e-4, rtol=1e-4)
    assert logits.shape == z.shape


def test_maco_without_pictures_falls_as_one_over_f():
    made = Maco((2, 16, 16))
    assert (made.magnitude[:, 1, 0] / made.magnitude[:, 4, 0]).tolist() == pytest.approx([4, 4])
    assert made.magnitude[:, 0, 0].tolist() == [0, 0]


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_colours_are_a_root_of_the_pictures_covariance(channels):
    mixed = torch.einsum(
        "ij,njhw->nihw", torch.randn(channels, channels, dtype=torch.float64), pictures(3, channels, 20, 20)
    )
    root = colour_root(channels, mixed)
    covariance = torch.cov(mixed.movedim(1, 0).flatten(1))
    expected = covariance / covariance.trace() * channels
    values, vectors = torch.linalg.eigh(expected)
    torch.testing.assert_close(root @ root.T, (vectors * values.clamp(min=0.01)) @ vectors.T)
    made = Fourier((channels, 8, 8), root)
    p = pictures(1, channels, 8, 8)
    torch.testing.assert_close(made.pictures(made.numbers(p)), p)


def test_colours_without_pictures():
    assert colour_root(1) is None and colour_root(4) is None and colour_root(1, torch.rand(2, 1, 4, 4)) is None
    root = colour_root(3)
    assert (root @ root.T)[0, 2].item() == pytest.approx(0.75, abs=0.02)
    flat = torch.full((2, 3, 4, 4), 0.3)
    assert torch.isfinite(colour_root(3, flat)).all() and torch.linalg.matrix_rank(colour_root(3, flat)) == 3


def test_the_colours_are_those_of_scikit_learns_photographs():
    from sklearn.datasets import load_sample_images

    pixels = np.concatenate([i.reshape(-1, 3) for i in load_sample_images().images]) / 255.0
    root = colour_root(3)
    np.testing.assert_allclose((root @ root.T).numpy(), np.corrcoef(pixels.T), atol=0.02)


def test_what_settles_begins_with_the_same_pictures():
    made = Fourier((3, 9, 12), colour_root(3))
    numbers = made.start([torch.Generator().manual_seed(3)])
    fine = made.settled()
    torch.testing.assert_close(fine.pictures(fine.numbers(made.pictures(numbers))), made.pictures(numbers))
    assert Pixels((3, 9, 12)).settled() is None and Maco((3, 9, 12)).settled() is None


def test_own_pictures_give_colours_and_a_spectrum_of_the_size_asked_for():
    own = pictures(4, 3, 20, 16)
    torch.testing.assert_close(parametrization_of("fourier", (3, 9, 12), True, own).colours, colour_root(3, own))
    assert parametrization_of("fourier", (3, 9, 12), False, own).colours is None
    assert parametrization_of("maco", (3, 9, 12), True, own).magnitude.shape == (3, 9, 7)
