"""Other backward rules at every ReLU, however it is spelt, against networks rewritten by hand, in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fastcam.visualize import DeconvNet, GuidedBackprop
from fastcam.visualize.rectifiers import Rectifiers
from fastcam.visualize.saliency import Saliency

RULES = {"guided": GuidedBackprop, "deconvolve": DeconvNet}


class ByHand(torch.autograd.Function):
    """A rectifier with its rule written out, for the networks rewritten by hand."""

    @staticmethod
    def forward(ctx, z, rule, high):
        ctx.save_for_backward(z)
        ctx.rule, ctx.high = rule, high
        return torch.where(z <= 0, 0, torch.where(z >= high, high, z))

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        passed = torch.where(g > 0, g, 0)
        if ctx.rule == "guided":
            passed = torch.where((z > 0) & (z < ctx.high), passed, 0)
        return passed, None, None


def by_hand(rule, high=float("inf")):
    return lambda z: ByHand.apply(z, rule, high)


class Net(nn.Module):
    """A convolution, a block that contains rectifiers, a convolution, the block again, a linear head."""

    def __init__(self, block):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4 * 4 * 4, 3)
        self.block = block

    def forward(self, x):
        return self.head(self.block(self.second(self.block(self.first(x)))).flatten(1))


def net_with(block):
    torch.manual_seed(4)
    net = Net(block).double()
    with torch.no_grad():
        net.first.weight.mul_(8)  # some values above 6
        net.second.weight.mul_(4)
    return net


def images(count=3):
    return torch.randn(count, 2, 8, 8, dtype=torch.float64)


def plain_gradient(net, x, category=1):
    x = x.clone().requires_grad_()
    output = net(x)
    return output.detach(), torch.autograd.grad(output[:, category].sum(), x)[0]


def check(rule, block, oracle_block, met):
    """The gradient by a rule equals that of the network rewritten by hand, and the plain outputs are not changed."""
    x, net = images(), net_with(block)
    method = RULES[rule](net)
    gradient = method.attribute(x, 1)
    _, expected = plain_gradient(net_with(oracle_block), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
    with torch.no_grad():
        assert torch.equal(method.outputs, net(x))
    assert method.rectifiers == met
    assert expected.abs().max() > 0.1
    return gradient


def ignored(call):
    """An operation in place whose result is ignored, as most models have it."""

    def block(h):
        call(h)
        return h

    return block


def ignoring(module):
    class Ignoring(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, h):
            self.inner(h)
            return h

    return Ignoring()


INFINITE = float("inf")
SPELLINGS = {
    "nn.ReLU": (nn.ReLU(), INFINITE),
    "nn.ReLU-inplace": (ignoring(nn.ReLU(inplace=True)), INFINITE),
    "F.relu": (F.relu, INFINITE),
    "F.relu-inplace": (ignored(lambda h: F.relu(h, inplace=True)), INFINITE),
    "F.relu_": (ignored(F.relu_), INFINITE),
    "torch.relu": (torch.relu, INFINITE),
    "torch.relu_": (ignored(torch.relu_), INFINITE),
    "relu": (lambda h: h.relu(), INFINITE),
    "relu_": (ignored(lambda h: h.relu_()), INFINITE),
    "nn.ReLU6": (nn.ReLU6(), 6),
    "nn.ReLU6-inplace": (ignoring(nn.ReLU6(inplace=True)), 6),
    "F.relu6": (F.relu6, 6),
    "F.relu6-inplace": (ignored(lambda h: F.relu6(h, inplace=True)), 6),
    "nn.Hardtanh": (nn.Hardtanh(0, 6), 6),
    "F.hardtanh": (lambda h: F.hardtanh(h, 0.0, 2.5), 2.5),
    "F.hardtanh_": (ignored(lambda h: F.hardtanh_(h, 0.0, 6.0)), 6),
    "nn.Threshold": (nn.Threshold(0, 0), INFINITE),
    "nn.Threshold-inplace": (ignoring(nn.Threshold(0, 0, inplace=True)), INFINITE),
    "F.threshold": (lambda h: F.threshold(h, 0, 0), INFINITE),
    "F.threshold_": (ignored(lambda h: F.threshold_(h, 0, 0)), INFINITE),
    "torch.threshold": (lambda h: torch.threshold(h, 0, 0), INFINITE),
    "clamp": (lambda h: h.clamp(min=0), INFINITE),
    "clamp-positional": (lambda h: h.clamp(0.0), INFINITE),
    "clamp_": (ignored(lambda h: h.clamp_(min=0)), INFINITE),
    "torch.clamp": (lambda h: torch.clamp(h, 0, 6), 6),
    "torch.clamp_": (ignored(lambda h: torch.clamp_(h, 0, 6)), 6),
    "torch.clip": (lambda h: torch.clip(h, min=0, max=6), 6),
    "clip": (lambda h: h.clip(0), INFINITE),
    "clip_": (ignored(lambda h: h.clip_(0, 6)), 6),
    "torch.clip_": (ignored(lambda h: torch.clip_(h, 0)), INFINITE),
    "clamp_min": (lambda h: h.clamp_min(0), INFINITE),
    "torch.clamp_min": (lambda h: torch.clamp_min(h, 0), INFINITE),
    "clamp_min_": (ignored(lambda h: h.clamp_min_(0)), INFINITE),
    "torch.clamp_min_": (ignored(lambda h: torch.clamp_min_(h, 0)), INFINITE),
    "clamp-tensor": (lambda h: h.clamp(min=torch.tensor(0.0, dtype=h.dtype)), INFINITE),
    "clamp-tensors": (lambda h: torch.clamp(h, torch.zeros(1).to(h), torch.ones(1).to(h)), 1),
    "clamp-out-None": (lambda h: torch.clamp(h, 0, 6, out=None), 6),
    "aten.clamp_min": (lambda h: torch.ops.aten.clamp_min.default(h, 0), INFINITE),
    "aten.hardtanh": (lambda h: torch.ops.aten.hardtanh.default(h, 0, 6), 6),
    "builtin-relu6": (lambda h: torch._C._nn.relu6(h), 6),
    "leaky-slope-0": (nn.LeakyReLU(0.0), INFINITE),
    "leaky-slope-0-inplace": (ignoring(nn.LeakyReLU(0.0, inplace=True)), INFINITE),
    "torch.maximum": (lambda h: torch.maximum(h, torch.zeros(()).to(h)), INFINITE),
    "maximum-zeros-first": (lambda h: torch.max(torch.zeros_like(h), h), INFINITE),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling, rule):
    block, high = SPELLINGS[spelling]
    gradient = check(rule, block, by_hand(rule, high), met=2)
    _, plain = plain_gradient(net_with(block), images())
    assert (gradient - plain).abs().max() > 0.1


def halves(relu):
    """A rectifier in place on a view of a tensor."""

    def block(h):
        relu(h[:, ::2])
        return h

    return block


def halves_by_hand(relu):
    return lambda h: torch.stack([relu(h[:, ::2]), h[:, 1::2]], 2).flatten(1, 2)


def then_adding(relu_):
    """A rectifier in place, and an addition in place to what it left."""

    def block(h):
        h = relu_(h + 0)
        h += 0.3
        return h.mul_(2)

    return block


STRUCTURES = {  # a block for rectifiers, the same by hand, in place or not, and how many rectifiers it has
    "input-used-again": (lambda r: lambda h: r(h) - 0.5 * h, None, False, 1),
    "input-used-before": (lambda r: lambda h: h.sin() * r(h), None, False, 1),
    "reused-thrice": (lambda r: lambda h: r(r(r(h) - 1).sin() - 0.2), None, False, 3),
    "a-branch-each": (lambda r: lambda h: r(h) - r(-h), None, False, 2),
    "on-a-view-in-place": (halves, halves_by_hand, True, 1),
    "then-addition-in-place": (then_adding, lambda r: lambda h: (r(h) + 0.3) * 2, True, 1),
    "copied-before-in-place": (lambda r: lambda h: h * 0.5 - r(h.clone()), None, True, 1),
    "on-a-transposed-view": (lambda r: lambda h: r(h.transpose(2, 3)).transpose(2, 3), None, True, 1),
}
CALLS = {"module": (nn.ReLU(), nn.ReLU(inplace=True)), "function": (torch.relu, torch.relu_)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_surrounds_a_rectifier(structure, calls, rule):
    block, hand, in_place, count = STRUCTURES[structure]
    x, relu = images(), CALLS[calls][in_place]
    method = RULES[rule](net_with(block(relu)))
    gradient = method.attribute(x, 1)
    _, expected = plain_gradient(net_with((hand or block)(by_hand(rule))), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    assert method.rectifiers == 2 * count


@pytest.mark.parametrize("rule", RULES)
def test_two_layers_without_autograd(rule):
    """y = v · r(W r(x)), its backward pass in numpy."""
    first, second = nn.Linear(7, 9, bias=False).double(), nn.Linear(9, 4, bias=False).double()
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), first, nn.ReLU(), second)
    x = torch.randn(2, 1, 7, dtype=torch.float64)
    gradient = RULES[rule](net).attribute(x, 2)
    W, v = first.weight.detach().numpy(), second.weight.detach().numpy()[2]
    for image, found in zip(x[:, 0].numpy(), gradient[:, 0].numpy(), strict=True):
        hidden, g = W @ image.clip(0), v.clip(0)
        g = ((g * (hidden > 0) if rule == "guided" else g) @ W).clip(0)
        torch.testing.assert_close(found, g * (image > 0) if rule == "guided" else g, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("high", [None, 6.0])
def test_at_the_ends_of_the_range_guided_passes_nothing(high):
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0, float("inf"), float("nan")], requires_grad=True)
    with Rectifiers("guided"):
        y = F.relu(x) if high is None else F.relu6(x)
    torch.testing.assert_close(y, x.relu() if high is None else F.relu6(x), rtol=0, atol=0, equal_nan=True)
    y.backward(torch.ones(9))
    last = [1, 1, 1, 0] if high is None else [0, 0, 0, 0]
    assert x.grad.tolist() == [0, 0, 0, 1, 1, *last]


LEFT_ALONE = {
    "hardtanh": lambda h: F.hardtanh(h, -1.0, 1.0),
    "nn.Hardtanh": nn.Hardtanh(),
    "hardtanh_": lambda h: F.hardtanh_(h + 0),
    "leaky_relu": nn.LeakyReLU(0.1),
    "gelu": F.gelu,
    "silu": nn.SiLU(),
    "elu": F.elu,
    "hardswish": nn.Hardswish(),
    "threshold": lambda h: F.threshold(h, 0.1, 0.0),
    "threshold-value": lambda h: F.threshold(h, 0.0, 0.2),
    "clamp-0.5": lambda h: h.clamp(min=0.5),
    "clamp-to-0": lambda h: h.clamp(max=0),
    "clamp-nothing-between": lambda h: h.clamp(0, 0) + h,
    "maximum-of-two": lambda h: torch.maximum(h, h.flip(1)),
    "max-over-channels": lambda h: h * torch.max(h, dim=1, keepdim=True).values,
    "clamp_min": lambda h: h.clamp_min(1e-6),
    "integers": lambda h: h * torch.arange(-3, 3).clamp(min=0).view(-1, 1, 1)[: h.shape[1]],
    "normalize": lambda h: F.normalize(h),
}


@pytest.mark.parametrize("block", LEFT_ALONE)
def test_what_is_left_alone(block):
    x, net = images(), net_with(LEFT_ALONE[block])
    with Rectifiers("guided") as rectifiers:
        output, gradient = plain_gradient(net, x)
    expected_output, expected = plain_gradient(net, x)
    assert rectifiers.met == 0
    assert torch.equal(output, expected_output) and torch.equal(gradient, expected)


def test_a_rectifier_returns_what_the_plain_one_does():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    for spelling in (F.relu, F.relu6, lambda h: h.clamp(0, 1)):
        with Rectifiers("guided") as rectifiers:
            y = spelling(x)
        assert torch.equal(y, spelling(x)) and y.stride() == x.stride() and rectifiers.met == 1
    with Rectifiers("guided"):
        h = x * 1
        assert h.relu_() is h and h.min() == 0


def test_weights_are_clamped_in_place_as_without_the_mode():
    weight = nn.Parameter(torch.randn(5))
    expected = weight.detach().clamp(min=0)
    with Rectifiers("guided"), torch.no_grad():
        weight.clamp_(min=0)
    assert torch.equal(weight, expected) and weight.is_leaf and weight.requires_grad


def test_a_transformer_has_a_rectifier_in_each_block():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="relu", batch_first=True).requires_grad_(False)
    method = GuidedBackprop(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 2)))
    assert method.attribute(torch.randn(2, 5, 8), 1).any() and method.rectifiers == 1


OUT_OF_REACH = {
    "scripted": lambda: torch.jit.script(nn.ReLU()),
    "clamp-by-pixel": lambda: lambda h: torch.clamp(h, torch.zeros_like(h), torch.ones_like(h)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", OUT_OF_REACH)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_rectifier_out_of_reach_is_an_error(kind, rule):
    hidden = OUT_OF_REACH[kind]()
    with pytest.raises(RuntimeError, match="out of reach of another backward rule"):
        RULES[rule](net_with(lambda h: hidden(F.relu(h))))(images(), 1)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match='rule must be "guided", "deconvolve" or "redirect", got \'plain\''):
        Rectifiers("plain")


NETWORKS = {  # and how many rectifiers they run
    "alexnet": ({}, 7),
    "vgg11": ({}, 9),
    "squeezenet1_1": ({}, 26),
    "resnet18": ({}, 17),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 57),
    "mobilenet_v2": ({}, 35),
    "densenet121": ({}, 121),
}


def tiny_headed_vgg11(num_classes):
    """VGG-11 without the 120 million weights of its head."""
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"])
    head = nn.Linear(512, 16), nn.ReLU(inplace=True), nn.Linear(16, num_classes)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_torchvision(network, monkeypatch):
    keywords, count = NETWORKS[network]
    make = tiny_headed_vgg11 if network == "vgg11" else getattr(torchvision.models, network)
    net = make(num_classes=7, **keywords).eval()
    x = torch.randn(2, 3, 64, 64)
    _, plain = plain_gradient(net, x)
    assert torch.equal(Saliency(net).attribute(x, 1), plain)
    for rule, cls in RULES.items():
        method = cls(net)
        gradient = method.attribute(x, 1)
        with monkeypatch.context() as patch:
            patch.setattr(F, "relu", lambda z, inplace=False, rule=rule: by_hand(rule)(z))
            rewritten = copy.deepcopy(net)
            for module in list(rewritten.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.ReLU6):
                        module._modules[name] = by_hand(rule, 6.0)
            _, expected = plain_gradient(rewritten, x)
        assert method.rectifiers == count
        largest = expected.abs().max()
        assert (gradient - expected).abs().max() <= 1e-5 * largest
        assert (gradient - plain).abs().max() > 0.1 * largest
