"""The imputer against a sparse LU decomposition of the equations written out."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu

from fastcam.metrics import NoisyLinearImputer
from fastcam.metrics.multigrid import _prolong, _restrict

from models import photographs

STEPS = {(dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}


def solved(image, known, steps=STEPS):
    """sum_n w_n (v_n - v_i) = 0 at each missing pixel of an image (k, H, W), a row an equation, in float64."""
    image, known = image.double().numpy(), known.numpy().astype(bool)
    k, H, W = image.shape
    number = np.full((H, W), -1)
    number[~known] = np.arange((~known).sum())
    entries, right = [], np.zeros(((~known).sum(), k))
    for y, x in zip(*np.nonzero(~known), strict=True):
        for (dy, dx), w in steps.items():
            if 0 <= y + dy < H and 0 <= x + dx < W:
                entries.append((number[y, x], number[y, x], w))
                if known[y + dy, x + dx]:
                    right[number[y, x]] += w * image[:, y + dy, x + dx]
                else:
                    entries.append((number[y, x], number[y + dy, x + dx], -w))
    rows, columns, values = zip(*entries, strict=True)
    result = image.copy()
    result[:, ~known] = splu(coo_matrix((values, (rows, columns))).tocsc()).solve(right).T
    return torch.from_numpy(result)


def blob(H, W, share):
    """A mask of soft-edged blobs, the given share of it known."""
    low = torch.rand(1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    field = torch.nn.functional.interpolate(low, (H, W), mode="bicubic")[0, 0]
    return field < field.quantile(share)


def corner(H, W):
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[: H // 12, : W // 12] = True
    return mask


def one_pixel(H, W):
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[H // 3, W // 2] = True
    return mask


def isolated(H, W):
    """Missing pixels with known ones all around."""
    mask = torch.ones(H, W, dtype=torch.bool)
    mask[1::5, ::7] = mask[-1, -1] = False
    return mask


def scattered(H, W, share):
    return torch.rand(H, W, generator=torch.Generator().manual_seed(1)) < share


MASKS = {
    "blob 10%": lambda H, W: blob(H, W, 0.1),
    "blob 90%": lambda H, W: blob(H, W, 0.9),
    "corner": corner,
    "one pixel": one_pixel,
    "isolated": isolated,
    "scattered 50%": lambda H, W: scattered(H, W, 0.5),
    "scattered 0.5%": lambda H, W: scattered(H, W, 0.005),
    "one row": lambda H, W: (torch.arange(H) == H - 1)[:, None].expand(H, W),
}


@pytest.mark.parametrize("size", [(96, 128), (61, 47)])
@pytest.mark.parametrize("name", MASKS)
def test_like_a_direct_solver(name, size):
    image, known = photographs(1, *size)[0], MASKS[name](*size)
    exact = solved(image, known)
    result = NoisyLinearImputer(noise=0)(image, known.float())
    assert result.dtype == image.dtype and torch.equal(result[:, known], image[:, known])
    assert (exact[:, ~known] - image[:, ~known]).abs().max() > 0.1
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-6 * image.abs().max().item())


def test_batch_of_different_masks_and_channels():
    images = photographs(len(MASKS), 40, 56, channels=1)
    known = torch.stack([make(40, 56) for make in MASKS.values()])
    result = NoisyLinearImputer(noise=0)(images, known)
    exact = torch.stack([solved(image, mask) for image, mask in zip(images, known, strict=True)])
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (2, 2), (3, 70), (9, 9), (10, 10)])
def test_small_and_thin_images(size):
    image = torch.randn(2, *size)
    known = torch.zeros(size, dtype=torch.bool)
    known[0, 0] = known[-1, -1] = True
    result = NoisyLinearImputer(noise=0)(image, known)
    torch.testing.assert_close(result.double(), solved(image, known), rtol=0, atol=3e-6)


def test_large_values_and_an_offset():
    image, known = 1e4 + 50 * photographs(1, 40, 56)[0], blob(40, 56, 0.3)
    result = NoisyLinearImputer(noise=0)(image, known)
    torch.testing.assert_close(result.double(), solved(image, known), rtol=2e-6, atol=0)


def test_weights_of_the_caller():
    steps = {(dy, dx): 0.05 if dy and dx else 0.3 if dx else 0.1 for dy, dx in STEPS}
    image, known = photographs(1, 30, 40)[0], scattered(30, 40, 0.2)
    imputer = NoisyLinearImputer(0, list(steps.items()))
    exact = solved(image, known, steps)
    assert (exact - solved(image, known)).abs().max() > 0.05
    torch.testing.assert_close(imputer(image, known).double(), exact, rtol=0, atol=3e-6)


def test_nothing_or_everything_missing():
    image = torch.randn(3, 12, 14)
    imputer = NoisyLinearImputer(noise=0)
    assert torch.equal(imputer(image, torch.ones(12, 14)), image)
    assert (imputer(image, torch.zeros(12, 14)) == 0).all()
    both = imputer(torch.stack([image, image]), torch.stack([torch.zeros(12, 14), one_pixel(12, 14).float()]))
    assert (both[0] == 0).all()
    torch.testing.assert_close(both[1], image[:, 4, 7].view(3, 1, 1).expand_as(image), rtol=0, atol=1e-5)


def test_noise_on_missing_pixels_only():
    image, known = torch.randn(3, 40, 50), scattered(40, 50, 0.5)
    change = NoisyLinearImputer(noise=0.3)(image, known) - NoisyLinearImputer(noise=0)(image, known)
    assert (change[:, known] == 0).all()
    assert abs(change[:, ~known].std() - 0.3) < 0.03


def test_interpolation_and_its_transpose():
    for H, W in [(7, 9), (8, 12), (9, 8), (5, 1), (2, 2)]:
        h, w = H // 2 + 1, W // 2 + 1
        P = _prolong(torch.eye(h * w).view(h * w, 1, h, w), H, W).flatten(1)
        R = _restrict(torch.eye(H * W).view(H * W, 1, H, W)).flatten(1)
        torch.testing.assert_close(P.T, R, rtol=0, atol=0)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"mask must be \(H, W\)"):
        NoisyLinearImputer()(torch.zeros(3, 8, 8), torch.ones(8, 9))
    with pytest.raises(ValueError, match=r"mask must be \(H, W\)"):
        NoisyLinearImputer()(torch.zeros(2, 3, 8, 8), torch.ones(8, 8))
    for weighting in ([((0, 1), 1.0)], [((0, 2), 1.0)], [(offset, -1.0) for offset in STEPS]):
        with pytest.raises(ValueError, match="weighting must hold"):
            NoisyLinearImputer(weighting=weighting)
