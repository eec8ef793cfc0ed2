"""The definitions in `ops` against their formulas, written out position by position in fp64 numpy."""

import numpy as np
import pytest
import torch

from fastcam import ops

SHAPE = (2, 3, 4, 5)


def pair(*shape, dtype=torch.float64):
    """Activations and gradients, some of them 0."""
    return torch.randn(shape).relu().to(dtype), torch.where(torch.rand(shape) < 0.2, 0, torch.randn(shape)).to(dtype)


def weight(a, g, weighting):
    """The weight of one channel, from its activations and gradients, flat."""
    if weighting == "gradcam":
        return sum(g) / len(g)
    if weighting == "xgradcam":
        return sum(g_n * a_n / (sum(a) + 1e-7) for a_n, g_n in zip(a, g, strict=True))
    alphas = [g_n**2 / (2 * g_n**2 + sum(a) * g_n**3 + 1e-6) if g_n != 0 else 0 for g_n in g]
    return sum(max(g_n, 0) * alpha for g_n, alpha in zip(g, alphas, strict=True))


def term(a, g, w, weighting):
    """What a channel adds to the map at one position."""
    return {"hirescam": g * a, "gradcamelementwise": max(g * a, 0), "layercam": max(g, 0) * a}.get(weighting, w * a)


def oracle(A, G, weighting):
    """The map `(B, 1, *S)`, and the weights `(B, C)` if each channel has one."""
    (B, C, *S), A, G = A.shape, A.flatten(2).double().numpy(), G.flatten(2).double().numpy()
    maps, weights = np.zeros((B, A.shape[2])), np.zeros((B, C))
    for b in range(B):
        for c in range(C):
            if weighting in ops.CHANNELWISE:
                weights[b, c] = weight(A[b, c], G[b, c], weighting)
            for n in range(A.shape[2]):
                maps[b, n] += term(A[b, c, n], G[b, c, n], weights[b, c], weighting)
    return torch.from_numpy(maps).view(B, 1, *S), torch.from_numpy(weights)


@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 7), (1, 2, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_channel_reduce(weighting, shape):
    A, G = pair(*shape)
    maps, weights = oracle(A, G, weighting)
    torch.testing.assert_close(ops.channel_reduce(A, G, weighting), maps)
    torch.testing.assert_close(ops.weighted_activations(A, G, weighting).sum(1, keepdim=True), maps)
    if weighting in ops.CHANNELWISE:
        torch.testing.assert_close(ops.channel_weights(A, G, weighting), weights)
        torch.testing.assert_close(ops.channel_sum(A, weights), maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_channel_reduce_computes_in_fp32_at_least(weighting, dtype):
    A, G = pair(*SHAPE, dtype=dtype)
    maps = ops.channel_reduce(A, G, weighting)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, oracle(A, G, weighting)[0].float())


def test_channel_reduce_takes_any_strides_and_mixed_types():
    A, G = pair(*SHAPE)
    expected = ops.channel_reduce(A, G.mean((2, 3), keepdim=True).expand(SHAPE).contiguous(), "gradcam")
    expanded = G.mean((2, 3), keepdim=True).expand(SHAPE)
    torch.testing.assert_close(
        ops.channel_reduce(A.to(memory_format=torch.channels_last), expanded, "gradcam"), expected
    )
    mixed = ops.channel_reduce(A.half(), expanded.float(), "gradcam")
    torch.testing.assert_close(mixed, ops.channel_reduce(A.half().double(), expanded, "gradcam").float())


def test_what_does_not_fit_is_an_error():
    A, G = pair(*SHAPE)
    with pytest.raises(ValueError, match="one shape"):
        ops.channel_reduce(A, G[:1], "gradcam")
    with pytest.raises(ValueError, match="weighting must be one of"):
        ops.channel_reduce(A, G, "scorecam")
    with pytest.raises(ValueError, match=r"weights must be \(B, C\) = \(2, 3\) or \(B, T, C\), got \(2, 4\)"):
        ops.channel_sum(A, torch.ones(2, 4))
    with pytest.raises(ValueError, match="1 to 3 spatial dimensions, got 4"):
        ops.resize(torch.rand(1, 2, 3, 4, 5), (4, 6, 8, 9))
    with pytest.raises(ValueError, match='interpolation must be None, "linear" or "cubic", got \'nearest\''):
        ops.finish([torch.rand(1, 1, 3, 4)], (4, 6), "nearest")
    with pytest.raises(ValueError, match="size must have 2 values"):
        ops.resize(torch.rand(1, 3, 4), (6,))
    with pytest.raises(ValueError, match="sign must be"):
        ops.principal_component(A, sign="positive")


def resized(row, size):
    """A row of values at another size: linear between the centres of pixels, constant beyond the outer ones."""
    centres = (np.arange(size) + 0.5) * len(row) / size - 0.5
    return np.interp(centres, np.arange(len(row)), row)


def resized_image(image, size):
    rows = np.stack([resized(row, size[1]) for row in image])
    return np.stack([resized(column, size[0]) for column in rows.T]).T


def normalised(image):
    image = image - image.min()
    return image / (1e-7 + image.max())


@pytest.mark.parametrize(
    ("low", "size"), [((7, 7), (30, 45)), ((6, 9), (5, 4)), ((1, 5), (3, 1)), ((4, 4), (4, 4))], ids=str
)
def test_resize(low, size):
    maps = torch.randn(2, *low, dtype=torch.float64)
    expected = np.stack([resized_image(image, size) for image in maps.numpy()])
    torch.testing.assert_close(ops.resize(maps, size), torch.from_numpy(expected))


def test_resize_in_one_dimension():
    maps = torch.randn(2, 6, dtype=torch.float64)
    expected = np.stack([resized(row, 17) for row in maps.numpy()])
    torch.testing.assert_close(ops.resize(maps, [17]), torch.from_numpy(expected))


def test_min_max():
    maps = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = np.stack([normalised(image) for image in maps.numpy()])
    torch.testing.assert_close(ops.min_max(maps), torch.from_numpy(expected))
    assert (ops.min_max(torch.full((2, 3), 7.0)) == 0).all()


@pytest.mark.parametrize("lows", [[(2, 3, 7, 7)], [(2, 3, 7, 7), (2, 1, 4, 9), (2, 2, 14, 14)]], ids=["one", "three"])
def test_finish(lows):
    lows = [torch.randn(shape, dtype=torch.float64) for shape in lows]
    expected = []
    for b in range(2):
        layers = [normalised(np.maximum(low[b].numpy().sum(0), 0)) for low in lows]
        expected.append(normalised(sum(resized_image(layer, (20, 33)) for layer in layers) / len(layers)))
    torch.testing.assert_close(ops.finish(lows, (20, 33)), torch.from_numpy(np.stack(expected)))


def test_finish_in_one_dimension_and_of_negative_maps():
    low = torch.randn(1, 2, 9, dtype=torch.float64)
    expected = normalised(resized(normalised(np.maximum(low[0].numpy().sum(0), 0)), 20))
    torch.testing.assert_close(ops.finish([low], (20,)), torch.from_numpy(expected)[None])
    assert (ops.finish([-torch.rand(2, 1, 3, 3)], (6, 6)) == 0).all()


def projections(X):
    """Up to their sign, the projections on the first principal component of one image `(C, *S)`, flat."""
    points = np.where(np.isnan(X), 0, X).reshape(len(X), -1).T
    points = points - points.mean(0)
    return points @ np.linalg.svd(points, full_matrices=False)[2][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 20, 3, 4), (2, 4, 5, 6), (1, 1, 3, 3), (2, 12, 12)], ids=str)
def test_principal_component(shape, dtype):
    X = torch.randn(shape, dtype=dtype)
    X[0, 0, 0] = float("nan")
    p = ops.principal_component(X)
    assert p.shape == (shape[0], 1, *shape[2:]) and p.dtype == dtype
    for image, projected in zip(X.double().numpy(), p.flatten(1).double().numpy(), strict=True):
        expected, mean = projections(image), np.nan_to_num(image).reshape(len(image), -1).mean(0)
        expected *= np.sign(np.corrcoef(expected, mean)[0, 1])
        np.testing.assert_allclose(projected, expected, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_principal_component_on_a_tie_has_its_largest_value_positive():
    half = torch.randint(-9, 10, (5, 6, 4, 4)).double()
    p = ops.principal_component(torch.cat([half, -half], 1)).flatten(1)  # the mean over channels is 0
    assert (p.gather(1, p.abs().argmax(1, keepdim=True)) > 0).all()
    expected = projections(torch.cat([half, -half], 1)[0].numpy())
    np.testing.assert_allclose(p[0].abs().numpy(), np.abs(expected), atol=1e-9)


def test_principal_component_of_nothing_is_zero():
    assert (ops.principal_component(torch.ones(2, 5, 3, 3)) == 0).all()
    assert (ops.principal_component(torch.full((1, 5, 3, 3), float("nan"))) == 0).all()


def test_principal_component_with_the_sign_of_lapack():
    X = torch.randn(2, 6, 3, 4)
    X[1, 2, 0, 0] = float("nan")
    expected = np.stack([projections(image) for image in X.numpy()])
    torch.testing.assert_close(ops.principal_component(X, sign="lapack"), torch.from_numpy(expected).view(2, 1, 3, 4))


def stretched(mask, size, align_corners):
    """A mask at another size, one dimension after the other."""
    for axis, n in enumerate(size):
        positions = np.arange(mask.shape[axis])
        centres = np.linspace(0, positions[-1], n) if align_corners else (np.arange(n) + 0.5) * len(positions) / n - 0.5
        mask = np.apply_along_axis(lambda row, c=centres, p=positions: np.interp(c, p, row), axis, mask)
    return mask


def seen_through(x, masks, images, baseline, align_corners):
    """`masked_inputs`, a row at a time."""
    rows = []
    for mask, b in zip(masks.double().numpy(), images.tolist(), strict=True):
        u = stretched(mask, x.shape[2:], align_corners)
        m = (u - u.min()) / (u.max() - u.min() + 1e-8)
        below = 0 if baseline is None else baseline[b].double().numpy() * (1 - m)
        rows.append(x[b].double().numpy() * m + below)
    return torch.from_numpy(np.stack(rows))


MASKED = {  # sizes of masks, and images
    "1d": ((5,), (2, 2, 17)),
    "2d": ((4, 7), (2, 3, 21, 16)),
    "3d": ((3, 2, 4), (2, 1, 5, 6, 7)),
    "one-channel": ((7, 7), (3, 1, 15, 20)),
    "five-channels": ((3, 3), (2, 5, 8, 8)),
    "same-size": ((6, 5), (2, 3, 6, 5)),
    "larger": ((9, 12), (2, 3, 5, 4)),
    "one-row": ((1, 6), (2, 3, 9, 4)),
}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("with_baseline", [True, False])
@pytest.mark.parametrize(("size", "shape"), MASKED.values(), ids=MASKED)
def test_masked_inputs(size, shape, with_baseline, align_corners):
    x, masks = torch.randn(shape, dtype=torch.float64), torch.randn(4, *size, dtype=torch.float64)
    images, baseline = torch.tensor([1, 0, 1, 1]), torch.randn_like(x) if with_baseline else None
    copies = [t if t is None else t.clone() for t in (x, masks, images, baseline)]
    result = ops.masked_inputs(x, masks, images, baseline, align_corners)
    expected = seen_through(*copies, align_corners)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    for now, copy in zip((x, masks, images, baseline), copies, strict=True):
        assert copy is None or torch.equal(now, copy)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("masks_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_masked_inputs_has_the_type_and_memory_format_of_the_images(dtype, masks_dtype, layout):
    x = torch.randn(2, 3, 14, 15).to(dtype, memory_format=layout)
    masks, images, baseline = torch.randn(3, 4, 5).to(masks_dtype), torch.tensor([1, 1, 0]), torch.rand_like(x)
    result = ops.masked_inputs(x, masks, images, baseline)
    assert result.dtype == dtype and result.is_contiguous(memory_format=layout)
    both = {dtype, masks_dtype} == {torch.float64}
    tolerance = {} if dtype in (torch.float16, torch.bfloat16) or both else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(result, seen_through(x, masks, images, baseline, True).to(dtype), **tolerance)


def test_masked_inputs_of_a_slice_is_contiguous():
    x, masks = torch.randn(2, 4, 9, 12)[:, 1:, ::2, 3:], torch.randn(2, 3, 8)[..., ::2]
    result = ops.masked_inputs(x, masks, torch.tensor([1, 0]))
    assert result.is_contiguous()
    torch.testing.assert_close(result, seen_through(x, masks, torch.tensor([1, 0]), None, True).float())


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("value", [3.0, 0.1, -2.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_constant_mask_shows_the_baseline_alone(dtype, value, align_corners):
    x, masks, images = torch.randn(2, 3, 23, 31, dtype=dtype), torch.full((2, 7, 6), value), torch.tensor([1, 0])
    assert (ops.masked_inputs(x, masks, images, align_corners=align_corners) == 0).all()
    baseline = torch.randn_like(x)
    assert torch.equal(ops.masked_inputs(x, masks, images, baseline, align_corners), baseline.flip(0))


def test_masked_inputs_of_faint_and_broken_masks():
    x, images = torch.ones(1, 1, 9, 9, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    masks = torch.randn(3, 3, 3, dtype=torch.float64) * 1e-8
    result = ops.masked_inputs(x, masks, images)
    assert 0.1 < result.max() < 0.9
    torch.testing.assert_close(result, seen_through(x, masks, images, None, True))
    masks[1, 2, 2] = float("nan")
    assert torch.equal(ops.masked_inputs(x, masks, images)[::2], result[::2])
    assert ops.masked_inputs(x, masks, images)[1].isnan().all()


def test_masked_inputs_are_those_of_score_cam():
    """The expression in pytorch-grad-cam's ScoreCAM."""
    A, x = torch.randn(2, 6, 7, 7).relu(), torch.randn(2, 3, 50, 45)
    upsampled = torch.nn.UpsamplingBilinear2d(size=(50, 45))(A)
    mins, maxs = upsampled.amin((2, 3), keepdim=True), upsampled.amax((2, 3), keepdim=True)
    expected = x[:, None] * ((upsampled - mins) / (maxs - mins + 1e-8))[:, :, None]
    result = ops.masked_inputs(x, A.flatten(0, 1), torch.arange(2).repeat_interleave(6))
    torch.testing.assert_close(result, expected.flatten(0, 1), rtol=1e-6, atol=1e-7)


def laid_over(image, levels, table, weight):
    """`overlay`, a value at a time: an image `(k, H, W)` and levels `(H, W)` in numpy."""
    k, H, W = image.shape
    blend = np.zeros((H, W, 3))
    for y, x, c in np.ndindex(H, W, 3):
        blend[y, x, c] = (1 - weight) * table[levels[y, x], c] + weight * image[c if k == 3 else 0, y, x]
    largest = blend.max()
    return np.array([int(255 * (v / (largest or 1))) for v in blend.flat]).reshape(H, W, 3)


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.0, 1.0])
@pytest.mark.parametrize("k", [1, 3])
def test_overlay(k, weight):
    images, levels = torch.rand(3, k, 5, 7, dtype=torch.float64), torch.randint(256, (3, 5, 7))
    images[1] /= 4  # each image is divided by its own largest value
    table = torch.rand(256, 3, dtype=torch.float64)
    copies = [t.clone() for t in (images, levels, table)]
    pictures = ops.overlay(images, (levels + 0.5) / 255, table, weight)
    assert pictures.dtype == torch.uint8 and pictures.shape == (3, 5, 7, 3) and pictures.is_contiguous()
    for picture, image, level in zip(pictures, images, levels, strict=True):
        expected = laid_over(image.numpy(), level.numpy(), table.numpy(), weight)
        np.testing.assert_array_equal(picture.numpy(), expected)
    for now, copy in zip((images, levels, table), copies, strict=True):
        assert torch.equal(now, copy)


def test_overlay_takes_8_bits_for_what_they_are_of_255():
    images, maps = torch.randint(256, (2, 3, 6, 5), dtype=torch.uint8), torch.rand(2, 6, 5)
    table = torch.randint(256, (256, 3), dtype=torch.uint8)
    expected = ops.overlay(images.float() / 255, maps, table.float() / 255)
    assert torch.equal(ops.overlay(images, maps, table), expected)
    assert torch.equal(
        ops.overlay(images.to(memory_format=torch.channels_last), maps.mT.contiguous().mT, table), expected
    )
    black = ops.overlay(images * 0, maps, table, 1.0)
    assert not black.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_overlay_computes_in_fp32_at_least(dtype):
    images, maps, table = torch.rand(2, 3, 9, 8).to(dtype), torch.rand(2, 9, 8).to(dtype), torch.rand(256, 3).to(dtype)
    assert torch.equal(ops.overlay(images, maps, table), ops.overlay(images.float(), maps.float(), table.float()))


@pytest.mark.parametrize(
    ("images", "maps", "table", "message"),
    [
        ((1, 2, 8, 8), (1, 8, 8), (256, 3), r"images must be \(B, 1 or 3, H, W\), got \(1, 2, 8, 8\)"),
        ((3, 8, 8), (8, 8), (256, 3), "images must be"),
        ((2, 3, 8, 8), (2, 4, 4), (256, 3), r"maps must be \(B, H, W\) as images \(2, 3, 8, 8\), got \(2, 4, 4\)"),
        ((2, 3, 8, 8), (1, 8, 8), (256, 3), "maps must be"),
        ((1, 3, 8, 8), (1, 8, 8), (256, 4), r"table must be \(256, 3\), got \(256, 4\)"),
    ],
)
def test_overlay_refuses_what_does_not_fit(images, maps, table, message):
    with pytest.raises(ValueError, match=message):
        ops.overlay(torch.rand(images), torch.rand(maps), torch.rand(table))


@pytest.mark.parametrize(
    ("x", "masks"), [((1, 3, 8, 8), (2, 4)), ((1, 3, 8, 8), (2, 1, 4, 4)), ((1, 3, 8), (2, 4, 4))], ids=str
)
def test_masks_of_another_rank_are_an_error(x, masks):
    with pytest.raises(ValueError, match=r"masks must be \(N, \*s\) of"):
        ops.masked_inputs(torch.rand(x), torch.rand(masks), torch.zeros(2, dtype=torch.long))
