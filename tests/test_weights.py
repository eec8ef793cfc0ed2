"""The weights of layers and their mosaics: what is drawn, where, in which colours, and what is written beside it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import fastcam
from fastcam.figures.panels import mosaic
from fastcam.visualize import filters

from models import grey_resnet18, tiny
from test_untouched import assert_same, fragile, snapshot


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(ax, h, w, gap=1, times=None):
    """The tiles of the one picture in an Axes, `(rows, columns, h, w)`, cut out by hand."""
    (image,) = ax.images
    whole = np.ma.filled(np.ma.asarray(image.get_array()), np.nan)
    times = times or max(1, min(3, 12 // min(h, w)))
    step, right = h * times + gap, w * times + gap
    rows = [whole[r : r + h * times] for r in range(0, len(whole), step)]
    tiles = np.stack([np.stack([t[:, c : c + w * times] for c in range(0, whole.shape[1], right)]) for t in rows])
    small = tiles[:, :, ::times, ::times]
    assert np.array_equal(tiles, small.repeat(times, 2).repeat(times, 3), equal_nan=True)
    return small


def title(ax):
    """In one line."""
    return ax.get_title().replace("\n", " ")


def labels(ticks):
    return [t.get_text() for t in ticks]


GEOMETRIES = {
    "conv": nn.Conv2d(6, 8, 3),
    "grouped": nn.Conv2d(6, 8, (3, 2), groups=2),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6),
    "1-D": nn.Conv1d(4, 6, 5, groups=2),
    "3-D": nn.Conv3d(2, 4, (2, 3, 3)),
    "linear": nn.Linear(5, 7),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_weights_are_the_layers(name):
    layer = GEOMETRIES[name]
    weights = fastcam.layer_weights(nn.Sequential(layer), "0")
    assert torch.equal(weights, layer.weight) and not weights.requires_grad
    weights.zero_()
    assert layer.weight.abs().min() > 0, "a copy"


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_weights_of_transposed_convolutions_have_the_output_first(groups):
    layer = nn.ConvTranspose2d(8, 12, 3, groups=groups, bias=False).double()
    weights = fastcam.layer_weights(layer, layer)
    assert weights.shape == (12, 8 // groups, 3, 3)
    with torch.no_grad():
        for i in range(8):  # what one value of an input channel becomes
            x = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
            x[0, i] = 1
            expected = torch.zeros(12, 3, 3, dtype=torch.float64)
            group, place = divmod(i, 8 // groups)
            outputs = slice(group * 12 // groups, (group + 1) * 12 // groups)
            expected[outputs] = weights[outputs, place]
            torch.testing.assert_close(layer(x)[0], expected)


def changed(layer):
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.7)
    return layer


NORMALISED = {
    "weight_norm": lambda: changed(parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False))),
    "spectral_norm": lambda: changed(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, bias=False))),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(3, 4, 1, bias=False)),
    "older weight_norm": lambda: changed(weight_norm(nn.Conv2d(3, 4, 3, bias=False))),
    "older spectral_norm": lambda: changed(spectral_norm(nn.Conv2d(3, 4, 3, bias=False))),
    "pruned": lambda: changed(prune.l1_unstructured(nn.Conv2d(3, 4, 3, bias=False), "weight", 0.5)),
    "pruned twice": lambda: prune.random_unstructured(
        prune.l1_unstructured(nn.Conv2d(3, 4, 3, bias=False), "weight", 0.3), "weight", 0.5
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", NORMALISED)
def test_weights_are_those_of_the_next_forward_pass(name):
    net = nn.Sequential(NORMALISED[name]()).train()
    before = snapshot(net)
    weights = fastcam.layer_weights(net, "0")
    assert_same(before, snapshot(net))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(F.conv2d(x, weights), net.eval()(x))
    assert weights.grad_fn is None


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_as_part_of_the_weights(affine):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine)).double()
    net(torch.randn(4, 3, 9, 9, dtype=torch.float64) * 3)
    if affine:
        nn.init.normal_(net[1].weight)
    net.eval()
    weights = fastcam.layer_weights(net, "0", batch_norm="1")
    x, zero = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, weights), net(x) - net(zero))
    with pytest.raises(ValueError, match="batch_norm must be a batch norm of 4 channels"):
        fastcam.layer_weights(net, "0", batch_norm="0")


def test_layers_without_weights():
    net = grey_resnet18()
    with pytest.raises(ValueError, match=r"'layer1.0.relu' \(ReLU\) has no weights .* near it that have: layer1.0.c"):
        fastcam.layer_weights(net, "layer1.0.relu")
    with pytest.raises(ValueError, match=r"inside it that have: layer2.0.conv1, layer2.0.conv2, layer2.0.downsample.0"):
        fastcam.plot_kernels(net, "layer2")
    with pytest.raises(ValueError, match=r"'bn1' \(BatchNorm2d\) has no weights"):
        fastcam.plot_kernels(net, "bn1")
    with pytest.raises(ValueError, match=r"layer must be one layer, 'layer1.\*.conv1' is 2: layer1.0.conv1, layer1.1"):
        fastcam.plot_kernels(net, "layer1.*.conv1")
    with pytest.raises(ValueError, match="no layer 'conv'.*nearest names: conv1"):
        fastcam.plot_kernels(net, "conv")
    with pytest.raises(ValueError, match="LazyConv2d has no weights yet: run the model once"):
        fastcam.layer_weights(nn.Sequential(nn.LazyConv2d(3, 3)), "0")
    with pytest.raises(ValueError, match="layer '1' .ReLU. has no weights between channels$"):
        fastcam.layer_weights(nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU()), "1")
    assert fastcam.layer_weights(net, ["fc"]).shape == fastcam.layer_weights(net, "f*").shape == (10, 512)


BAD = {
    "channels must be from 0 to 7, there are 8 output channels of layer '0': got 8": {"channels": [0, 8]},
    "inputs must be from 0 to 5, there are 6 input channels of layer '0': got -7": {"inputs": -7},
    "channels chooses none of the 8 output channels": {"channels": slice(8, 20)},
    "sort must be None or 'norm', got 'max'": {"sort": "max"},
    "reduce must be None, 'norm', 'sum' or 'mean'": {"reduce": "max"},
    "scale must be 'shared' or 'each'": {"scale": "own"},
    "limit must be a whole number of 1 or more": {"limit": 0},
    r"rgb needs kernels \(out, 3, h, w\), those of layer '0' are \(8, 6, 3, 3\)": {"rgb": True},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_options(message):
    before = plt.get_fignums()
    with pytest.raises(ValueError, match=message):
        fastcam.plot_kernels(nn.Sequential(nn.Conv2d(6, 8, 3)), "0", **BAD[message])
    assert plt.get_fignums() == before, "no empty figure is left"
    for given in ("0", [True], [1.5]):
        with pytest.raises(TypeError, match="channels must be"):
            fastcam.plot_kernels(nn.Sequential(nn.Conv2d(6, 8, 3)), "0", channels=given)


def test_all_kernels_of_a_layer_in_one_picture():
    net = grey_resnet18()
    ax = fastcam.plot_kernels(net, "layer1.0.conv1")
    weights = net.layer1[0].conv1.weight.detach().numpy()
    assert np.array_equal(drawn(ax, 3, 3), weights)
    limit = np.percentile(np.abs(weights), 99)
    np.testing.assert_allclose(ax.images[0].get_clim(), (-limit, limit), rtol=1e-6)
    assert title(ax) == "layer1.0.conv1: 64 filters x 64 channels, 3 x 3"
    assert labels(ax.get_xticklabels()) == labels(ax.get_yticklabels()) == [str(n) for n in range(0, 64, 8)]
    assert list(ax.get_xticks()[:2]) == [4, 84], "the middle of tiles that are 10 pixels apart"
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("output channel", "input channel")
    (bar,) = (a for a in ax.figure.axes if a is not ax)
    assert labels(bar.get_yticklabels()) == [f"{-limit:.3g}", "0", f"{limit:.3g}"]
    assert len(plt.get_fignums()) == 1 and not ax.patches and not ax.texts


def test_kernels_of_one_sign_keep_a_symmetric_scale():
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    nn.init.uniform_(net[0].weight, 0.5, 1.0)
    low, high = fastcam.plot_kernels(net, "0", clip=None).images[0].get_clim()
    assert -low == high == pytest.approx(net[0].weight.max().item())
    assert fastcam.plot_kernels(net, "0", reduce="norm").images[0].get_clim()[0] == 0


def test_sorting_choosing_and_the_share_shown():
    net = nn.Sequential(nn.Conv2d(80, 100, 3))
    weights = net[0].weight.detach().numpy()
    ax = fastcam.plot_kernels(net, "0")
    assert np.array_equal(drawn(ax, 3, 3), weights[:64, :64])
    assert title(ax) == "0: first 64 of 100 filters x first 64 of 80 channels, 3 x 3"
    ax = fastcam.plot_kernels(net, "0", sort="norm", limit=20, inputs=slice(10))
    order = np.argsort(-np.linalg.norm(weights.reshape(100, -1), axis=1), kind="stable")[:20]
    assert np.array_equal(drawn(ax, 3, 3), weights[order][:, :10])
    assert title(ax) == "0: top 20 of 100 filters x 10 of 80 channels, 3 x 3, sorted by norm"
    assert labels(ax.get_yticklabels()) == [str(n) for n in order[::8]]
    ax = fastcam.plot_kernels(net, "0", channels=torch.tensor([7, -1]), inputs=range(5, 9), limit=80)
    assert np.array_equal(drawn(ax, 3, 3), weights[[7, 99], 5:9])
    assert labels(ax.get_yticklabels()) == ["7", "99"] and labels(ax.get_xticklabels()) == ["5", "6", "7", "8"]
    assert drawn(fastcam.plot_kernels(net, "0", limit=100), 3, 3).shape == (100, 80, 3, 3)


def test_single_weights_are_a_table_without_lines():
    for layer in (nn.Linear(30, 12), nn.Conv2d(30, 12, 1)):
        ax = fastcam.plot_kernels(nn.Sequential(layer), "0")
        assert np.array_equal(ax.images[0].get_array(), layer.weight.detach().numpy().reshape(12, 30))
    ax = fastcam.plot_kernels(nn.Sequential(nn.Linear(600, 700)), "0")
    assert ax.images[0].get_array().shape == (512, 512)
    assert title(ax) == "0: first 512 of 700 outputs x first 512 of 600 inputs"


def test_filters_of_one_channel_are_a_square():
    net = nn.Sequential(nn.Conv2d(18, 18, 3, groups=18))
    ax = fastcam.plot_kernels(net, "0")
    tiles = drawn(ax, 3, 3)
    assert tiles.shape == (4, 5, 3, 3), "as many columns as the root of 18, rounded up"
    assert np.array_equal(tiles.reshape(20, 3, 3)[:18], net[0].weight[:, 0].detach().numpy())
    assert np.isnan(tiles.reshape(20, 3, 3)[18:]).all()
    assert title(ax) == "0: 18 filters, depthwise, 3 x 3"
    assert labels(ax.get_yticklabels()) == ["0", "5", "10", "15"]
    assert labels(ax.get_xticklabels()) == ["+0", "+1", "+2", "+3", "+4"]
    ax = fastcam.plot_kernels(net, "0", channels=[3, 1, 4])
    assert labels(ax.texts) == ["3", "1", "4"] and not labels(ax.get_yticklabels())
    grey = fastcam.plot_kernels(grey_resnet18(), "conv1")
    assert drawn(grey, 7, 7).shape == (8, 8, 7, 7) and title(grey) == "conv1: 64 filters x 1 channel, 7 x 7"


def test_the_few_channels_of_many_filters_stand_side_by_side():
    net = nn.Sequential(nn.Conv2d(2, 20, 12))
    whole = fastcam.plot_kernels(net, "0").images[0].get_array()
    weights = net[0].weight.detach().numpy()
    step = 12 + 1 + 12 + 2
    for n in range(20):
        columns = -(-whole.shape[1] // step)
        top, left = n // columns * 14, n % columns * step
        assert np.array_equal(whole[top : top + 12, left : left + 12], weights[n, 0])
        assert np.array_equal(whole[top : top + 12, left + 13 : left + 25], weights[n, 1])
    assert columns == 4  # sqrt(20 * 12 / 25) = 3.1


def test_slices_of_volumes_and_lines_of_signals():
    net = nn.Sequential(nn.Conv3d(2, 3, (2, 12, 13)), nn.Conv1d(3, 4, 6), nn.ConvTranspose2d(3, 4, 12))
    whole = fastcam.plot_kernels(net, "0").images[0].get_array()
    weights = net[0].weight.detach().numpy()
    assert whole.shape == (3 * 14 - 2, 2 * (2 * 14 - 1 + 2) - 2)
    assert np.array_equal(whole[14:26, 29 + 14 : 29 + 27], weights[1, 1, 1])
    ax = fastcam.plot_kernels(net, "1")
    assert np.array_equal(drawn(ax, 1, 6)[:, :, 0], net[1].weight.detach().numpy())
    assert title(ax) == "1: 4 filters x 3 channels, length 6"
    ax = fastcam.plot_kernels(net, "2")
    assert np.array_equal(drawn(ax, 12, 12), net[2].weight.detach().movedim(0, 1).numpy())
    assert title(ax) == "2: 4 filters x 3 channels, 12 x 12, transposed"
    net = nn.Sequential(nn.Conv2d(8, 6, 12, groups=2))
    assert title(fastcam.plot_kernels(net, "0")) == "0: 6 filters x 4 channels of each of 2 groups, 12 x 12"


def test_a_first_layer_in_colour():
    net = nn.Sequential(nn.Conv2d(3, 5, 12), nn.Conv2d(5, 3, 3), nn.Conv2d(3, 4, 3))
    weights = net[0].weight.detach().numpy()
    ax = fastcam.plot_kernels(net, "0")
    whole = ax.images[0].get_array()
    expected = 0.5 + weights / (2 * np.abs(weights).max())
    assert whole.shape == (2 * 13 - 1, 3 * 13 - 1, 3)
    for n in range(5):
        top, left = n // 3 * 13, n % 3 * 13
        np.testing.assert_allclose(np.moveaxis(whole[top : top + 12, left : left + 12], -1, 0), expected[n], atol=1e-6)
    assert f"grey is 0, max |w| {np.abs(weights).max():.3g}" in title(ax)
    assert ax.figure.axes == [ax], "no colour bar"
    each = fastcam.plot_kernels(net, "0", scale="each").images[0].get_array()
    for n in range(5):
        top, left = n // 3 * 13, n % 3 * 13
        tile = np.moveaxis(each[top : top + 12, left : left + 12], -1, 0)
        np.testing.assert_allclose(tile, 0.5 + weights[n] / (2 * np.abs(weights[n]).max()), atol=1e-6)
    assert drawn(fastcam.plot_kernels(net, "0", rgb=False), 12, 12).shape == (5, 3, 12, 12)
    assert drawn(fastcam.plot_kernels(net, "2"), 3, 3).shape == (4, 3, 3, 3), "no colours: not the first layer"
    with pytest.raises(ValueError, match="rgb shows all three input channels"):
        fastcam.plot_kernels(net, "0", rgb=True, inputs=[0, 1, 2])
    assert drawn(fastcam.plot_kernels(net, "0", inputs=[2]), 12, 12).shape == (2, 3, 12, 12)
    assert fastcam.plot_kernels(net, "2", rgb=True).images[0].get_array().ndim == 3


@pytest.mark.parametrize("how", ["norm", "sum", "mean"])
def test_one_tile_a_filter(how):
    net = nn.Sequential(nn.Conv2d(5, 9, 3))
    weights = net[0].weight.detach()
    expected = weights.norm(dim=1) if how == "norm" else getattr(weights, how)(1)
    ax = fastcam.plot_kernels(net, "0", reduce=how)
    np.testing.assert_allclose(drawn(ax, 3, 3).reshape(9, 3, 3), expected.numpy(), rtol=1e-5, atol=1e-7)
    assert title(ax) == f"0: 9 filters x 5 channels, 3 x 3, {how} over the channels"


def test_each_filter_in_its_own_scale():
    net = nn.Sequential(nn.Conv2d(5, 7, 3))
    ax = fastcam.plot_kernels(net, "0", scale="each")
    np.testing.assert_allclose(np.abs(drawn(ax, 3, 3)).reshape(7, -1).max(1), 1)
    assert ax.images[0].get_clim() == (-1, 1) and ax.figure.axes == [ax]
    assert "each filter in its own scale" in title(ax)


def test_dead_filters_are_counted_and_hatched():
    net = nn.Sequential(nn.Conv2d(5, 7, 12), nn.Conv2d(6, 6, 12, groups=6))
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].weight[4] *= 1e-8
        net[1].weight[5] = 0
    ax = fastcam.plot_kernels(net, "0")
    assert title(ax).endswith("12 x 12, 2 dead")
    (patch,) = ax.patches
    assert patch.get_hatch() and len(patch.get_path().vertices) == 10
    box = patch.get_path().vertices[:5]
    assert (*box.min(0), *box.max(0)) == (-0.5, 25.5, 63.5, 37.5), "the third row, all of it"
    (patch,) = fastcam.plot_kernels(net, "1").patches
    box = patch.get_path().vertices
    assert (*box.min(0), *box.max(0)) == (25.5, 12.5, 37.5, 24.5), "the last of 2 x 3 tiles"


def test_a_figure_of_ones_own_and_a_result(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())
    figure, axes = plt.subplots(1, 2)
    assert fastcam.plot_kernels(net, "0", axes[1], sort="norm") is axes[1] and len(axes[1].images) == 1
    before = plt.get_fignums()
    result = fastcam.kernel_figure(net, net[0], sort="norm")
    assert torch.equal(result.data, net[0].weight) and result.layer == "0" and result.settings["sort"] == "norm"
    result.save(tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").read_bytes()[:4] == result._repr_png_()[:4] == b"\x89PNG"
    assert plt.get_fignums() == before
    result.save(tmp_path / "kernels.pt")
    assert torch.equal(torch.load(tmp_path / "kernels.pt")["data"], net[0].weight)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        fastcam.kernel_figure(net, "0", colour=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    net = tiny().to(dtype)
    assert fastcam.layer_weights(net, "tail").dtype == dtype
    ax = fastcam.plot_kernels(net, "tail")
    np.testing.assert_allclose(drawn(ax, 3, 3), net.tail.weight.detach().double().numpy(), rtol=1e-6)


def test_the_model_is_left_as_it_was():
    net = fragile()
    before = snapshot(net)
    fastcam.plot_kernels(net, "tail", batch_norm=None)
    fastcam.layer_weights(net, "body[0]", batch_norm="body[1]")
    with pytest.raises(ValueError, match="no weights"):
        fastcam.plot_kernels(net, "relu")
    assert_same(before, snapshot(net))


def test_a_mosaic_tile_by_tile():
    tiles = np.random.default_rng(0).random((7, 2, 3))
    for columns, gap in ((3, 1), (7, 0), (1, 2)):
        whole = mosaic(tiles, columns, gap)
        assert whole.shape == (-(-7 // columns) * (2 + gap) - gap, columns * (3 + gap) - gap)
        seen = np.zeros(whole.shape, bool)
        for n, tile in enumerate(tiles):
            top, left = n // columns * (2 + gap), n % columns * (3 + gap)
            assert np.array_equal(whole[top : top + 2, left : left + 3], tile)
            seen[top : top + 2, left : left + 3] = True
        assert np.isnan(whole[~seen]).all()
    assert mosaic(np.ones((2, 2, 2, 3)), fill=0.5).shape == (5, 2, 3), "one column"


def test_norms_are_those_of_all_rows_at_once(monkeypatch):
    monkeypatch.setattr(filters, "_AT_ONCE", 70)
    rows = torch.randn(13, 30)
    torch.testing.assert_close(filters._norms(rows), rows.double().norm(dim=1))
    assert filters._norms(1e-30 * rows).min() > 0, "squares of which fp32 does not hold"
