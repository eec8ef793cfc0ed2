"""fastcam under FlashTorch's name: every import path, its numbers where they are right, what is better than there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

import fastcam
from fastcam import compat
from fastcam.compat.names import FLASHTORCH
from fastcam.images import Preprocess

from models import build, grey_resnet18, photographs, tiny
from reference import ascent, hidden, swapped
from test_untouched import assert_same, fragile, snapshot

NAME = "flashtorch"


@pytest.fixture(scope="module")
def real():
    """The modules of FlashTorch itself."""
    with hidden():
        package = pytest.importorskip(NAME)
        names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{NAME}.")]
        modules = {"": package} | {n.removeprefix(f"{NAME}."): importlib.import_module(n) for n in names}
    return modules


@pytest.fixture(scope="module")
def ours():
    with swapped():
        yield {path: importlib.import_module(f"{NAME}.{path}" if path else NAME) for path in FLASHTORCH}


@pytest.fixture
def utils(ours):
    return ours["utils"]


@pytest.fixture
def Backprop(ours):
    return ours["saliency"].Backprop


@pytest.fixture
def GradientAscent(ours):
    return ours["activmax"].GradientAscent


@pytest.fixture
def photo(tmp_path):
    pixels = ((photographs(1, 90, 150)[0] * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture(autouse=True)
def figures():
    np.random.seed(0)
    plt.close("all")
    yield
    plt.close("all")


def image(size=48, channels=3, batch=1):
    return photographs(batch, size, size, channels).clone()


def gradient(model, x, target=None):
    """By autograd, as FlashTorch means it."""
    x = x.detach().requires_grad_()
    y = model(x)
    return torch.autograd.grad(y.gather(1, (y.argmax(1) if target is None else target).view(-1, 1)).sum(), x)[0]


def is_theirs(value):
    return getattr(value, "__module__", "").startswith(NAME) and not isinstance(value, types.ModuleType)


def test_every_public_path_is_there(real, ours):
    assert set(real) == set(FLASHTORCH)
    for path, module in real.items():
        theirs = {name for name, value in vars(module).items() if is_theirs(value) and not name.startswith("_")}
        assert theirs == set(FLASHTORCH[path].split()) - {"__version__"}, path
    assert ours[""].__version__ == real[""].__version__


def test_every_name_is_fastcams(ours):
    found = {}
    for path, names in FLASHTORCH.items():
        for name in names.split():
            value = getattr(ours[path], name)
            found.setdefault(name, set()).add(id(value))
            assert name == "__version__" or value.__module__.startswith("fastcam.compat.flashtorch."), (path, name)
    assert len(found) == 9 and all(len(ids) == 1 for ids in found.values())
    assert ours[""].utils.imagenet is ours["utils.imagenet"] and ours["saliency"].backprop is ours["saliency.backprop"]
    with pytest.raises(AttributeError, match="'flashtorch.utils' has no attribute 'nothing'"):
        ours["utils"].nothing  # noqa: B018


def test_signatures_are_flashtorchs(real, ours):
    for path, names in FLASHTORCH.items():
        for name in set(names.split()) - {"__version__"}:
            pairs = [(getattr(ours[path], name), getattr(real[path], name))]
            if isinstance(pairs[0][1], type):
                methods = {n for n, f in vars(pairs[0][1]).items() if inspect.isfunction(f) and n[:1] != "_"}
                pairs += [(getattr(pairs[0][0], n), getattr(pairs[0][1], n)) for n in methods]
            for given, theirs in pairs:
                a, b = (
                    [(p.name, p.default) for p in inspect.signature(f).parameters.values()] for f in (given, theirs)
                )
                assert a == b, f"{path}.{name}: {theirs}"


def test_install_and_uninstall():
    with hidden():
        compat.install()
        compat.install()
        assert {f"{NAME}.{p}" if p else NAME for p in FLASHTORCH} <= set(sys.modules)
        compat.uninstall()
        assert not [m for m in sys.modules if m.partition(".")[0] in (NAME, "pytorch_grad_cam")]
        sys.modules[NAME] = there = types.ModuleType(NAME)
        with pytest.raises(RuntimeError, match="flashtorch is already imported, from None: call .* before"):
            compat.install()
        assert "pytorch_grad_cam" not in sys.modules, "half installed"
        compat.uninstall()
        assert sys.modules[NAME] is there


def test_imports_stay_light():
    code = (
        "import sys, fastcam.compat; fastcam.compat.install()\n"
        "from flashtorch.saliency import Backprop\nfrom flashtorch.activmax import GradientAscent\n"
        "from flashtorch.utils.imagenet import ImageNetIndex\n"
        "assert not {'matplotlib', 'torchvision', 'importlib_resources'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_become_inputs_as_there(real, utils, photo):
    theirs = real["utils"]
    pixels = np.asarray(utils.load_image(photo))
    np.testing.assert_array_equal(pixels, theirs.load_image(photo))
    as_tensor = torch.from_numpy(pixels.copy()).movedim(-1, 0)
    for picture in (theirs.load_image(photo), pixels, as_tensor, as_tensor.float() / 255):
        for size in (224, 60, 33):
            x, expected = utils.apply_transforms(picture, size), theirs.apply_transforms(picture, size)
            assert x.shape == (1, 3, size, size) and x.requires_grad and x.is_leaf
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    x = x.detach()
    torch.testing.assert_close(utils.denormalize(x), theirs.denormalize(x))
    for options in ({}, {"saturation": 0.15, "brightness": 0.7}, {"min_value": -1, "max_value": 2}):
        for t in (x, x[0], 1e-12 * x, torch.full((3, 4, 4), 2.0)):
            given = utils.standardize_and_clip(t, **options)
            torch.testing.assert_close(given, theirs.standardize_and_clip(t, **options), msg=str(options))
    for t in (x, x[0], x[:, :1], x[0, :1], x[:, :2]):
        torch.testing.assert_close(utils.format_for_plotting(t), theirs.format_for_plotting(t))


def test_pictures_of_any_channels_and_batches(utils, photo):
    x = utils.apply_transforms(utils.load_image(photo), 64)
    batch = torch.cat([x, 2 * x])
    pictures = utils.denormalize(batch)
    torch.testing.assert_close(pictures[0], Preprocess(64, 64)(photo)[1])
    torch.testing.assert_close(pictures[1], utils.denormalize(2 * x)[0])
    torch.testing.assert_close(utils.denormalize(x[0]), pictures[0])
    (slope,) = torch.autograd.grad(utils.denormalize(x).sum(), x)
    torch.testing.assert_close(slope[0, :, 0, 0], torch.tensor([0.229, 0.224, 0.225]))
    grey = Preprocess(64, 64).for_channels(1)
    seen = utils.apply_transforms(utils.load_image(photo).convert("L"), 64)
    torch.testing.assert_close(seen[0], grey(photo)[0])
    torch.testing.assert_close(utils.denormalize(seen)[0], grey(photo)[1])
    assert utils.denormalize(torch.zeros(2, 5, 4, 4)).unique().allclose(torch.tensor([0.449]), atol=1e-6)
    assert utils.format_for_plotting(batch).shape == (2, 64, 64, 3)
    assert utils.format_for_plotting(seen.repeat(2, 1, 1, 1)).shape == (2, 64, 64)
    see_through = utils.load_image(photo).convert("RGBA")
    assert torch.equal(utils.apply_transforms(see_through, 64), x)
    for wrong, error in (
        (np.zeros((4, 4, 3)), TypeError),
        ("a.png", TypeError),
        (np.zeros((4, 4, 2), "u1"), ValueError),
    ):
        with pytest.raises(error, match="a picture must"):
            utils.apply_transforms(wrong)
    for function in (utils.denormalize, utils.format_for_plotting):
        with pytest.raises(ValueError, match=r"must be \(B, k, H, W\) or \(k, H, W\)"):
            function(torch.zeros(4, 4))


def test_an_image_file_is_upright(utils, photo, tmp_path):
    turned = Image.open(photo)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert utils.load_image(tmp_path / "turned.jpg").size == (90, 150)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        utils.load_image(__file__)


def test_class_names_are_found_as_there(real, utils):
    index, theirs = utils.ImageNetIndex(), real["utils"].ImageNetIndex()
    assert dict(index.items()) == dict(theirs.items()) and list(index) == list(theirs) and len(index) == 1000
    assert list(index.keys()) == list(theirs.keys())
    names = list(index)
    words = sorted({w for n in names for w in n.split()})
    queries = words[::3] + [f"{a} {b}" for a, b in zip(words[::7], words[3::7], strict=False)]
    queries += [n.title() for n in names[::9]] + [n + " dog" for n in names[150:270:4]] + ["zzz", "a photo of zzz"]
    outcomes = {"found": 0, "several": 0, "none": 0}
    for query in queries:
        assert (query in index) == (query in theirs)
        try:
            expected = theirs[query]
        except ValueError as error:
            listed = dict.fromkeys(str(error).removeprefix("Multiple potential matches found: ").split(", "))
            if len(listed) == 1:  # one name, twice
                assert index[query] == index[next(iter(listed))]
                continue
            with pytest.raises(ValueError, match="Multiple potential matches found") as given:
                index[query]
            assert sorted(str(given.value).partition(": ")[2].split(", ")) == sorted(listed)
            outcomes["several"] += 1
        else:
            assert index[query] == expected, query
            outcomes["none" if expected is None else "found"] += 1
    assert all(outcomes.values()) and sum(outcomes.values()) > 500, outcomes


def test_class_names(utils):
    index = utils.ImageNetIndex()
    assert len(set(index)) == len(index) == 1000 and list(index.values()) == list(range(1000))
    assert (index["foxhound"], index["dalmatian dog"], index["Goldfish"], index["zzz"], index[""]) == (
        167,
        251,
        1,
        None,
        None,
    )
    assert (index["crane wading bird"], index["maillot swimsuit"], index["english foxhound"]) == (134, 639, 167)
    assert index["foxhound english foxhound"[:8] + "  "] == 167, "spaces are no word"
    with pytest.raises(ValueError, match="for 'dog': maltese dog, old english sheepdog"):
        index["dog"]
    for wrong in (5, None, b"dog"):
        with pytest.raises(TypeError, match="needs to be a string"):
            index[wrong]
    assert "dog" in index and "Dog" not in index


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1"])
def test_plain_gradients_are_flashtorchs(real, Backprop, name):
    model = torchvision.models.squeezenet1_1(num_classes=10).eval() if name == "squeezenet1_1" else build(name)
    x = image(64)
    for take_max in (False, True):
        expected = real["saliency"].Backprop(model).calculate_gradients(x.requires_grad_(), take_max=take_max)
        given = Backprop(model).calculate_gradients(x, take_max=take_max)
        assert given.shape == expected.shape == (1 if take_max else 3, 64, 64)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_class_that_is_asked_for_is_explained(Backprop):
    model, x = build("resnet18"), image()
    method = Backprop(model)
    maps = [method.calculate_gradients(x, c) for c in (2, np.int64(5), torch.tensor(7), None)]
    for given, c in zip(maps, (2, 5, 7, int(model(x).argmax())), strict=True):
        torch.testing.assert_close(given, gradient(model, x, torch.tensor([c]))[0])
        assert not given.requires_grad and given.abs().max() > 0
    assert not torch.allclose(maps[0], maps[1])
    assert method.gradients.shape == x.shape


def test_no_warning_and_no_gradient_needed(Backprop):
    model, x = tiny(), torch.randn(1, 3, 20, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [Backprop(model).calculate_gradients(x, c, guided=True) for c in range(5)]
    assert all(g.abs().max() > 0 and not g.requires_grad for g in found)
    assert not x.requires_grad and x.grad is None and all(p.grad is None for p in model.parameters())


def test_a_batch_is_each_image_for_itself(Backprop):
    model, x = tiny(), torch.randn(3, 3, 20, 24)
    method = Backprop(model)
    for guided in (False, True):
        for target in (1, [0, 3, 4], torch.tensor([0, 3, 4]), None):
            given = method.calculate_gradients(x, target, guided=guided)
            each = target if isinstance(target, list | torch.Tensor) else [target] * 3
            alone = [method.calculate_gradients(x[n : n + 1], each[n], guided=guided) for n in range(3)]
            torch.testing.assert_close(given, torch.stack(alone))
    assert method.calculate_gradients(x, take_max=True).shape == (3, 1, 20, 24)
    largest = method.calculate_gradients(x[:1], 2, take_max=True)
    assert torch.equal(largest, method.calculate_gradients(x[:1], 2).max(0, keepdim=True)[0])


class Functional(nn.Module):
    """Rectifiers that are no modules."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu_(self.b(F.relu(self.a(x)))).mean((2, 3)))


def by_hand(model, x, target):
    """Guided backpropagation through `Functional`, layer by layer."""
    a = model.a(x)
    b = model.b(a.clamp(min=0))
    g = model.head.weight[target].view(1, -1, 1, 1).expand_as(b) / b[0, 0].numel()
    g = g.clamp(min=0) * (b > 0)
    g = F.conv_transpose2d(g, model.b.weight, padding=1)
    g = g.clamp(min=0) * (a > 0)
    return F.conv_transpose2d(g, model.a.weight)


@torch.no_grad()
def test_guided_gradients_take_the_mask_and_see_functions(Backprop):
    model, x = Functional(), torch.randn(1, 3, 12, 14)
    for target in range(4):
        given = Backprop(model).calculate_gradients(x, target, guided=True)
        torch.testing.assert_close(given, by_hand(model, x, target)[0], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(given, Backprop(model).calculate_gradients(x, target))


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "mobilenet_v2"])
def test_guided_gradients_are_fastcams(Backprop, name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model, x = getattr(torchvision.models, name)(num_classes=10, **options).eval(), image(96)
    method = fastcam.GuidedBackprop(model)
    expected = getattr(method, "attribute", method)(x, 3)[0]
    given = Backprop(model).calculate_gradients(x, 3, guided=True)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    plain = Backprop(model).calculate_gradients(x, 3)
    assert torch.cosine_similarity(given.flatten(), plain.flatten(), dim=0) < 0.9


def test_nothing_is_left_behind(Backprop):
    """A guided call changes no later gradient: its own, another object's, the user's."""
    model, x = build("resnet18"), image()
    plain = gradient(model, x)[0]
    Backprop(model).calculate_gradients(x, guided=True)
    torch.testing.assert_close(gradient(model, x)[0], plain, rtol=0, atol=0)
    torch.testing.assert_close(Backprop(model).calculate_gradients(x), plain)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_model_with_one_score_an_image(Backprop, shape):
    class One(nn.Sequential):
        def forward(self, x):
            return super().forward(x).view(len(x), *shape)

    model = One(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 1))
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    for target in (None, 0, 1):
        torch.testing.assert_close(Backprop(model).calculate_gradients(x, target), expected)
        assert Backprop(model).calculate_gradients(x, target, guided=True).shape == x.shape


def test_gradients_that_cannot_be(Backprop):
    model, x = tiny(), torch.randn(2, 3, 20, 24)
    for target, message in (
        (5, "5 is out of range: the model has 5"),
        (-1, "-1 is out of range"),
        ([1, 2, 3], "one or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Backprop(model).calculate_gradients(x, target)
        with pytest.raises(ValueError, match=message):
            Backprop(model).calculate_gradients(x, target, guided=True)
    for target in (1.5, [0, "a"], object()):
        with pytest.raises(TypeError, match="target_class must be an index"):
            Backprop(model).calculate_gradients(x, target)
    with pytest.raises(TypeError, match=r"'dog': ImageNetIndex\(\)\['dog'\]"):
        Backprop(model).calculate_gradients(x, "dog")
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(3))
    smooth(x)
    with pytest.raises(ValueError, match="met no ReLU"):
        Backprop(smooth).calculate_gradients(x, guided=True)
    cut = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    cut(x)
    cut.register_forward_hook(lambda *a: a[-1].detach())
    with pytest.raises(RuntimeError, match="no gradient back to the input"):
        Backprop(cut).calculate_gradients(x)
    with pytest.raises(ValueError, match="takes 3 channels, input_tensor has 1"):
        Backprop(model).calculate_gradients(x[:, :1])
    with pytest.raises(ValueError, match=r"needs scores \(classes,\)"):
        Backprop(nn.Conv2d(3, 4, 3)).calculate_gradients(x, 1)
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        Backprop(print)
    with pytest.raises(TypeError, match="must be a tensor"):
        Backprop(model).calculate_gradients(x.numpy())


def test_inception_of_any_size(Backprop):
    class Inception(Functional):
        pass

    model, x = Inception(), torch.randn(1, 3, 12, 14)
    torch.testing.assert_close(Backprop(model).calculate_gradients(x, 1), gradient(model, x, torch.tensor([1]))[0])


CALLS = {
    "plain": lambda ft, net, x, path: ft["saliency"].Backprop(net).calculate_gradients(x, 1),
    "guided": lambda ft, net, x, path: ft["saliency"].Backprop(net).calculate_gradients(x, guided=True),
    "saliency figure": lambda ft, net, x, path: ft["saliency"].Backprop(net).visualize(x, 2, guided=True),
    "optimize": lambda ft, net, x, path: ft["activmax"].GradientAscent(net).optimize(net.tail, 3, x, num_iter=2),
    "filters": lambda ft, net, x, path: ft["activmax"].GradientAscent(net, 20).visualize(net.tail, num_iter=2),
    "deepdream": lambda ft, net, x, path: (
        ft["activmax"].GradientAscent(net, 20).deepdream(path, net.tail, 1, num_iter=2)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_model_is_left_as_it_was(ours, photo, call):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    net.broken = False
    if call in ("plain", "guided", "saliency figure"):
        net.eval()
    before, start = snapshot(net), x.detach().clone()
    CALLS[call](ours, net, x, photo)
    assert_same(before, snapshot(net))
    assert torch.equal(x, start) and x.grad is None and x.requires_grad
    if call not in ("deepdream", "filters"):
        net.broken = True
        with pytest.raises(KeyError, match="in forward"):
            CALLS[call](ours, net, x, photo)
        assert_same(before, snapshot(net))


def test_backprop_leaves_evaluation_mode(ours):
    net = fragile()
    assert net.training
    ours["saliency"].Backprop(net)
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("layer", ["conv1", "layer2.0.conv1", "layer3.1.conv2"])
def test_images_are_flashtorchs(real, GradientAscent, layer):
    model = build("resnet18")
    module = model.get_submodule(layer)
    found = []
    for kind in (real["activmax"].GradientAscent, GradientAscent):
        np.random.seed(3)
        found.append(kind(model, img_size=48, lr=0.5).optimize(module, 5, num_iter=6))
    for expected, given in zip(*found, strict=True):
        expected = expected.detach()
        assert given.shape == (1, 3, 48, 48) and not given.requires_grad and given.grad_fn is None
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    assert (given - found[0][0]).abs().max() > 0.5


def test_images_of_several_filters_are_flashtorchs(real, GradientAscent, photo):
    model = torchvision.models.alexnet().features.eval()
    for filters in ([3, 7, 11], None, 4):
        found = []
        for kind in (real["activmax"].GradientAscent, GradientAscent):
            np.random.seed(1)
            maker = kind(model, img_size=64)
            output = maker.visualize(model[3], filters, num_iter=3, num_subplots=3, return_output=True)
            assert maker.output is output and maker.lr == 1.0
            titles = [ax.get_title() for ax in plt.gcf().axes]
            found.append((output if filters != 4 else [output], titles, plt.gcf().get_size_inches().tolist()))
        (theirs, *figure), (given, *other) = found
        assert figure == other and len(given) == len(theirs)
        for a, b in zip(sum(given, []), sum(theirs, []), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-3, atol=1e-3)
    dreams = [
        kind(model, img_size=64).deepdream(photo, model[6], 9, num_iter=3, return_output=True)
        for kind in (real["activmax"].GradientAscent, GradientAscent)
    ]
    for a, b in zip(*dreams, strict=True):
        torch.testing.assert_close(b, a.detach(), rtol=1e-3, atol=1e-3)


def test_images_follow_the_published_procedure(GradientAscent):
    model = tiny()
    start = torch.randn(1, 3, 20, 24)
    method = GradientAscent(model, lr=0.3)
    given = method.optimize(model.tail, 6, start, num_iter=5)
    until = lambda x: model.tail(model.relu(model.body(model.stem(x))))  # noqa: E731
    for a, b in zip(given, ascent(until, start, 6, 5, lr=0.3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert until(given[-1])[:, 6].mean() > until(start)[:, 6].mean()
        torch.testing.assert_close(method.activation, until(given[-2])[:, 6].mean())
    assert method.gradients.shape == start.shape and len({t.data_ptr() for t in given}) == 5


def test_the_start_is_noise_of_numpys_generator(GradientAscent):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
    np.random.seed(9)
    pixels = np.uint8(np.random.uniform(150, 180, (17, 17, 3)))
    x = (torch.from_numpy(pixels) / 255 - torch.tensor(Preprocess().mean)) / torch.tensor(Preprocess().std)
    np.random.seed(9)
    maker = GradientAscent(model, 17, lr=0.0)
    (given,) = maker.optimize(model[0], 1, num_iter=1)
    torch.testing.assert_close(given[0], x.movedim(-1, 0))
    maker.img_size = 9
    assert maker.optimize(model[0], 1, num_iter=1)[0].shape == (1, 3, 9, 9)
    assert maker.optimize(model[0], 1, num_iter=0) == []


def test_images_of_a_batch_and_of_many_filters_are_each_for_itself(GradientAscent):
    model = tiny()
    x = torch.randn(3, 3, 20, 24) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1)
    together = GradientAscent(model).optimize(model.tail, 2, x, num_iter=3)
    for n in range(3):
        alone = GradientAscent(model).optimize(model.tail, 2, x[n : n + 1], num_iter=3)
        torch.testing.assert_close(together[-1][n : n + 1], alone[-1], rtol=1e-4, atol=1e-4)
    filters = np.arange(11)  # more than are optimised together
    maker = GradientAscent(model, 20)
    given = maker.visualize(model.tail, filters, lr=0.4, num_iter=3, return_output=True)
    assert len(given) == 11 and all(len(steps) == 3 and steps[0].shape == (1, 3, 20, 20) for steps in given)
    np.random.seed(0)
    for index, images in zip(filters, given, strict=True):
        expected = GradientAscent(model, 20, lr=0.4).optimize(model.tail, index, num_iter=3)
        torch.testing.assert_close(images[-1], expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_for_any_number_of_channels(GradientAscent, channels):
    model = tiny(channels=channels)
    given = GradientAscent(model, 24).visualize(model.tail, [0, 3], num_iter=8, return_output=True)
    assert given[1][-1].shape == (1, channels, 24, 24) and given[1][-1].isfinite().all()
    first = GradientAscent(model, 24, lr=0.0).optimize(model.stem[0], 0, num_iter=1)[0]
    assert -0.449 / 0.226 < (150 / 255 - 0.449) / 0.226 - 1e-3 < first.min() < first.max() < (180 / 255 - 0.449) / 0.226
    shown = [ax.images[0].get_array() for ax in plt.gcf().axes[1:]]
    assert [s.shape for s in shown] == [(24, 24)] * 2


class Convolution(nn.Conv2d):
    pass


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, Convolution, nn.ConvTranspose2d])
def test_images_for_any_convolution(GradientAscent, kind):
    rank = {nn.Conv1d: 1, nn.Conv3d: 3}.get(kind, 2)
    first = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    model = nn.Sequential(first(2, 4, 3), nn.Tanh(), kind(4, 6, 3))
    given = GradientAscent(model, 9).optimize(model[2], 5, num_iter=4)
    assert [tuple(t.shape) for t in given] == [(1, 2, *[9] * rank)] * 4
    with torch.no_grad():
        values = [model(t)[:, 5].mean() for t in given]
    assert values[0] < values[1] < values[-1]
    if rank != 2:
        with pytest.raises(ValueError, match="only images .* are drawn"):
            GradientAscent(model, 9).visualize(model[2], 1, num_iter=1)
        assert not plt.get_fignums()


def test_the_run_ends_at_the_layer(GradientAscent):
    model = tiny()
    passes = []
    model.head.register_forward_hook(lambda *_: passes.append(1))
    GradientAscent(model, 20).optimize(model.tail, 0, num_iter=2)
    assert not passes


def test_images_that_cannot_be(GradientAscent):
    model = tiny()
    maker = GradientAscent(model, 20)
    for index in (16, -1, np.int64(16)):
        with pytest.raises(ValueError, match="filter index must be between 0 and 15"):
            maker.optimize(model.tail, index)
        with pytest.raises(ValueError, match="filter index must be between 0 and 15"):
            maker.visualize(model.tail, [3, index])
    for index in (1.0, True, "1", None, [1]):
        with pytest.raises(TypeError, match="filter indices must be integers"):
            maker.optimize(model.tail, index)
    for layer in (model.relu, model.head, "tail"):
        with pytest.raises(TypeError, match="layer must be a convolution"):
            maker.optimize(layer, 0)
        with pytest.raises(TypeError, match="layer must be a convolution"):
            maker.visualize(layer)
    with pytest.raises((ValueError, RuntimeError)):
        maker.optimize(nn.Conv2d(3, 4, 3), 0)
    with pytest.raises(ValueError, match="after 1 step or more"):
        maker.visualize(model.tail, 0, num_iter=0)
    with pytest.raises(ValueError, match="no filter to draw"):
        maker.visualize(model.tail, [])
    cut = tiny()
    cut.stem.register_forward_hook(lambda *a: a[-1].detach())
    with pytest.raises(RuntimeError, match="no gradient goes from the layer back to the input"):
        GradientAscent(cut, 20).optimize(cut.tail, 0)


def test_no_filter_is_drawn_twice(GradientAscent):
    model = tiny()
    for seed in range(5):
        np.random.seed(seed)
        GradientAscent(model, 12).visualize(model.tail, num_iter=1, num_subplots=12)
        titles = [ax.get_title() for ax in plt.gcf().axes[1:]]
        assert len(titles) == len(set(titles)) == 12 and all(t.startswith("filter ") for t in titles)
    GradientAscent(model, 12).visualize(model.tail, num_iter=1, num_subplots=99)
    assert len(plt.gcf().axes) == 17


def test_the_model_of_the_tutorial(ours, photo):
    """A ResNet-18 for 1-channel images, of which FlashTorch can draw nothing."""
    model = grey_resnet18()
    for size in (28, 48):
        x = ours["utils"].apply_transforms(ours["utils"].load_image(photo).convert("L"), size)
        assert ours["saliency"].Backprop(model).visualize(x, 3, guided=True) is None
        titles = [ax.get_title() for ax in plt.gcf().axes]
        assert titles == ["Input image", "Gradients across channels", "Max gradients", "Overlay"]
        maker = ours["activmax"].GradientAscent(model, img_size=size)
        maker.visualize(model.layer1[0].conv1, [0, 63], num_iter=2)
        output = maker.deepdream(photo, model.layer2[0].conv1, 5, num_iter=2, return_output=True)
        assert [tuple(t.shape) for t in output] == [(1, 1, size, size)] * 2
    assert len(plt.get_fignums()) == 6
    five = tiny(channels=5)
    with pytest.raises(ValueError, match="image files have 1 or 3 channels, the model takes 5"):
        ours["activmax"].GradientAscent(five).deepdream(photo, five.tail, 0)


def test_the_figure_of_gradients(ours):
    model, x = tiny(), image(40).requires_grad_()
    method, utils = ours["saliency"].Backprop(model), ours["utils"]
    given = method.visualize(x, 2, guided=True, figsize=(12, 3), cmap="magma", alpha=0.25, return_output=True)
    gradients = method.calculate_gradients(x, 2, guided=True)
    assert torch.equal(given[0], gradients) and torch.equal(given[1], gradients.max(0, keepdim=True)[0])
    figure = plt.gcf()
    assert plt.get_fignums() == [figure.number] and figure.get_size_inches().tolist() == [12, 3]
    titles = ["Input image", "Gradients across RGB channels", "Max gradients", "Overlay"]
    assert [ax.get_title() for ax in figure.axes] == titles and not any(ax.axison for ax in figure.axes)
    picture = utils.denormalize(x[0]).movedim(0, -1).detach().clamp(0, 1)
    colours = utils.standardize_and_clip(gradients).movedim(0, -1)
    largest = utils.standardize_and_clip(given[1])[0]
    expected = [[picture], [colours], [largest], [picture, largest]]
    for ax, arrays in zip(figure.axes, expected, strict=True):
        for shown, array in zip(ax.images, arrays, strict=True):
            np.testing.assert_allclose(shown.get_array(), array, atol=1e-6)
    assert [s.get_cmap().name for s in (figure.axes[2].images[0], figure.axes[3].images[1])] == ["magma"] * 2
    assert figure.axes[3].images[1].get_alpha() == 0.25
    assert method.visualize(torch.cat([x, x]), [1, 2]) is None
    assert len(plt.gcf().axes) == 8 and plt.gcf().get_size_inches().tolist() == [16, 8]
    signals = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="only images"):
        ours["saliency"].Backprop(signals).visualize(torch.rand(1, 1, 8), 0)


def test_the_figures_of_filters(ours):
    model, utils = tiny(), ours["utils"]
    maker = ours["activmax"].GradientAscent(model, 20)
    output = maker.visualize(model.tail, 3, num_iter=2, figsize=(3, 3), title="One", return_output=True)
    (ax,) = plt.gcf().axes
    assert ax.get_title() == "One" and not ax.axison and plt.gcf().get_size_inches().tolist() == [3, 3]
    expected = utils.format_for_plotting(utils.standardize_and_clip(output[-1], saturation=0.15, brightness=0.7))
    np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-6)
    assert maker.visualize(model.tail, np.int64(3), num_iter=1) is None and len(plt.gcf().axes) == 1
    maker.visualize(model.tail, [5, 2, 9, 1, 0], num_iter=1, title="Many", lr=0.2)
    whole, *tiles = plt.gcf().axes
    assert whole.get_title() == "Many" and plt.gcf().get_size_inches().tolist() == [16, 10] and maker.lr == 0.2
    assert [t.get_title() for t in tiles] == [f"filter {n}" for n in (5, 2, 9, 1, 0)]
    assert all(len(t.images) == 1 and not len(t.get_xticks()) for t in tiles)
    assert len(plt.get_fignums()) == 3


def test_functions_that_users_replace_are_seen(ours, monkeypatch):
    model, x = tiny(), image(40)
    monkeypatch.setattr(ours["saliency.backprop"], "denormalize", lambda t: torch.zeros_like(t))
    ours["saliency"].Backprop(model).visualize(x, 0)
    assert not np.asarray(plt.gcf().axes[0].images[0].get_array()).any()
    denormalize = ours["utils"].denormalize
    for _ in range(2):  # there and back
        with pytest.warns(UserWarning, match="or replace it in saliency.backprop, activmax.gradient_ascent"):
            ours["utils"].denormalize = denormalize


def test_half_precision(ours):
    model, x = tiny().bfloat16(), image(40).bfloat16()
    for guided in (False, True):
        given = ours["saliency"].Backprop(model).visualize(x, 2, guided=guided, return_output=True)
        assert given[0].dtype == torch.bfloat16 and given[0].abs().max() > 0
    steps = ours["activmax"].GradientAscent(model, 20).visualize(model.tail, 1, num_iter=2, return_output=True)
    assert steps[-1].dtype == torch.bfloat16 and steps[-1].isfinite().all()


def test_on_a_gpu_if_there_is_one(ours, device):
    model = tiny()
    ours["saliency"].Backprop(model).calculate_gradients(image(40), use_gpu=True)
    assert next(model.parameters()).device.type == device.type
    maker = ours["activmax"].GradientAscent(model, 20, use_gpu=True)
    assert maker.optimize(model.tail, 1, num_iter=1)[0].device.type == device.type
