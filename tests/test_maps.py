"""Feature maps: equal to a truncated model's, from one run that ends early, and what is drawn of them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from test_weights import drawn, labels, title
from torch import nn
from torch._dynamo.testing import CompileCounter

import fastcam
from fastcam.visualize.maps import LayerMaps

from models import TinyNet, VolumeNet, grey_resnet18, photographs, small_vit, tiny, tokens_to_map
from test_untouched import assert_same, fragile, snapshot


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def counting(net, name):
    """How often a part of the model is run from here on."""
    calls = []
    net.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("size", [28, 224])
def test_maps_are_those_of_a_truncated_resnet(size):
    net, x = grey_resnet18().eval(), photographs(2, size, size, 1)
    with torch.no_grad():
        first = net.bn1(net.conv1(x))
        t = net.layer4[0](net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(first.clone()))))))
        last = net.layer4[1]
        second = last.bn2(last.conv2(last.relu(last.bn1(last.conv1(t.clone())))))
        rectified = torch.relu(second + t)
    assert first.min() < 0 and second.min() < 0, "what an in-place ReLU behind would change"
    found = fastcam.feature_maps(net, x, ["bn1", "layer4.1.bn2"])
    assert torch.equal(found["bn1"].data, first) and torch.equal(found["layer4.1.bn2"].data, second)
    assert torch.equal(fastcam.feature_maps(net, x, net.bn1).data, first)
    assert torch.equal(fastcam.feature_maps(net, x, "layer4[1].relu", call=1).data, rectified)
    assert torch.equal(fastcam.feature_maps(net, x, "layer4.1.conv1", which="input").data, t)
    assert found["layer4.1.bn2"].plot() is not None and found["bn1"].plot(image=1) is not None


def test_maps_are_those_of_a_truncated_vgg16():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    net = nn.Sequential(OrderedDict(features=features, head=head)).eval()
    x = photographs(1, 64, 64)
    with torch.no_grad():
        expected = net.features[:25](x)
    assert expected.min() < 0 and isinstance(net.features[25], nn.ReLU) and net.features[25].inplace
    assert torch.equal(fastcam.feature_maps(net, x, "features.24").data, expected)
    given = fastcam.feature_maps(net, x, "features.25", which="input").data
    assert torch.equal(given, expected), "a copy from before the ReLU wrote into it"


def test_one_run_that_ends_with_the_last_layer():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    stem, body, tail, head = (counting(net, name) for name in ("stem", "body", "tail", "head"))
    found = fastcam.feature_maps(net, x, ["body", "stem.*"])
    assert list(found) == ["body", "stem.0", "stem.1", "stem.2"]
    assert (len(stem), len(body), len(tail), len(head)) == (1, 1, 0, 0), "one run, no further than body"
    fastcam.feature_maps(net, x, "tail", which="input")
    assert (len(stem), len(body), len(tail)) == (2, 2, 0), "not even the layer itself"
    for maps in found.values():
        maps.maps, maps.plot(), maps._repr_png_()
    assert len(stem) == 2, "maps of convolutions say how they lie"


class Reusing(TinyNet):
    """Writes into its input, and calls its in-place `relu` twice."""

    def features(self, x):
        return super().features(x.mul_(2))


def test_a_module_that_is_called_twice():
    net, x = tiny(Reusing), torch.randn(2, 3, 20, 24)
    given = x.clone()
    with torch.no_grad():
        body = net.body(net.stem(2 * x))
        tail = net.tail(body.relu())
    relus = [fastcam.feature_maps(net, x, "relu", call=n).data for n in (0, 1)]
    assert torch.equal(relus[0], body.relu()) and torch.equal(relus[1], tail.relu())
    assert torch.equal(fastcam.feature_maps(net, x, "relu", which="input", call=1).data, tail)
    assert torch.equal(x, given)
    with pytest.raises(ValueError, match="call must be from 0 to 1, layer 'relu' ran 2 times: got 2"):
        fastcam.feature_maps(net, x, "relu", call=2)
    with pytest.raises(ValueError, match="call must be from 0 to 0, layer 'tail' ran 1 time: got 1"):
        fastcam.feature_maps(net, x, ["relu", "tail"], call=1)
    for call in (-1, True, "last"):
        with pytest.raises(ValueError, match="call must be a whole number of 0 or more"):
            fastcam.feature_maps(net, x, "relu", call=call)


Pair = namedtuple("Pair", "indices values")


class Structured(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, scale=None):
        t = x if scale is None else x * scale
        number = torch.arange(3)
        return {"tuple": (number, t), "dict": {"n": number, "t": t}, "named": Pair(number, t), "none": number}[self.how]


class Holding(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.part = nn.Conv2d(1, 4, 3), Structured(how)

    def forward(self, x):
        return self.part(x=self.first(x), scale=2.0)


@pytest.mark.parametrize("how", ["tuple", "dict", "named", "none"])
def test_the_first_floating_point_tensor(how):
    net, x = Holding(how), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        expected = net.first(x)
    assert torch.equal(fastcam.feature_maps(net, x, "part", which="input").data, expected), "given by name"
    if how == "none":
        with pytest.raises(TypeError, match="Structured gives no floating-point tensor but Tensor"):
            fastcam.feature_maps(net, x, "part")
    else:
        assert torch.equal(fastcam.feature_maps(net, x, "part").data, 2 * expected)


def test_the_model_itself_and_compiled_parts():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        logits, body = net(x), net.body(net.stem(x))
    assert torch.equal(fastcam.feature_maps(net, x, net).data, logits)
    assert torch.equal(fastcam.feature_maps(net, x, net, which="input").data, x)
    counter = CompileCounter()
    net.body.compile(backend=counter)
    with torch.no_grad():
        net(x)
    compiled = counter.frame_count
    assert torch.equal(fastcam.feature_maps(net, x, "body.1").data, body)
    assert torch.equal(fastcam.feature_maps(net, x, "body").data, body)
    assert torch.equal(fastcam.feature_maps(nn.DataParallel(net), x, "body").data, body)
    assert compiled == counter.frame_count > 0, "nothing was compiled again"
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    found = fastcam.feature_maps(encoder, torch.randn(2, 5, 8), "layers.0.linear1", which="input")
    assert found.shape == (2, 5, 8), "off the path that calls no modules"


@pytest.mark.parametrize("where", [None, "forward", "stopped"])
@pytest.mark.parametrize("which", ["output", "input"])
def test_the_model_is_left_as_it_was(which, where):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    net.broken = where == "forward"
    before, image = snapshot(net), x.detach().clone()
    if where == "forward":
        with pytest.raises(KeyError, match="in forward"):
            fastcam.feature_maps(net, x, "head", which=which)
    else:
        found = fastcam.feature_maps(net, x, ["body", "head"] if where is None else ["body.*"], which=which)
        assert all(not f.data.requires_grad for f in found.values())
        found["body" if where is None else "body.0"].plot()
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None


def test_layers_that_are_not_there_or_do_not_run():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    net.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="target layer 'spare' did not run"):
        fastcam.feature_maps(net, x, ["body", "spare"])
    with pytest.raises(ValueError, match="no layer 'bodi'.*nearest names: body"):
        fastcam.feature_maps(net, x, "bodi")
    with pytest.raises(ValueError, match="which must be 'output' or 'input', got 'both'"):
        fastcam.feature_maps(net, x, "body", which="both")
    with pytest.raises(TypeError, match="input_tensor must hold"):
        fastcam.feature_maps(net, [1, 2], "body")


def test_values_without_space_are_data_but_no_maps():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    found = fastcam.feature_maps(net, x, "head")
    with torch.no_grad():
        assert torch.equal(found.data, net(x))
    before = plt.get_fignums()
    for draw in (found.plot, found._repr_png_):
        with pytest.raises(ValueError, match=r"output of layer 'head', \(2, 5\), is a value a channel and no map: see"):
            draw()
    with pytest.raises(ValueError, match=r"input of layer 'head', \(2, 16\), .* .data, layer 'tail' has maps"):
        fastcam.feature_maps(net, x, "head", which="input").plot()
    assert plt.get_fignums() == before


LAYERS = ["ln_1", "ln_2", "mlp", "self_attention"]


@pytest.mark.parametrize("which", ["output", "input"])
def test_tokens_are_laid_out(which):
    net, x = small_vit().eval(), photographs(2, 64, 64)
    found = fastcam.feature_maps(net, x, [f"encoder.layers[1].{name}" for name in LAYERS], which=which)
    for maps in found.values():
        assert maps.shape == (2, 17, 48)
        assert torch.equal(maps.maps, tokens_to_map(maps.data))
    ax = fastcam.feature_maps(net, x, "encoder.layers[1]", which=which).plot(image=1)
    assert title(ax).endswith("48 maps 4 x 4, image 1") and title(ax).startswith("input of " * (which == "input") + "e")


def test_channels_that_are_last():
    net = torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5).eval()
    x = photographs(2, 64, 64)
    for which in ("output", "input"):
        found = fastcam.feature_maps(net, x, ["features.1", "features.1.0.norm2", "features.3.1"], which=which)
        for maps in found.values():
            assert maps.data.shape[-1] in (8, 16) and torch.equal(maps.maps, maps.data.movedim(-1, 1))


class Windowed(nn.Module):
    """Cuts images into four windows, as if each was an image."""

    def __init__(self):
        super().__init__()
        self.part, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        windows = x.unfold(2, 6, 6).unfold(3, 6, 6).reshape(-1, 1, 6, 6)
        return self.head(self.part(windows).mean((2, 3)).view(len(x), 4, 4).mean(1))


def test_windows_are_not_the_images():
    found = fastcam.feature_maps(Windowed(), torch.randn(2, 1, 12, 12), "part")
    with pytest.raises(ValueError, match=r"layer 'part', \(8, 4, 4, 4\), has 8 maps for 2 images.*reshape_transform"):
        found.plot()


class Shuffled(nn.Module):
    """Tokens that nothing tells the places of."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.mix(x.flatten(1)[:, None].repeat(1, 4, 1)).mean(1))


def test_tokens_that_can_not_be_laid_out():
    net, x = Shuffled(), torch.randn(2, 1, 8, 8)
    found = fastcam.feature_maps(net, x, "mix")
    with pytest.raises(ValueError, match="pass a reshape_transform"):
        found.plot()
    found = fastcam.feature_maps(net, x, "mix", reshape_transform=lambda t: t.unflatten(1, (2, 2)).movedim(-1, 1))
    assert found.shape == (2, 4, 6) and found.maps.shape == (2, 6, 2, 2)
    assert np.array_equal(drawn(found.plot(image=1), 2, 2, times=3).reshape(6, 2, 2), found.maps[1].numpy())


class Fixed(nn.Module):
    """Gives the tensor it holds."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors, self.part = tensors, nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.part(self.tensors[0])


def fixed(t):
    """The feature maps that are this tensor."""
    return fastcam.feature_maps(Fixed(t), torch.rand(len(t), 1, *t.shape[2:]), "part")


def test_all_maps_in_one_picture():
    t = torch.randn(2, 7, 12, 16).relu()
    t[1, [2, 5]] = 0
    found = fixed(t)
    ax = found.plot(image=1)
    tiles = drawn(ax, 12, 16)
    assert tiles.shape == (3, 3, 12, 16), "ceil(sqrt(7 * 12 / 16))"
    assert np.array_equal(tiles.reshape(9, 12, 16)[:7], t[1].numpy())
    assert title(ax) == "part: 7 maps 12 x 16, image 1, 2 are zero"
    limit = np.percentile(t[1].numpy(), 99)
    assert ax.images[0].get_cmap().name == "viridis"
    np.testing.assert_allclose(ax.images[0].get_clim(), (0, limit), rtol=1e-6)
    assert ax.images[0].get_interpolation() == "antialiased" and ax.get_aspect() == 1
    assert labels(ax.get_yticklabels()) == ["0", "3", "6"] and labels(ax.get_xticklabels()) == ["+0", "+1", "+2"]
    (bar,) = (a for a in ax.figure.axes if a is not ax)
    assert labels(bar.get_yticklabels()) == ["0", f"{limit:.3g}"]
    (patch,) = ax.patches
    boxes = patch.get_path().vertices.reshape(2, 5, 2)
    assert [(*b.min(0), *b.max(0)) for b in boxes] == [(33.5, -0.5, 49.5, 11.5), (33.5, 12.5, 49.5, 24.5)]
    assert patch.get_hatch()
    (patch,) = found.plot(image=1, channels=[5, 0, 1]).patches
    assert tuple(patch.get_path().vertices.min(0)) == (-0.5, -0.5), "where it is drawn"
    assert title(found.plot()) == "part: 7 maps 12 x 16, image 0" and not found.plot().patches
    assert title(fixed(t[1:, :6]).plot(channels=slice(2))) == "part: 2 of 6 maps 12 x 16, 2 of the 6 are zero"


def test_signed_maps_have_a_symmetric_scale():
    t = torch.randn(1, 4, 12, 12)
    image = fixed(t).plot(clip=None).images[0]
    assert image.get_clim() == (-t.abs().max().item(), t.abs().max().item()) and image.get_cmap().name == "RdBu_r"
    assert fixed(t).plot(colormap="coolwarm").images[0].get_cmap().name == "coolwarm"


KEYS = {"max": lambda t: t.amax((1, 2)), "mean": lambda t: t.mean((1, 2)), "variance": lambda t: t.var((1, 2))}


@pytest.mark.parametrize("how", KEYS)
def test_sorted_maps_and_their_share(how):
    t = torch.randn(1, 20, 12, 12) * torch.rand(20, 1, 1) * 3 + torch.randn(20, 1, 1)
    ax = fixed(t).plot(sort=how, limit=6)
    order = KEYS[how](t[0]).argsort(descending=True)[:6]
    assert np.array_equal(drawn(ax, 12, 12).reshape(6, 12, 12), t[0, order].numpy())
    assert labels(ax.texts) == [str(n.item()) for n in order]
    assert title(ax) == f"part: top 6 of 20 maps 12 x 12, sorted by {how}"
    assert title(fixed(t).plot(limit=6)) == "part: first 6 of 20 maps 12 x 12"
    ax = fixed(t).plot(channels=[4, -1])
    assert labels(ax.texts) == ["4", "19"] and title(ax) == "part: 2 of 20 maps 12 x 12"
    many = fixed(torch.randn(1, 100, 3, 3)).plot(sort=how)
    assert not many.texts and len(many.images) == 1, "no text a tile where they are many"


@pytest.mark.parametrize("signed", [False, True])
def test_each_map_in_its_own_scale(signed):
    t = torch.rand(1, 6, 12, 12) * torch.arange(6.0).view(6, 1, 1) - 0.3 * signed * torch.arange(6.0).view(6, 1, 1)
    ax = fixed(t).plot(scale="each")
    for n, tile in enumerate(drawn(ax, 12, 12).reshape(6, 12, 12)):
        size = np.percentile(t[0, n].abs().numpy(), 99) or 1
        np.testing.assert_allclose(tile, t[0, n].numpy() / size, rtol=1e-5)
    assert ax.images[0].get_clim() == (-1.0 * signed, 1)
    assert title(ax) == "part: 6 maps 12 x 12, 1 is zero, each in its own scale"
    assert ax.figure.axes == [ax], "no colour bar"


def test_signals_volumes_and_single_values():
    net = nn.Sequential(nn.Conv1d(2, 12, 5))
    found = fastcam.feature_maps(net, torch.randn(1, 2, 40), "0")
    ax = found.plot()
    assert np.array_equal(ax.images[0].get_array(), found.data[0].numpy()), "a line a channel"
    assert title(ax) == "0: 12 maps of length 36" and labels(ax.get_yticklabels()) == ["0", "8"]
    found = fastcam.feature_maps(VolumeNet().eval(), torch.randn(1, 1, 8, 24, 26), "first")
    whole = found.plot(channels=0).images[0].get_array()
    assert found.shape == (1, 8, 4, 12, 13) and whole.shape == (12, 4 * 14 - 1)
    assert np.array_equal(whole[:, 14:27], found.data[0, 0, 1].numpy())
    t = torch.rand(1, 10, 1, 1)
    ax = fixed(t).plot()
    assert np.array_equal(np.ma.asarray(ax.images[0].get_array()).compressed(), t.flatten().numpy())
    assert ax.images[0].get_array().shape == (3, 4)


def test_bad_options():
    found = fixed(torch.rand(2, 6, 12, 12))
    before = plt.get_fignums()
    for options, message in [
        ({"image": 2}, "image must be from 0 to 1, there are 2 images: got 2"),
        ({"image": -3}, "image must be from 0 to 1"),
        ({"channels": [1, 6]}, "channels must be from 0 to 5, there are 6 maps of layer 'part': got 6"),
        ({"sort": "min"}, "sort must be None, 'max', 'mean' or 'variance', got 'min'"),
        ({"scale": "own"}, "scale must be 'shared' or 'each'"),
        ({"clip": 0}, "clip must be a percentile"),
        ({"limit": 0}, "limit must be a whole number of 1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            found.plot(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        found.plot(colour="red")
    assert plt.get_fignums() == before


def test_several_layers_in_one_figure(tmp_path):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    found = fastcam.feature_maps(net, x, "stem.*")
    axes = found.plot(image=1, limit=4)
    assert [title(ax).split(":")[0] for ax in axes] == ["stem.0", "stem.1", "stem.2"]
    assert len({ax.figure for ax in axes}) == 1 and all(len(ax.images) == 1 for ax in axes)
    before = plt.get_fignums()
    found.save(tmp_path / "maps.png", image=1)
    assert (tmp_path / "maps.png").read_bytes()[:4] == found._repr_png_()[:4] == b"\x89PNG"
    found["stem.0"].save(tmp_path / "map.png", image=1, sort="max")
    assert plt.get_fignums() == before
    found.save(tmp_path / "maps.pt")
    found.save(tmp_path / "maps.npz")
    saved, arrays = torch.load(tmp_path / "maps.pt"), np.load(tmp_path / "maps.npz")
    for name, maps in found.items():
        assert torch.equal(saved[name], maps.data) and np.array_equal(arrays[name], maps.data.numpy())
    one = fastcam.feature_maps(net, x, ["stem"])
    assert list(one) == ["stem"] and one.plot().images
    figure, given = plt.subplots(3, 1)
    assert list(found.plot(given)) == list(given)


def test_half_precision_and_no_gradient_of_the_callers():
    net, x = tiny().to(torch.bfloat16), torch.randn(1, 3, 20, 24, dtype=torch.bfloat16)
    with torch.inference_mode():
        found = fastcam.feature_maps(net, x, "body")
    assert found.data.dtype == torch.bfloat16 and not found.data.is_inference()
    assert found.plot().images and found.score is None and found.settings == {"which": "output", "call": 0}


def test_a_figure_that_fails_is_closed():
    found = LayerMaps(a=fixed(torch.rand(1, 4, 5, 5)), b=fixed(torch.rand(1, 4, 5, 5)))
    opened = plt.get_fignums()
    with pytest.raises(ValueError, match="nope"):
        found.plot(colormap="nope")
    with pytest.raises(TypeError, match="LayerMaps.plot has no option 'foo': its options are image, channels, sort"):
        found.plot(foo=1)
    assert plt.get_fignums() == opened
