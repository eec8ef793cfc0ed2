"""The gradient of the input without those of the parameters: the same values, whatever convolution and model."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastcam
from fastcam.lean import InputGraph, _FixedNorm, input_graph

CONVOLUTIONS = {  # channels in and out, and what else `nn.Conv2d` takes
    "stem": (3, 8, dict(kernel_size=7, stride=2, padding=3)),
    "patches": (1, 4, dict(kernel_size=4, stride=4)),
    "few channels": (1, 8, dict(kernel_size=5, stride=3, padding=2)),
    "a row": (3, 8, dict(kernel_size=(1, 3), stride=2, padding=(0, 1))),
    "pixels": (6, 8, dict(kernel_size=1)),
    "strided pixels": (6, 8, dict(kernel_size=1, stride=(2, 3))),
    "padded pixels": (6, 8, dict(kernel_size=1, padding=1)),
    "3 x 3": (6, 8, dict(kernel_size=3, padding=1)),
    "strided": (6, 8, dict(kernel_size=3, stride=2, padding=1)),
    "same": (6, 8, dict(kernel_size=3, padding="same")),
    "depthwise": (6, 6, dict(kernel_size=3, groups=6)),
    "dilated groups": (6, 8, dict(kernel_size=3, dilation=2, groups=2)),
    "with a bias": (6, 8, dict(kernel_size=1, bias=True)),
}


def norm(channels, **options):
    m = nn.BatchNorm2d(channels, **options).double().eval()
    with torch.no_grad():
        for t in (m.running_mean, *m.parameters()):
            t.normal_()
        m.running_var.uniform_(0.5, 2)
    return m


def output_and_gradient(f, x, lean):
    x = x.clone().requires_grad_()
    with InputGraph() if lean else torch.enable_grad():
        y = f(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


def check(f, x):
    (y, g), (expected_y, expected) = output_and_gradient(f, x, True), output_and_gradient(f, x, False)
    assert torch.equal(y, expected_y)
    torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-10)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (15, 13), (10, 17)])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_and_norm(kind, size):
    inside, out, options = CONVOLUTIONS[kind]
    torch.manual_seed(0)
    conv = nn.Conv2d(inside, out, **{"bias": False, **options}).double()
    x = torch.randn(3, inside, *size, dtype=torch.double)
    for batch in (x, x[:1], x.contiguous(memory_format=torch.channels_last)):
        check(nn.Sequential(conv, norm(out), nn.ReLU(inplace=True)), batch)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_norms_alone(options):
    x = torch.randn(3, 4, 5, 6, dtype=torch.double)
    m = nn.BatchNorm2d(4, **options).double().eval()
    check(m, x)
    check(lambda x: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double(), training=True), x)


class Odd(nn.Module):
    """Does between a convolution and its norm what must not go unseen."""

    def __init__(self, what):
        super().__init__()
        torch.manual_seed(0)
        self.what, self.conv, self.norm, self.seen = what, nn.Conv2d(3, 4, 1, bias=False).double(), norm(4), []

    def forward(self, x):
        x = x * 1
        z = self.conv(x)
        if self.what == "output used twice":
            return self.norm(z) * z
        if self.what == "output written":
            z.mul_(2)
        if self.what == "input written":
            x.mul_(2)
            return self.norm(z) + x.sum()
        if self.what == "hook on the output":
            z.register_hook(lambda g: 3 * g)
        if self.what == "gradient kept":
            z.retain_grad()
            self.seen.append(z)
        if self.what == "another output":
            z = z.clone()
        return self.norm(z)


@pytest.mark.parametrize(
    "what", ["output used twice", "output written", "hook on the output", "gradient kept", "another output"]
)
def test_what_happens_between_convolution_and_norm_counts(what):
    model = Odd(what)
    check(model, torch.randn(2, 3, 5, 5, dtype=torch.double))
    assert all(z.grad is None or z.grad.abs().max() > 0 for z in model.seen)


def test_an_input_written_behind_the_convolution_is_an_error_as_without():
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    for lean in (True, False):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output_and_gradient(Odd("input written"), x, lean)


def test_second_derivatives():
    conv, m = nn.Conv2d(3, 4, 3, stride=2, bias=False).double(), norm(4)
    x = torch.randn(1, 3, 7, 7, dtype=torch.double, requires_grad=True)
    with InputGraph():
        assert torch.autograd.gradgradcheck(lambda x: m(conv(x)).sin(), x)


def test_the_output_of_the_convolution_is_not_kept():
    conv, m, kept = nn.Conv2d(3, 4, 1, bias=False), norm(4).float(), []

    def keep(_, args, output):
        kept.append(weakref.ref(output))

    conv.register_forward_hook(keep)
    with InputGraph():
        y = m(conv(torch.randn(1, 3, 4, 4, requires_grad=True)))
    assert kept[0]() is None and y.requires_grad


def test_parameters_stay_out_of_it_only_inside():
    conv, m = nn.Conv2d(3, 4, 1, bias=False).double(), norm(4)
    m(conv(torch.randn(1, 3, 4, 4, dtype=torch.double))).sum().backward()
    assert all(p.grad is not None for p in (*conv.parameters(), *m.parameters()))


def test_a_model_without_norms_is_left_alone():
    with input_graph(nn.Conv2d(1, 1, 1), torch.empty(1)) as mode:
        assert mode is None
    normed = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with input_graph(normed, torch.empty(1, device="meta")) as mode:
        assert mode is None
    with input_graph(normed, torch.empty(1)) as mode:
        assert isinstance(mode, InputGraph)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float16])
def test_scales_of_narrow_norms_are_not_narrow(inputs, parameters, affine):
    """The gradient is PyTorch's own but for the last rounding: one unit of the input's type."""
    if parameters not in (inputs, torch.float32):
        return
    m, x = norm(64, affine=affine).to(parameters), torch.randn(2, 64, 4, 4).to(inputs)
    (y, g), (expected_y, expected) = output_and_gradient(m, x, True), output_and_gradient(m, x, False)
    assert torch.equal(y, expected_y) and g.dtype == expected.dtype == inputs
    unit = torch.finfo(inputs).eps
    torch.testing.assert_close(g.float(), expected.float(), rtol=unit, atol=1e-7 if inputs == torch.bfloat16 else 1e-6)
    assert (g == expected).double().mean() > 0.95


def test_autocast():
    """Under it, the narrow convolution is left alone; a wide one inside goes backward in full."""
    conv, m = nn.Conv2d(6, 8, 1, bias=False), norm(8).float()

    def wide_inside(x):
        with torch.autocast("cpu", enabled=False):
            return m(conv(x))

    x = torch.randn(2, 6, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, g), (expected_y, expected) = (output_and_gradient(lambda x: m(conv(x)), x, lean) for lean in (True, False))
        _, inside = output_and_gradient(wide_inside, x, True)
    assert torch.equal(y, expected_y) and g.dtype == torch.float32
    torch.testing.assert_close(g, expected, rtol=0, atol=0.01 * expected.abs().max().item())
    torch.testing.assert_close(inside, output_and_gradient(wide_inside, x, False)[1], rtol=1e-5, atol=1e-5)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), norm(8).float(), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), norm(8).float(), nn.ReLU())
        self.head, self.checkpointed = nn.Linear(8, 5), False

    def forward(self, x):
        x = self.first(x)
        x = checkpoint(self.second, x, use_reentrant=False) if self.checkpointed else self.second(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("method", ["FullGrad", "SmoothFullGrad"])
def test_checkpoints(method):
    net, x = Checkpointed().eval(), torch.rand(2, 3, 16, 16)
    expected = getattr(fastcam, method)(net).attribute(x, [1, 2])
    net.checkpointed = True
    torch.testing.assert_close(getattr(fastcam, method)(net).attribute(x, [1, 2]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["FullGrad", "SimpleFullGrad"])
def test_full_gradients_use_it(method, monkeypatch):
    """And without it give the same."""
    net, x, calls = Checkpointed().eval(), torch.rand(2, 3, 16, 16), []
    apply = _FixedNorm.apply
    monkeypatch.setattr(_FixedNorm, "apply", lambda *args: calls.append(args[1] is not None) or apply(*args))
    found = getattr(fastcam, method)(net).attribute(x, [1, 2])
    assert calls == [True, True]
    monkeypatch.setattr("fastcam.lean._transformed", lambda: True)
    torch.testing.assert_close(getattr(fastcam, method)(net).attribute(x, [1, 2]), found, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
