"""The Triton kernels against the definitions in `ops`, in fp64 where accuracy is judged.

Without a GPU the kernels run in Triton's interpreter, on the CPU; on a GPU as they are, and the tests marked gpu too.
"""

import itertools
import sys

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from fastcam import ops
from fastcam.kernels import tiles
from fastcam.kernels.channel_reduce import channel_reduce, channel_sum
from fastcam.kernels.finish import finish
from fastcam.kernels.masked_inputs import masked_inputs
from fastcam.kernels.overlay import overlay
from fastcam.kernels.principal_component import principal_component

from accuracy import assert_as_accurate_as, fenced

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def channels_last(t):
    return fenced(t.movedim(1, -1)).movedim(-1, 1)


def strided(t):
    """Every second channel and position of a larger tensor, the rest of it NaN."""
    gaps = torch.full_like(t, float("nan"))
    return fenced(torch.stack([torch.stack([t, gaps], -1), torch.stack([gaps, gaps], -1)], 2))[:, :, 0, ..., 0]


def cropped(t):
    """A window of larger maps, which no single stride steps through."""
    return fenced(torch.nn.functional.pad(t, (2, 1), value=float("nan")))[..., 2:-1]


def expanded(t):
    """One value a channel, as the gradient of a mean over positions has it."""
    return fenced(t.flatten(2)[:, :, :1]).view(*t.shape[:2], *[1] * (t.ndim - 2)).expand(t.shape)


def activations(*shape):
    """Like those behind a ReLU: zeros, and none negative, which would let gradcam++ divide by almost 0."""
    return torch.randn(shape).relu()


def check(result, definition, *inputs):
    """Compares a kernel's result with a definition of the inputs, as fp64 and as they are, on the CPU."""
    inputs = [t.cpu() for t in inputs]
    assert result.dtype == torch.float32
    assert_as_accurate_as(definition(*inputs), result, definition(*(t.double() for t in inputs)))


SHAPES = [
    (2, 5, 1, 1),
    (2, 70, 7, 7),
    (1, 33, 5, 9),
    (2, 40, 14, 14),
    (3, 1, 7, 7),
    (1, 1500, 2, 3),
    (1, 20, 24, 25),  # two launches in channels_last
    (1, 3, 65, 70),  # two launches
    (2, 6, 11),
    (1, 9, 3, 4, 5),
]
LAYOUTS = [
    (fenced, fenced),
    (channels_last, channels_last),
    (fenced, expanded),
    (strided, fenced),
    (channels_last, fenced),
    (fenced, cropped),
    (channels_last, expanded),
]
CASES = [  # each shape with each weighting; types and layouts take turns, out of step with both
    pytest.param(weighting, shape, DTYPES[i % 3], *LAYOUTS[i % 7], id=f"{weighting}-{'x'.join(map(str, shape))}-{i}")
    for i, (shape, weighting) in enumerate(itertools.product(SHAPES, ops.WEIGHTINGS), start=1)
]


@pytest.mark.parametrize(("weighting", "shape", "dtype", "layout", "gradient_layout"), CASES)
def test_channel_reduce(device, weighting, shape, dtype, layout, gradient_layout):
    A, G = layout(activations(*shape).to(device, dtype)), gradient_layout(torch.randn(shape).to(device, dtype))
    low = channel_reduce(A, G, weighting)
    assert low.shape == (shape[0], low.shape[1], *shape[2:])
    check(low.sum(1, keepdim=True), lambda A, G: ops.channel_reduce(A, G, weighting), A, G)


@pytest.fixture(params=[0, 2])
def across(request, monkeypatch):
    """Either order of the axes, of which triton's version chooses one."""
    module = sys.modules[channel_reduce.__module__]
    monkeypatch.setattr(module, "ACROSS", tl.constexpr(request.param))
    monkeypatch.setattr(module, "_reduce_kernel", triton.jit(module._reduce_kernel.fn))  # nothing compiled before
    monkeypatch.setattr(module, "_row_sum", triton.jit(module._row_sum.fn))


@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_channel_reduce_in_either_order_of_axes(device, across, weighting):
    whole = weighting in tiles.WHOLE_ROWS
    CT, CR, NR, NT, _ = tiles.reduction(300, 63, 4, False, whole)
    assert min(CT, CR, NT) > 1 and (NR > 1 or not whole), "an axis of one entry says nothing"
    A, G = (fenced(t.to(device)) for t in (activations(2, 300, 7, 9), torch.randn(2, 300, 7, 9)))
    check(channel_reduce(A, G, weighting).sum(1, keepdim=True), lambda A, G: ops.channel_reduce(A, G, weighting), A, G)


@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_programs_share_the_channels_of_an_image(device, weighting, monkeypatch):
    A, G = fenced(activations(3, 300, 7, 7).to(device)), fenced(torch.randn(3, 300, 7, 7, device=device))
    low = channel_reduce(A, G, weighting)
    assert low.shape[1] > 1
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 0)
    alone = channel_reduce(A, G, weighting)
    assert alone.shape[1] == 1
    for maps in (low.sum(1, keepdim=True), alone):
        check(maps, lambda A, G: ops.channel_reduce(A, G, weighting), A, G)


def test_splits_fill_the_gpu_but_leave_no_program_without_channels():
    cpu = torch.device("cpu")  # stands for 132 multiprocessors
    assert [tiles.splits(1, blocks, cpu, most=8) for blocks in (1, 2, 3, 5, 8, 9, 64)] == [1, 2, 2, 3, 8, 5, 8]
    assert [tiles.splits(images, 64, cpu, most=32) for images in (1, 33, 34, 132, 528, 529)] == [32, 32, 16, 8, 2, 1]


def test_tiles_of_a_reduction_have_16_elements_a_thread_and_share_a_row_among_few_lanes():
    for C, N, size, last in itertools.product([1, 3, 64, 2048], [1, 49, 196, 784, 3136, 16384], [2, 4], [False, True]):
        for whole in (True, False) if N <= 512 or not last else [False]:
            CT, CR, NR, NT, warps = tiles.reduction(C, N, size, last, whole)
            assert 512 * warps >= CT * CR * NR * NT and warps <= 32
            assert not whole or N <= NR * NT < max(2 * N, 2)
    assert tiles.reduction(2048, 49, 4, False, True) == (16, 4, 4, 16, 8)  # 16 lanes to a row
    assert tiles.reduction(2048, 49, 2, True, True) == (64, 1, 1, 64, 8)  # 128 bytes of channels
    assert tiles.reduction(64, 3136, 2, False, False) == (1, 2, 1, 2048, 8)


def test_tiles_of_resized_maps_cover_every_row_and_waste_few_columns():
    for images, H, W, size in itertools.product([1, 8, 256], [1, 7, 224, 1000], [1, 30, 224, 299, 672, 4096], [2, 4]):
        rows, columns, band, warps = tiles.resized(images, H, W, 196, size)
        assert rows * columns == 1024 and band % rows == 0 and band < H + rows and band * columns <= 16384
        assert 1024 // (32 * warps) * size == 16  # bytes a thread
    assert tiles.resized(256, 224, 224, 196, 4) == (32, 32, 224, 8)
    assert tiles.resized(1, 224, 224, 196, 4) == (32, 32, 32, 8)
    assert tiles.resized(1, 1, 4096, 512, 4) == (1, 1024, 1, 8)


@pytest.mark.parametrize("layout", [fenced, channels_last, strided])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channel_sum(device, dtype, layout):
    A, weights = layout(torch.randn(2, 150, 6, 7).to(device, dtype)), fenced(torch.randn(150, 2, device=device)).T
    low = channel_sum(A, weights)
    assert low.shape[1] > 1
    check(low.sum(1, keepdim=True), ops.channel_sum, A, weights)


@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
@pytest.mark.parametrize("shape", [(4, 5, 4, 4), (4, 2, 65, 64)], ids=["one-launch", "two-launches"])
def test_channel_reduce_keeps_nan_where_the_definition_does(device, shape, weighting):
    A, G = activations(*shape), torch.randn(shape)
    A[0, 1, 2, 3] = G[1, 1, 2, 3] = G[2, :, 0, 0] = float("nan")
    expected = ops.channel_reduce(A, G, weighting)
    assert expected[:3].isnan().any() and expected[3].isfinite().all()
    torch.testing.assert_close(
        channel_reduce(A.to(device), G.to(device), weighting).sum(1, keepdim=True).cpu(), expected, equal_nan=True
    )


FINISH = {
    "one-layer": ([(2, 3, 7, 7)], (56, 45)),
    "odd-sizes": ([(2, 1, 5, 9)], (33, 20)),
    "one-pixel": ([(2, 2, 1, 1)], (5, 6)),
    "to-one-pixel": ([(2, 1, 6, 5)], (1, 1)),
    "one-row": ([(1, 2, 1, 9)], (4, 31)),
    "same-size": ([(1, 2, 7, 7)], (7, 7)),
    "smaller": ([(2, 2, 21, 32)], (17, 9)),
    "more-than-a-block": ([(1, 1, 33, 40)], (47, 80)),  # 1320 positions and 5576 samples in blocks of 1024
    "three-layers": ([(2, 2, 7, 7), (2, 3, 14, 14), (2, 1, 5, 3)], (64, 48)),
    "layers-of-one-size": ([(1, 2, 6, 6), (1, 1, 6, 6)], (24, 25)),
    "layers-smaller": ([(1, 2, 20, 30), (1, 3, 14, 14)], (25, 20)),
}


@pytest.mark.parametrize(("shapes", "size"), FINISH.values(), ids=FINISH)
def test_finish(device, shapes, size):
    lows = [fenced(torch.randn(shape, device=device)) for shape in shapes]
    maps = finish(lows, size)
    assert maps.shape == (shapes[0][0], *size)
    assert maps.min() >= 0 and maps.max() <= 1
    check(maps, lambda *lows: ops.finish(lows, size), *lows)


def test_finish_of_lines(device):
    lows = [fenced(torch.randn(2, 3, 7, device=device)), fenced(torch.randn(2, 1, 30, device=device))]
    maps = finish(lows, (45,))
    assert maps.shape == (2, 45) and maps.amax(1).min() > 0.999
    check(maps, lambda *lows: ops.finish(lows, (45,)), *lows)


@pytest.mark.parametrize(("low", "size"), [((9,), (40,)), ((5, 6), (20, 21)), ((3, 4, 5), (8, 9, 20))], ids=str)
@pytest.mark.parametrize("interpolation", [None, "linear", "cubic"])
def test_what_is_finished_where_there_are_kernels(device, low, size, interpolation, monkeypatch):
    lows = [torch.randn(2, 3, *low, device=device), torch.randn(2, 1, *reversed(low), device=device)]
    expected = ops.finish([low.cpu() for low in lows], size, interpolation)
    launched = []
    monkeypatch.setattr(ops, "_on_kernel", lambda t: True)
    monkeypatch.setattr("fastcam.kernels.finish.finish", lambda *given: launched.append(given) or finish(*given))
    actual = ops.finish(lows, size, interpolation).cpu()
    assert bool(launched) == (interpolation != "cubic" and len(low) < 3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(20))
def test_finish_finds_the_extremes_at_any_sizes(device, seed):
    torch.manual_seed(seed)
    layers = [torch.randn(8, 1, *torch.randint(1, high, (2,)), device=device) for high in (24, 6, 4)]
    for lows, size in [(layers[:1], (1, 24)), (layers[1:2], (7, 30)), (layers[1:], (20, 50))]:
        size = torch.randint(*size, (2,)).tolist()
        torch.testing.assert_close(finish(lows, size).cpu(), ops.finish([low.cpu() for low in lows], size))


@pytest.mark.parametrize("value", [3.0, 0.1, -2.0, 0.0])
def test_finish_makes_a_constant_map_zero(device, value):
    assert (finish([torch.full((2, 1, 7, 7), value, device=device)], (20, 30)) == 0).all()


def test_finish_of_faint_maps_adds_the_same_1e_7(device):
    lows = [1e-9 * torch.randn(2, 2, 5, 5, device=device), 1e-9 * torch.randn(2, 1, 4, 6, device=device)]
    check(finish(lows, (20, 21)), lambda *lows: ops.finish(lows, (20, 21)), *lows)


def test_finish_of_layers_that_cancel_stays_in_0_1(device):
    low = torch.rand(8, 1, 2, 2, device=device)  # min_max of low and of -low add up to 1, but for rounding
    shift = low.amax((2, 3), keepdim=True)
    maps = finish([low, shift - low], (31, 43))
    assert maps.min() >= 0 and maps.max() <= 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_finish_keeps_a_broken_map_to_its_image(device, value):
    lows = [torch.randn(3, 2, 7, 7, device=device), torch.randn(3, 1, 4, 5, device=device)]
    alone = finish([low[2:] for low in lows], (20, 30))
    lows[0][0, 1, 3, 3] = lows[1][1, 0, 0, 0] = value
    maps = finish(lows, (20, 30))
    assert maps[:2].isnan().all()
    assert torch.equal(maps[2:], alone)
    assert ops.finish([low.cpu() for low in lows], (20, 30))[:2].isnan().all()


def features(*shape):
    """Channel vectors with one strong component, and a mean that is not zero."""
    strong = torch.randn(shape[0], 1, *shape[2:]) * torch.randn(*shape[:2], *[1] * (len(shape) - 2))
    return strong + 0.3 * torch.randn(shape) + 1


COMPONENT = [
    ((2, 300, 7, 7), torch.float32, fenced),
    ((1, 700, 8, 8), torch.float32, channels_last),
    ((3, 5, 7, 7), torch.float32, strided),
    ((2, 12, 4, 4), torch.float32, cropped),
    ((2, 100, 7, 7), torch.bfloat16, channels_last),
    ((2, 100, 5, 6), torch.float16, fenced),
    ((2, 1, 3, 3), torch.float32, fenced),
    ((2, 20, 1, 1), torch.float32, fenced),
    ((2, 50, 31), torch.float32, fenced),
    ((1, 40, 2, 3, 4), torch.float16, channels_last),
]


@pytest.mark.parametrize(("shape", "dtype", "layout"), COMPONENT)
def test_principal_component(device, shape, dtype, layout):
    X = layout(features(*shape).to(device, dtype))
    p = principal_component(X)
    assert p.shape == (shape[0], 1, *shape[2:])
    check(p, ops.principal_component, X)


def test_principal_component_takes_one_program_for_many_images(device, monkeypatch):
    X = features(3, 100, 4, 4).to(device)
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 0)
    check(principal_component(X), ops.principal_component, X)


def test_principal_component_of_rank_one_and_of_nothing(device):
    rank_one = torch.randn(2, 1, 6, 6, device=device) * torch.rand(2, 40, 1, 1, device=device)
    check(principal_component(rank_one), ops.principal_component, rank_one)
    assert (principal_component(torch.ones(2, 20, 5, 5, device=device)) == 0).all()
    assert (principal_component(torch.full((1, 20, 4, 4), float("nan"), device=device)) == 0).all()


def test_principal_component_counts_nan_as_zero(device):
    X = features(2, 70, 7, 7).to(device)
    X[0, 3, 2, 2] = X[1, :, 0, 0] = float("nan")
    check(principal_component(X), ops.principal_component, X)
    assert torch.equal(principal_component(X), principal_component(X.nan_to_num()))


@pytest.mark.parametrize(("leak", "sign"), [(1e-3, -1), (1e-5, 1), (0, 1)], ids=["correlated", "tie", "exact-tie"])
def test_principal_component_has_its_largest_value_positive_on_a_tie(device, leak, sign):
    u = torch.tensor([6, -2, -2, -2, 0, 0, 0, 0, 1, -1, 2, -2, 1, -1, 0, 0.0]).view(
        1, 1, 4, 4
    )  # leads, cancels in the mean
    w = torch.tensor([1.0] * 8 + [-1.0] * 8).view(1, 1, 4, 4)  # is the mean, orthogonal to u
    X = torch.cat([8 * u, -8 * u, w.expand(1, 20, 4, 4), -leak * u], 1).to(device)
    p = principal_component(X)
    check(p, ops.principal_component, X)
    assert p[0, 0, 0, 0] * sign > 0


def check_masked(x, masks, images, baseline=None, align_corners=True):
    """Compares the kernel's rows with the definition of them, as fp64 and as they are, on the CPU."""
    rows = masked_inputs(x, masks, images, baseline, align_corners)
    assert rows.dtype == x.dtype
    given = [t if t is None else t.cpu() for t in (x, masks, images, baseline)]
    exact = [t if t is None or t is given[2] else t.double() for t in given]
    expected = ops.masked_inputs(*given, align_corners)
    assert rows.stride() == expected.stride()
    assert_as_accurate_as(expected, rows, ops.masked_inputs(*exact, align_corners))
    return rows


MASKED = {  # sizes of masks and images
    "cells": ((4, 6), (2, 3, 27, 41)),  # the borders of cells are sampled; 1107 pixels
    "all-pixels": ((5, 9), (2, 3, 9, 13)),
    "rows-sampled": ((2, 8), (2, 3, 12, 11)),
    "one-pixel": ((1, 1), (2, 3, 5, 6)),
    "to-one-pixel": ((6, 5), (2, 3, 1, 1)),
    "one-row": ((1, 9), (2, 1, 4, 31)),
    "one-column": ((6, 1), (2, 4, 25, 3)),
    "same-size": ((7, 7), (2, 3, 7, 7)),
    "smaller": ((21, 32), (2, 4, 17, 9)),
    "three-tiles": ((2, 3), (2, 3, 45, 61)),
    "whole-tiles": ((3, 4), (2, 3, 32, 32)),
    "more-than-a-block": ((33, 40), (2, 1, 67, 81)),  # 5280 samples, tiles of 2048 pixels
}
MASKED_LAYOUTS = [fenced, channels_last, strided, cropped]
MASKED_CASES = [
    pytest.param(*case, aligned, seen, DTYPES[i % 3], MASKED_LAYOUTS[i % 4], id=f"{name}-{aligned}-{seen}-{i}")
    for i, ((name, case), aligned, seen) in enumerate(itertools.product(MASKED.items(), [True, False], [True, False]))
]


@pytest.mark.parametrize(("size", "shape", "align_corners", "with_baseline", "dtype", "layout"), MASKED_CASES)
def test_masked_inputs(device, size, shape, align_corners, with_baseline, dtype, layout):
    x, masks = layout(torch.randn(shape).to(device, dtype)), fenced(torch.randn(3, *size).to(device))
    baseline = fenced(torch.randn(shape).to(device, dtype)) if with_baseline else None
    check_masked(x, masks, torch.tensor([1, 0, 1], device=device), baseline, align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", [fenced, channels_last, strided])
def test_masked_inputs_of_lines(device, layout, align_corners):
    x, baseline = (layout(torch.randn(2, 3, 41).to(device)) for _ in range(2))
    masks, images = torch.randn(3, 9, device=device)[:, ::2], torch.tensor([1, 0, 1], device=device)
    assert check_masked(x, masks, images, None, align_corners).is_contiguous()
    check_masked(x, masks, images, baseline, align_corners)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("align_corners", [True, False])
def test_masked_inputs_finds_the_extremes_at_any_sizes(device, align_corners, seed):
    torch.manual_seed(seed)
    for low, high in [((1, 12), (1, 24)), ((1, 5), (8, 32))]:
        masks = torch.randn(2, *torch.randint(*low, (2,)), device=device)
        x = torch.ones(1, 1, *torch.randint(*high, (2,)), device=device)
        images = torch.zeros(2, dtype=torch.long, device=device)
        rows = masked_inputs(x, masks, images, None, align_corners).cpu()
        expected = ops.masked_inputs(x.cpu(), masks.cpu(), images.cpu(), None, align_corners)
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_masked_inputs_takes_masks_and_images_of_any_type(device, index, dtype):
    x, masks = fenced(torch.randn(3, 3, 20, 11).to(device)), fenced(torch.randn(5, 4, 4).to(device, dtype))
    images = torch.tensor([2, 0, 0, 2, 1], dtype=index, device=device)
    check_masked(x, masks, images)
    check_masked(x, masks, images, torch.randn(3, 3, 20, 11).to(device, torch.float16))


@pytest.mark.parametrize("of", ["masks", "images", "baseline"])
def test_masked_inputs_takes_any_strides(device, of):
    x, baseline = torch.randn(3, 3, 12, 11, device=device), torch.randn(3, 3, 12, 22, device=device)[..., ::2]
    masks, images = torch.randn(5, 8, 4, device=device).mT, torch.tensor([2, 1, 0, 1, 0, 2, 2, 0, 1, 0], device=device)
    check_masked(
        x,
        masks if of == "masks" else masks.contiguous(),
        images[::2] if of == "images" else images[::2].contiguous(),
        baseline if of == "baseline" else None,
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", [fenced, channels_last])
@pytest.mark.parametrize("value", [3.0, 0.1, -2.0, 0.0])
def test_a_constant_mask_shows_the_baseline_alone(device, value, layout, align_corners):
    x, masks = layout(torch.randn(2, 3, 19, 23, device=device)), torch.full((2, 7, 6), value, device=device)
    images, baseline = torch.tensor([1, 0], device=device), torch.randn(2, 3, 19, 23, device=device)
    assert (masked_inputs(x, masks, images, None, align_corners) == 0).all()
    assert torch.equal(masked_inputs(x, masks, images, baseline, align_corners), baseline.flip(0))


def test_faint_masks_have_the_same_1e_8_added(device):
    x, masks = torch.randn(1, 2, 20, 21, device=device), 1e-8 * torch.randn(2, 4, 5, device=device)
    rows = check_masked(x, masks, torch.zeros(2, dtype=torch.long, device=device))
    assert rows.abs().max() < 0.9 * x.abs().max()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("size", [(9, 9), (30, 40)], ids=["all-pixels", "cells"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_mask_keeps_to_its_row(device, value, size):
    x, masks = torch.randn(1, 2, *size, device=device), torch.randn(3, 6, 5, device=device)
    images = torch.zeros(3, dtype=torch.long, device=device)
    alone = masked_inputs(x, masks, images)
    masks[1, 2, 3] = value
    rows, expected = masked_inputs(x, masks, images), ops.masked_inputs(x.cpu(), masks.cpu(), images.cpu())
    assert torch.equal(rows[::2], alone[::2]) and not rows[1].isfinite().all()
    if value != value:
        assert rows[1].isnan().all() and expected[1].isnan().all()


def eight_bits(t):
    return (255 * t.float().nan_to_num()).to(torch.uint8)


OVERLAID = {  # images
    "one-pixel": (2, 3, 1, 1),
    "one-tile": (3, 3, 20, 31),
    "whole-tiles": (2, 3, 32, 64),
    "three-tiles": (2, 3, 45, 61),
    "grey": (2, 1, 37, 40),
}
OVERLAID_LAYOUTS = [fenced, channels_last, strided, cropped, torch.clone]
OVERLAID_CASES = [
    pytest.param(shape, dtype, OVERLAID_LAYOUTS[i % 5], id=f"{name}-{str(dtype)[6:]}-{i}")
    for i, ((name, shape), dtype) in enumerate(itertools.product(OVERLAID.items(), [*DTYPES, torch.uint8]))
]


def check_overlay(images, maps, table, weight=0.5):
    """Compares the kernel's picture with the definition's on the CPU, level by level."""
    pictures = overlay(images, maps, table, weight)
    assert pictures.dtype == torch.uint8 and pictures.is_contiguous()
    expected = ops.overlay(*(t.cpu() for t in (images, maps, table)), weight)
    assert torch.equal(pictures.cpu(), expected)
    return pictures


@pytest.mark.parametrize(("shape", "dtype", "layout"), OVERLAID_CASES)
def test_overlay(device, shape, dtype, layout):
    images = torch.rand(shape, device=device) * torch.tensor([1, 0.3, 0.1], device=device)[: shape[0], None, None, None]
    images = layout(images) if dtype == torch.float32 else layout(images).to(dtype)
    images = eight_bits(images) if dtype == torch.uint8 else images
    maps = torch.rand(shape[0], *shape[2:], device=device)
    table = torch.randint(256, (256, 3), dtype=torch.uint8, device=device)
    pictures = check_overlay(images, maps, table)
    assert (pictures.flatten(1).amax(1) == 255).all()
    check_overlay(images, maps, table.float() / 255, 0.3)


@pytest.mark.parametrize("layout", [fenced, channels_last, strided, cropped])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_overlay_reads_any_strides_in_16_bits(device, dtype, layout):
    images, maps = layout(torch.rand(2, 3, 22, 19).to(device, dtype)), torch.rand(2, 19, 44).to(device, dtype)
    check_overlay(images, maps.mT[:, ::2], torch.randint(256, (256, 3), dtype=torch.uint8, device=device))


def test_overlay_divides_every_level_by_255_exactly():
    levels = torch.arange(256, dtype=torch.float32)
    assert torch.equal(levels * (257 / 65536) + levels * (1 / 255 - 257 / 65536), levels / 255)


def test_overlay_of_levels_that_are_whole(device):
    images, maps = torch.randint(255, (2, 3, 45, 64), dtype=torch.uint8), torch.rand(2, 45, 64)
    check_overlay(images.to(device), maps.to(device), torch.randint(255, (256, 3), dtype=torch.uint8, device=device))


def test_overlay_reads_parts_of_other_tensors(device):
    image, maps = fenced(torch.rand(1, 3, 9, 40, device=device)), torch.rand(4, 9, 40, device=device)
    check_overlay(image.expand(4, -1, -1, -1), maps, torch.rand(3, 256, device=device).T)
    with_alpha = channels_last(torch.rand(4, 4, 9, 40, device=device))
    check_overlay(with_alpha[:, :3], maps, torch.rand(256, 4, device=device)[:, 1:])
    check_overlay(with_alpha[:, 3:], maps.flip(1), torch.rand(256, 3, device=device))


def test_overlay_counts_no_colour_beyond_the_image(device):
    images, maps = torch.rand(2, 3, 20, 31, device=device) / 5, 0.5 + torch.rand(2, 20, 31, device=device) / 2
    table = torch.full((256, 3), 0.3, device=device)
    table[0] = 1
    assert check_overlay(images, maps, table).max() == 255


def test_overlay_programs_of_many_blocks(device, monkeypatch):
    images, maps = torch.rand(2, 3, 70, 61, device=device), torch.rand(2, 70, 61, device=device)  # 4270 pixels
    table = torch.randint(256, (256, 3), dtype=torch.uint8, device=device)
    alone = check_overlay(images, maps, table)
    monkeypatch.setattr(tiles, "overlay", lambda size: 2048)
    assert torch.equal(check_overlay(images, maps, table), alone)
    check_overlay(images.to(memory_format=torch.channels_last), maps, table)


def test_overlay_takes_512_programs_an_image_at_most():
    for size, pixels in [(1, 1024), (224 * 224, 1024), (512 * 1024, 1024), (512 * 1024 + 1, 2048), (2**26, 2**17)]:
        assert tiles.overlay(size) == pixels and -(-size // pixels) <= 512


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, 0.123456789])
def test_overlay_weights_and_levels_at_their_ends(device, weight):
    images = torch.tensor([0, 1, 1 / 3, 0.999999], device=device).view(1, 1, 2, 2).repeat(2, 3, 8, 16)
    maps = torch.linspace(0, 1, 2 * 16 * 32, device=device).view(2, 16, 32)
    table = torch.randint(256, (256, 3), dtype=torch.uint8, device=device)
    check_overlay(images, maps, table, weight)
    images[1] = 0  # black stays black
    assert check_overlay(images, maps, table, weight)[1].any() == (weight < 1)


def test_overlay_with_a_table_in_fp64_is_a_level_off_at_most(device):
    images, maps = torch.rand(2, 3, 40, 50, device=device), torch.rand(2, 40, 50, device=device)
    table = torch.rand(256, 3, dtype=torch.float64, device=device)
    off = overlay(images, maps, table).int().cpu() - ops.overlay(images.cpu(), maps.cpu(), table.cpu()).int()
    assert off.abs().max() <= 1 and (off != 0).sum() < 0.001 * off.numel()


def test_overlay_reads_no_colour_beyond_the_table(device):
    images, table = torch.rand(1, 3, 8, 8, device=device), fenced(torch.rand(256, 3, device=device))
    maps = torch.tensor([-5, 7, 1e30, -1e30], device=device).repeat(16).view(1, 8, 8)
    ends = torch.tensor([0.0, 1, 1, 0], device=device).repeat(16).view(1, 8, 8)
    assert torch.equal(overlay(images, maps, table), overlay(images, ends, table))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("layout", [fenced, channels_last])
def test_overlay_keeps_a_broken_image_to_its_picture(device, layout):
    images, maps = torch.rand(3, 3, 40, 50, device=device), torch.rand(3, 40, 50, device=device)
    images[0, 1, 2, 3], images[1, 2, 39, 49] = float("nan"), float("inf")
    maps[2, 5, 6] = float("nan")
    pictures = check_overlay(layout(images), maps, torch.randint(1, 256, (256, 3), dtype=torch.uint8, device=device))
    assert not pictures[:2].any() and pictures[2].all()


@pytest.mark.parametrize(
    ("images", "maps", "kernel"),
    [
        (torch.float32, torch.float32, True),
        (torch.uint8, torch.float16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float64, torch.float32, False),
        (torch.float32, torch.float64, False),
    ],
    ids=str,
)
def test_which_overlays_are_the_kernels(device, monkeypatch, images, maps, kernel):
    launched = []
    monkeypatch.setattr(ops, "_on_kernel", lambda t: t.dtype in DTYPES)
    monkeypatch.setattr("fastcam.kernels.overlay.overlay", lambda *given: launched.append(given) or overlay(*given))
    given = torch.ones(1, 3, 6, 6, device=device).to(images), torch.rand(1, 6, 6, device=device).to(maps)
    ops.overlay(*given, torch.rand(256, 3, device=device))
    assert bool(launched) == (kernel and (images != torch.uint8 or device.type == "cuda"))


# On a GPU, through `ops`: dispatch, repeatability, and offsets past 2^31, which no interpreter holds.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [fenced, channels_last])
def test_ops_on_a_gpu(device, dtype, layout):
    A, G = (layout(t.to(device, dtype)) for t in (activations(4, 512, 7, 7), torch.randn(4, 512, 7, 7)))
    for weighting in ops.WEIGHTINGS:
        low = ops.channel_reduce(A, G, weighting)
        assert low.shape[1] > 1, "the kernel was not used"
        check(low.sum(1, keepdim=True), lambda A, G, weighting=weighting: ops.channel_reduce(A, G, weighting), A, G)
        assert torch.equal(low, ops.channel_reduce(A, G, weighting))
    maps = ops.finish([low, low[:, :1]], (224, 224))
    check(maps, lambda *lows: ops.finish(lows, (224, 224)), low, low[:, :1])
    assert torch.equal(maps, ops.finish([low, low[:, :1]], (224, 224)))
    check(ops.channel_sum(A, G[..., 0, 0]).sum(1, keepdim=True), ops.channel_sum, A, G[..., 0, 0])
    p = ops.principal_component(A)
    check(p, ops.principal_component, A)
    assert torch.equal(p, ops.principal_component(A))


@pytest.mark.gpu
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [fenced, channels_last, strided, cropped])
def test_masked_inputs_on_a_gpu(device, dtype, layout, align_corners):
    x, baseline = (layout(torch.randn(2, 3, 224, 224).to(device, dtype)) for _ in range(2))
    masks, images = fenced(torch.randn(40, 7, 7, device=device)), torch.arange(40, device=device) % 2
    for below in (None, baseline):
        rows = check_masked(x, masks, images, below, align_corners)
        assert torch.equal(rows, ops.masked_inputs(x, masks, images, below, align_corners)), "the kernel was not used"


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_masked_inputs_past_2_to_the_31(device, layout):
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    x = torch.zeros(14300, 3, 224, 224, dtype=torch.float16, device=device).to(memory_format=layout)
    assert x.numel() > 2**31
    x[-1] = torch.randn(3, 224, 224)
    masks, images = torch.randn(14300, 7, 7, device=device), torch.arange(14300, device=device)
    rows = ops.masked_inputs(x, masks, images)
    assert not rows[:-1].any()
    expected = ops.masked_inputs(*(t[-1:].cpu().double() for t in (x, masks)), torch.tensor([0]))
    torch.testing.assert_close(rows[-1:].cpu().double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_overlay_on_a_gpu(device, dtype, layout):
    images, maps = torch.rand(8, 3, 224, 224, device=device), torch.rand(8, 224, 224, device=device)
    images = (eight_bits(images) if dtype == torch.uint8 else images.to(dtype)).to(memory_format=layout)
    table = torch.randint(256, (256, 3), dtype=torch.uint8, device=device)
    assert torch.equal(check_overlay(images, maps, table), ops.overlay(images, maps, table))
    large = torch.rand(1, 3, 2000, 1500, device=device), torch.rand(1, 2000, 1500, device=device)
    check_overlay(*large, table)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_overlay_past_2_to_the_31(device, layout):
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    table = torch.randint(256, (256, 3), dtype=torch.uint8, device=device)
    for shape in ((14300, 3, 224, 224), (2, 3, 27000, 27000)):
        images = torch.zeros(shape, dtype=torch.uint8, device=device, memory_format=layout)
        maps = torch.zeros(shape[0], *shape[2:], dtype=torch.float16, device=device)
        assert images.numel() > 2**31
        images[-1, :, -200:] = torch.randint(256, (3, 200, shape[3]), dtype=torch.uint8, device=device)
        maps[-1, -200:] = torch.rand(200, shape[3], device=device)
        pictures = ops.overlay(images, maps, table, 0.5)
        assert (pictures[0] == pictures[0, 0, 0]).all()
        last = images[-1:, :, -200:].cpu(), maps[-1:, -200:].cpu()
        assert torch.equal(pictures[-1:, -200:].cpu(), ops.overlay(*last, table.cpu(), 0.5))
        del images, maps, pictures


@pytest.mark.gpu
def test_offsets_past_2_to_the_31(device):
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    A = torch.zeros(44000, 1000, 7, 7, dtype=torch.bfloat16, device=device)
    assert A.numel() > 2**31
    A[-1] = features(1, 1000, 7, 7)[0]
    for weighting in ("gradcam", "layercam"):
        low = ops.channel_reduce(A, A, weighting)
        check(low[-1:].sum(1, keepdim=True), lambda A, weighting=weighting: ops.channel_reduce(A, A, weighting), A[-1:])
        assert not low[:-1].any()
    p = ops.principal_component(A)
    check(p[-1:], ops.principal_component, A[-1:])
    assert not p[:-1].any()
    del A, p
    maps = ops.finish([low], (224, 224))
    assert maps.numel() > 2**31
    check(maps[-1:], lambda low: ops.finish([low], (224, 224)), low[-1:])
    assert not maps[:-1].any()


@pytest.mark.gpu
def test_a_row_past_2_to_the_31(device):
    A = torch.zeros(1, 33, 8192, 8192, dtype=torch.float16, device=device)
    assert A.numel() > 2**31
    A[0, -1, -1] = torch.randn(8192)
    for weighting in ("gradcam", "hirescam"):
        low = ops.channel_reduce(A, A, weighting).sum(1, keepdim=True)
        last = A[:, -1:, -1:]
        if weighting == "hirescam":
            check(low[..., -1:, :], lambda A: ops.channel_reduce(A, A, "hirescam"), last)
        assert low[..., -1, :].any() and not low[..., :-1, :].any()
