"""The patches that excite channels, against the whole data set at once, fields by formula and rules written by hand."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastcam
from fastcam.visualize.fields import cropped, fields_of
from fastcam.visualize.winners import Winners, batches_of

from models import grey_resnet18, tiny
from test_untouched import Fragile, assert_same, fragile, snapshot

CHANNELS = [2, 0, 11]


@pytest.fixture(scope="module")
def net():
    return tiny().double()


@pytest.fixture(scope="module")
def images():
    return torch.rand(23, 3, 20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def body(net, x):
    """The maps of `body`, without the library."""
    with torch.no_grad():
        return net.body(net.stem(x))


def around(image, row, column, fill):
    """What position (row, column) of `body` sees: two 3 x 3 convolutions with padding 1, one of stride 2."""
    padded = F.pad(image - fill, (8, 8, 8, 8)) + fill
    top, left = 2 * row - 3 + 8, 2 * column - 3 + 8
    return padded[:, top : top + 7, left : left + 7]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_brute_force(net, images, batch_size):
    found = fastcam.top_patches(net, images, "body", CHANNELS, k=5, batch_size=batch_size)
    maps = body(net, images)
    assert found.target.tolist() == CHANNELS and found.layer == "body" and found.shape == (3, 5, 3, 7, 7)
    for n, channel in enumerate(CHANNELS):
        best = sorted(((-m.max().item(), i) for i, m in enumerate(maps[:, channel])))[:5]
        assert found.index[n].tolist() == [i for _, i in best]
        torch.testing.assert_close(found.score[n], torch.tensor([-v for v, _ in best], dtype=torch.float64))
        for rank, (_, i) in enumerate(best):
            row, column = divmod(maps[i, channel].argmax().item(), maps.shape[3])
            assert found.position[n, rank].tolist() == [row, column]
            assert torch.equal(found.data[n, rank], around(images[i], row, column, 0.5))
            box = [max(2 * row - 3, 0), max(2 * column - 3, 0), min(2 * row + 4, 20), min(2 * column + 4, 24)]
            assert found.boxes[n, rank].tolist() == box
    cut = [(b - t, r - left) != (7, 7) for t, left, b, r in found.boxes.flatten(0, 1).tolist()]
    assert any(cut) and not all(cut), "fields at a border and inside"


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_every_position_counts(net, images, batch_size):
    found = fastcam.top_patches(
        net, images, "body", CHANNELS, k=40, batch_size=batch_size, per_image=False, projection=None
    )
    maps = body(net, images)
    for n, channel in enumerate(CHANNELS):
        order = maps[:, channel].flatten().sort(descending=True).indices[:40]
        places = torch.stack(torch.unravel_index(order, maps[:, channel].shape), 1)
        assert torch.equal(found.index[n], places[:, 0]) and torch.equal(found.position[n], places[:, 1:])
        assert len(set(found.index[n].tolist())) < 40
    assert found.projections is None


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("per_image", [True, False])
def test_of_equal_values_the_first_wins(net, images, batch_size, per_image):
    same = torch.full_like(images[:1], 0.3)
    data = torch.cat([images[:2] * 0, images[2:3], *[same] * 9, images[2:3]])
    options = {"k": 4, "batch_size": batch_size, "per_image": per_image, "projection": None}
    found = fastcam.top_patches(net, data, "body", [4], **options)
    values = body(net, data)[:, 4].flatten(1)
    values = values.amax(1) if per_image else values.flatten()
    expected = sorted(range(len(values)), key=lambda i: (-values[i].item(), i))[:4]
    number = expected if per_image else [i // 120 for i in expected]
    assert found.index[0].tolist() == number


class ByRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, rule):
        ctx.save_for_backward(z)
        ctx.rule = rule
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        passed = g if ctx.rule == "gradient" else torch.where(g > 0, g, 0)
        return (passed if ctx.rule == "deconvnet" else torch.where(z > 0, passed, 0)), None


class ByHand(nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, z):
        return ByRule.apply(z, self.rule)


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_projections(net, images, rule):
    found = fastcam.top_patches(net, images, "body", CHANNELS, k=5, projection=rule, batch_size=4)
    other = copy.deepcopy(net)
    other.stem[2] = ByHand(rule)
    for n, channel in enumerate(CHANNELS):
        for rank, (i, (row, column)) in enumerate(
            zip(found.index[n].tolist(), found.position[n].tolist(), strict=True)
        ):
            x = images[i : i + 1].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(other.body(other.stem(x))[0, channel, row, column], x)
            expected = around(gradient[0], row, column, 0)
            torch.testing.assert_close(found.projections[n, rank], expected)
            assert expected.abs().sum() == pytest.approx(gradient.abs().sum().item()), "nothing lies outside"
            assert expected.abs().max() > 1e-3
    assert found.settings["projection"] == rule and found.settings["images"] == 23


class MapStyle:
    """A data set that is only indexed, and does not say where it ends by an IndexError."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, n):
        return self.images[n % len(self.images)], n


FORMS = {
    "list": list,
    "pairs": lambda t: [(x, 3) for x in t],
    "dataset": lambda t: TensorDataset(t, torch.arange(len(t))),
    "map style": MapStyle,
    "loader": lambda t: DataLoader(TensorDataset(t, torch.arange(len(t))), batch_size=4),
    "mappings": lambda t: [{"label": 1, "image": x} for x in t],
    "batches": lambda t: t.split([1, 10, 12]),
    "generator": lambda t: (x for x in t),
    "generator of pairs of batches": lambda t: ((x, None) for x in t.split(5)),
    "mixed": lambda t: [t[:9], t[9], t[10:]],
    "with gradient": lambda t: t.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_gives_images(net, images, form):
    expected = fastcam.top_patches(net, images, "body", CHANNELS, k=3)
    found = fastcam.top_patches(net, FORMS[form](images), "body", CHANNELS, k=3, batch_size=6)
    for name in ("data", "index", "position", "boxes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.projections, expected.projections)
    assert not found.data.requires_grad


def test_batches_are_full_whatever_comes():
    def sizes(dataset):
        return [tuple(b.shape) for b in batches_of(dataset, 4)]

    small, large = torch.rand(1, 8, 8), torch.rand(1, 9, 8)
    assert sizes(torch.rand(9, 1, 8, 8)) == [(4, 1, 8, 8), (4, 1, 8, 8), (1, 1, 8, 8)]
    assert sizes([small] * 3 + [torch.rand(6, 1, 8, 8)]) == [(4, 1, 8, 8), (4, 1, 8, 8), (1, 1, 8, 8)]
    assert sizes([small, small, large, small]) == [(2, 1, 8, 8), (1, 1, 9, 8), (1, 1, 8, 8)]
    assert sizes([torch.rand(0, 1, 8, 8)]) == []


def test_only_winners_are_kept(net):
    """Of 300 images that are made as they are asked for, those that are alive at any time."""
    alive, most = weakref.WeakSet(), []
    random = torch.Generator().manual_seed(1)

    def stream():
        for _ in range(300):
            image = torch.rand(3, 20, 24, dtype=torch.float64, generator=random)
            alive.add(image)
            yield image
            del image
            gc.collect(0)
            most.append(len(alive))

    found = fastcam.top_patches(net, stream(), "body", [1, 2], k=3, batch_size=5)
    assert found.shape[:2] == (2, 3) and len(most) == 300 and max(most) <= 6
    winners = Winners(2, True, torch.zeros(1, 3, 4, 4))
    for _ in range(20):
        batch = torch.rand(10, 1, 8, 8, generator=random)
        winners.add(torch.rand(10, 3, 4, 4, generator=random), batch)
        assert set(winners.images) == set(winners.index.flatten().tolist())
    assert all(image.untyped_storage().nbytes() == 8 * 8 * 4 for image in winners.images.values())


def test_images_of_different_sizes(net, images):
    other = torch.rand(9, 3, 31, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    both = [*images[:9], *other]
    both = [both[n // 2 + 9 * (n % 2)] for n in range(18)]
    found = fastcam.top_patches(net, both, "body", CHANNELS, k=10, batch_size=4)
    assert {n % 2 for n in found.index.flatten().tolist()} == {0, 1}
    for n, channel in enumerate(CHANNELS):
        values = [body(net, x[None])[0, channel].max().item() for x in both]
        assert found.index[n].tolist() == sorted(range(18), key=lambda i: -values[i])[:10]
        for i, (row, column), patch in zip(found.index[n].tolist(), found.position[n].tolist(), found.data[n]):  # noqa: B905
            assert torch.equal(patch, around(both[i], row, column, 0.5))


class Squeeze(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True)


def test_a_global_field_is_the_whole_image():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Squeeze(), nn.Conv2d(4, 5, 1)).eval()
    data = [torch.rand(1, 10, 12) for _ in range(4)] + [torch.rand(1, 8, 16)]
    found = fastcam.top_patches(net, data, "3", k=5)
    assert found.shape == (5, 5, 1, 10, 16)
    for index, patch, box in zip(found.index[0].tolist(), found.data[0], found.boxes[0].tolist(), strict=True):
        height, width = data[index].shape[1:]
        assert box == [0, 0, height, width]
        top, left = (10 - height) // 2, (16 - width) // 2
        inside = patch[:, top : top + height, left : left + width]
        assert torch.equal(inside, data[index])
        assert (patch == 0.5).sum() >= patch.numel() - inside.numel()


def chain(*layers, channels=4):
    """Convolutions (kernel, stride, dilation, padding), a pooling for kernel 2; ReLUs behind them."""
    torch.manual_seed(7)
    modules, before = [], 1
    for kernel, stride, dilation, padding in layers:
        if kernel == 2:
            modules.append(nn.MaxPool2d(2, stride))
        else:
            modules += [nn.Conv2d(before, channels, kernel, stride, padding, dilation), nn.ReLU()]
            before = channels
    return nn.Sequential(*modules).eval()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1, 1), (5, 2, 1, 2), (3, 1, 2, 2)],
        [(3, 1, 1, 0), (2, 2, 1, 0), (3, 1, 1, 1), (2, 2, 1, 0)],
        [(5, 3, 1, 0), (3, 2, 1, 1)],  # the first leaves the last row out
    ],
)
def test_fields_by_formula(layers, channels):
    """The first and the last pixel of position p: start p j + a, extent r; cut at the borders."""
    net = chain(*layers, channels=channels)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d) and channels == 1:
                m.bias.fill_(1.0)  # a single channel that is dead has no gradient at all
    reach, jump, start = 1, 1, 0
    for kernel, stride, dilation, padding in layers:
        reach, start, jump = reach + (kernel - 1) * dilation * jump, start - padding * jump, jump * stride
    image = torch.rand(1, 45, 60)
    size = net(image[None]).shape[2:]
    places = [(r, c) for r in range(size[0]) for c in range(size[1])]
    found = fields_of(net, net[-1], image, places)
    for seen, count, whole in zip(found, size, (45, 60), strict=True):
        used = whole - (whole - layers[0][0]) % layers[0][1] if layers[0][3] == 0 else whole
        assert seen == {p: (max(start + p * jump, 0), min(start + p * jump + reach, used)) for p in range(count)}
    assert found.extent() == (reach, reach)


def test_fields_of_resnet18():
    torch.manual_seed(0)
    net = grey_resnet18().eval()
    image = torch.rand(1, 224, 224)
    # strides 2, 2, 1, 2: a position of layer2 sees 99 pixels around 8 p
    found = fields_of(net, net.layer2, image, [(0, 27), (13, 9)])
    assert found.rows[0] == (0, 50) and found.rows[13] == (8 * 13 - 49, 8 * 13 + 50)
    assert found.columns[9] == (8 * 9 - 49, 8 * 9 + 50) and found.columns[27] == (8 * 27 - 49, 224)
    assert found.extent() == (99, 99)
    # 435 pixels of layer4 are more than there are, in the middle: its patches are whole images
    assert set(fields_of(net, net.layer4, image, [(0, 0)]).rows.values()) == {(0, 224)}
    wide = fields_of(net, net.layer2, torch.rand(1, 64, 160), [(0, 4)])
    assert wide.rows[0] == (0, 64) and wide.columns[4] == (0, 82) and wide.extent() == (64, 99)


def test_where_a_cut_patch_lies():
    image, grey = torch.arange(1, 101.0).view(1, 10, 10), torch.zeros(1, 1, 1)
    assert torch.equal(cropped(image, (0, 3, 2, 6), (3, 3), grey)[0, 1:], image[0, :2, 3:6])
    assert torch.equal(cropped(image, (8, 3, 10, 6), (3, 3), grey)[0, :2], image[0, 8:, 3:6])
    assert torch.equal(cropped(image, (7, 0, 9, 1), (5, 3), grey)[0, :2, 2:], image[0, 7:9, :1])
    assert cropped(image, (0, 0, 10, 10), (12, 12), grey)[0, [0, -1]].abs().sum() == 0


@pytest.mark.parametrize("size", [28, 224])
def test_the_grey_resnet18(size):
    torch.manual_seed(0)
    net = grey_resnet18()
    data = torch.rand(3, 1, size, size)
    for layer in ("layer1.0.conv1", "layer4.1.bn2")[: 2 if size == 28 else 1]:
        found = fastcam.top_patches(net, data, layer, [63, 5], k=2)
        expected = min(size, 19 if layer == "layer1.0.conv1" else size)
        assert found.shape == found.projections.shape == (2, 2, 1, expected, expected)
        assert found.projections.abs().flatten(2).amax(2).min() > 0


def test_the_first_channels_by_default_and_other_ways_to_name_them(net, images):
    def named(channels):
        return fastcam.top_patches(net, images[:4], "body", channels, k=1, projection=None).target.tolist()

    assert named(None) == list(range(8)) and named(3) == [3] and named(range(0, 12, 5)) == [0, 5, 10]
    assert named(torch.tensor([4, 1])) == named(np.array([4, 1])) == named(iter((4, 1))) == [4, 1]
    assert named(np.int64(7)) == [7]


def test_a_run_ends_at_the_layer(net, images):
    net = tiny(Fragile).double()
    net.tail.register_forward_hook(lambda *_: pytest.fail("it ran behind the layer"))
    assert fastcam.top_patches(net, images, "body", 0, k=2).shape == (1, 2, 3, 7, 7)


def test_what_is_written_into_the_layer_afterwards_is_not_its_own(net, images):
    """`body` is followed by a ReLU in place: values below 0 are its own."""
    dark = fastcam.top_patches(net, images, "body", range(12), k=23, projection="gradient")
    expected = body(net, images).amax((2, 3)).T.sort(descending=True).values
    torch.testing.assert_close(dark.score, expected)


def test_channels_last_and_tokens(images):
    """The same maps, however they lie: patches of 4 x 5 pixels, a norm and a linear map for each."""
    torch.manual_seed(6)
    split, norm, mix = nn.Conv2d(3, 7, (4, 5), (4, 5)).double(), nn.LayerNorm(7).double(), nn.Linear(7, 6).double()

    class Last(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.split, self.norm, self.mix, self.tokens = split, norm, mix, tokens

        def forward(self, x):
            t = self.split(x).relu().movedim(1, -1)
            t = self.mix(self.norm(t.flatten(1, 2) if self.tokens else t))
            return t.flatten(1, -2).mean(1)

    images = images[..., :20]
    with torch.no_grad():
        maps = mix(norm(split(images).relu().movedim(1, -1))).movedim(-1, 1)  # (23, 6, 5, 4)
    for tokens in (False, True):
        for transform in (None, lambda t: (t.unflatten(1, (5, 4)) if t.ndim == 3 else t).movedim(-1, 1)):
            found = fastcam.top_patches(Last(tokens), images, "mix", [5, 1], k=3, reshape_transform=transform)
            assert found.shape == (2, 3, 3, 4, 5)
            for n, channel in enumerate((5, 1)):
                best = maps[:, channel].amax((1, 2)).sort(descending=True).indices[:3]
                assert torch.equal(found.index[n], best)
                for i, patch in zip(best, found.data[n], strict=True):
                    row, column = divmod(maps[i, channel].argmax().item(), 4)
                    expected = images[i, :, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
                    assert torch.equal(patch, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    found = fastcam.top_patches(tiny().to(dtype), torch.rand(5, 3, 20, 24).to(dtype), "body", [0, 1], k=2)
    assert found.data.dtype == found.projections.dtype == dtype and found.shape[-2:] == (7, 7)
    assert len(found._repr_png_()) > 1000


def test_wrong_arguments(net, images):
    def call(dataset=images, layer="body", channels=0, **options):
        return lambda: fastcam.top_patches(net, dataset, layer, channels, **options)

    wrong = [
        (call(channels=12), ValueError, "layer 'body' has 12 channels, 0 to 11; channels has 12"),
        (call(channels=[3, -1]), ValueError, "0 to 11; channels has -1"),
        (call(channels=1.0), TypeError, "channels must be a channel's number or several, got 1.0"),
        (call(channels=True), TypeError, "got True"),
        (call(channels="1"), TypeError, "got '1'"),
        (call(channels=[]), TypeError, "channels must be"),
        (call(layer="head"), ValueError, r"layer 'head' \(Linear\) gives \(23, 5\) for 23 images, no maps \(B, C, h"),
        (call(layer="nobody"), ValueError, "no layer 'nobody'"),
        (call(layer=["body", "stem"]), ValueError, "layer must be one layer, .* names 2"),
        (call(k=0), ValueError, "k must be a whole number"),
        (call(batch_size=0), ValueError, "batch_size must be a whole number"),
        (call(projection="deconv"), ValueError, 'must be "guided", "deconvnet", "gradient" or None, got \'deconv\''),
        (call(layer="stem.1"), ValueError, "met no ReLU up to layer 'stem.1'.*pass projection=\"gradient\", or None"),
        (
            call(layer="stem.1", projection="deconvnet"),
            ValueError,
            "projection='deconvnet' would be the plain gradient",
        ),
        (call(dataset=[]), ValueError, "dataset gave no image"),
        (call(dataset=5), TypeError, "got int, which gives none"),
        (call(dataset=images[0]), TypeError, r"must be \(N, k, H, W\) if it is a tensor, got \(3, 20, 24\)"),
        (call(dataset=[images[0], "a"]), TypeError, "item 1 is str"),
        (call(dataset=[images[0].numpy()]), TypeError, r"item 0 is ndarray; torch.from_numpy\(x\)"),
        (call(dataset=[(images[0] * 255).byte()]), TypeError, r"item 0 is torch.uint8 \(3, 20, 24\)"),
        (call(dataset=images[:, :2]), ValueError, "takes 3 channels, input_tensor has 2"),
        (call(mean=(0.5, 0.5)), ValueError, "mean must be one value or 3, got 2"),
        (call(std=0), ValueError, "std must be above 0, got 0"),
    ]
    for n, (function, error, message) in enumerate(wrong):
        with pytest.raises(error, match=message):
            function()
            pytest.fail(f"{n} raised nothing")
    assert fastcam.top_patches(net, images, "stem.1", 0, k=2, projection="gradient").shape == (1, 2, 3, 3, 3)
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)).double()
    with pytest.raises(ValueError, match="Sequential met no ReLU up to layer '2'"):
        fastcam.top_patches(smooth, images, "2", 0)


def test_what_is_wrong_is_said_before_a_long_run(net, images):
    taken = []

    def stream():
        for n, image in enumerate(images):
            taken.append(n)
            yield image

    for options in ({"layer": "stem.1"}, {"channels": 12}, {"std": (1.0, 1.0)}):
        with pytest.raises(ValueError):
            fastcam.top_patches(net, stream(), **{"layer": "body", "channels": 0, "batch_size": 4, **options})
        assert max(taken) < 8
        taken.clear()


def test_a_layer_without_a_gradient(images):
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Detached(), nn.Conv2d(4, 4, 3)).double()
    with pytest.raises(RuntimeError, match="carries no gradient back to the input: pass projection=None"):
        fastcam.top_patches(net, images, "3", 0, projection="gradient")
    assert fastcam.top_patches(net, images, "3", 0, k=1, projection=None).shape == (1, 1, 3, 20, 24)


def test_values_that_are_not_numbers(net, images):
    broken = images.clone()
    broken[6, 1, 4, 4] = torch.nan
    with pytest.raises(ValueError, match="channel 3 of layer 'body' is not a number for image 6"):
        fastcam.top_patches(net, broken, "body", [3, 1], batch_size=4)


def test_more_patches_than_images(net, images):
    with pytest.warns(UserWarning, match="k is 9, the data set has 4 images: all of them are shown"):
        found = fastcam.top_patches(net, images[:4], "body", 0)
    assert found.shape[:2] == (1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastcam.top_patches(net, images[:9], "body", 0)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_stays_as_it_was(broken):
    net, x = fragile(), torch.rand(6, 3, 20, 24, requires_grad=True)
    net.broken = broken
    before, image = snapshot(net), x.detach().clone()
    if broken:
        with pytest.raises(KeyError, match="in forward"):
            fastcam.top_patches(net, x, "tail", 0, k=2)
    else:
        fastcam.top_patches(net, x, "tail", 0, k=2)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None and x.requires_grad


def test_the_bar(net, images, capsys):
    fastcam.top_patches(net, images, "body", 0, k=2, batch_size=6, progress=True)
    assert "0/4" in capsys.readouterr().err
    fastcam.top_patches(net, images, "body", 0, k=2)
    assert not capsys.readouterr().err


def test_the_figure(net, images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    inputs = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = fastcam.top_patches(net, inputs, "body", CHANNELS, k=7, mean=mean, std=std)
    opened = plt.get_fignums()
    axes = found.plot()
    assert axes.shape == (2, 2) and len(plt.get_fignums()) == len(opened) + 1
    assert [len(ax.images) for ax in axes.flat] == [1, 1, 1, 0] and not axes[1, 1].axison
    for n, (ax, channel) in enumerate(zip(axes.flat, CHANNELS, strict=False)):
        assert ax.get_title() == f"body:{channel}, up to {found.score[n, 0].item():.3g}"
        whole = np.asarray(ax.images[0].get_array())
        assert whole.shape == (3 * 8 - 1, 2 * (3 * 8 - 1) + 2, 3)
        for rank in range(7):
            top, left = rank // 3 * 8, rank % 3 * 8
            i, (row, column) = found.index[n, rank].item(), found.position[n, rank].tolist()
            picture = around(images[i], row, column, 0.5).movedim(0, -1)
            np.testing.assert_allclose(whole[top : top + 7, left : left + 7], picture, atol=1e-5)
            values = found.projections[n, rank].movedim(0, -1).numpy()
            shown = np.clip(0.5 + values / (2 * np.percentile(np.abs(values), 99)), 0, 1)
            np.testing.assert_allclose(whole[top : top + 7, left + 25 : left + 32], shown, atol=1e-5)
        assert (whole[16:, 8:23] == 1).all() and (whole[:, 23:25] == 1).all(), "paper where no patch is"
    plt.close(axes[0, 0].figure)
    assert plt.get_fignums() == opened


def test_the_figure_of_one_channel_and_in_given_axes(net, images):
    grey = tiny(channels=1).double()
    data = images[:, :1]
    found = fastcam.top_patches(grey, data, "body", 3, k=4, projection=None)
    _, axes = plt.subplots()
    assert found.plot(ax=axes) is axes
    whole = np.asarray(axes.images[0].get_array())
    assert whole.shape == (15, 15) and axes.images[0].get_clim() == (0, 1)
    plt.close(axes.figure)
    found = fastcam.top_patches(grey, data, "body", 3, k=4)
    _, axes = plt.subplots()
    found.plot(ax=axes)
    assert np.asarray(axes.images[0].get_array()).shape == (15, 32)
    with pytest.raises(ValueError, match="ax must be an Axes, got"):
        found.plot(ax=np.array([axes, axes]))
    plt.close(axes.figure)
    five = fastcam.top_patches(tiny(channels=5).double(), data.repeat(1, 5, 1, 1), "body", 3, k=4)
    opened = plt.get_fignums()
    assert five._repr_png_().startswith(b"\x89PNG") and plt.get_fignums() == opened


def test_files(net, images, tmp_path):
    found = fastcam.top_patches(net, images, "body", CHANNELS, k=2)
    opened = plt.get_fignums()
    found.save(tmp_path / "patches.png", columns=1)
    assert plt.get_fignums() == opened and Image.open(tmp_path / "patches.png").size[1] > 400
    found.save(tmp_path / "patches.pt")
    read = torch.load(tmp_path / "patches.pt", weights_only=True)
    found.save(tmp_path / "patches.npz")
    arrays = np.load(tmp_path / "patches.npz")
    for name in ("data", "score", "projections", "index", "position", "boxes"):
        assert torch.equal(read[name], getattr(found, name))
        np.testing.assert_array_equal(arrays[name], getattr(found, name).numpy())
    assert read["target"].tolist() == CHANNELS and read["layer"] == "body"
    paths = found.save_images(tmp_path / "each")
    assert [p.name for p in paths] == ["2-0.png", "2-1.png", "0-0.png", "0-1.png", "11-0.png", "11-1.png"]
    pixels = np.asarray(Image.open(paths[3]))
    assert np.abs(pixels / 255 - found.pictures[1, 1].movedim(0, -1).numpy()).max() < 1 / 255
    assert repr(found) == "TopPatches of body: float64 (3, 2, 3, 7, 7)" and len(found.titles) == len(found) == 3


def test_inputs_that_are_no_pictures_are_scaled(net, images):
    inputs = 3 * images - 1
    found = fastcam.top_patches(net, inputs, "body", CHANNELS, k=4, projection=None)
    inside = found.data.min(), found.data.max()
    torch.testing.assert_close(found.pictures, ((found.data - inside[0]) / (inside[1] - inside[0])).float())
    assert inside[0] < -0.5 and inside[1] > 1.5
    cut = fastcam.top_patches(net, inputs, "body", CHANNELS, k=40, per_image=False, projection=None)
    middle = (cut.data.min() + cut.data.max()) / 2
    assert (cut.data == middle).any(), "beyond the border"


def test_it_warns_of_images_without_contrast(net, images):
    with pytest.warns(UserWarning, match="dataset.*contrast|contrast.*dataset") as caught:
        fastcam.top_patches(net, images / 255, "body", CHANNELS, k=4, projection=None)
    assert [w.filename for w in caught] == [__file__]
