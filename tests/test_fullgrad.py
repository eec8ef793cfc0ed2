"""FullGrad beside pytorch-grad-cam and beside a loop over its channels; what counts as a bias."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fastcam import ops
from fastcam.full_gradients import full_gradients
from fastcam.methods.fullgrad import FullGrad, SimpleFullGrad, SmoothFullGrad
from fastcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

from models import TinyNet, build, inputs, tiny
from test_untouched import assert_same, broken_target, fragile, snapshot

FAMILY = [FullGrad, SimpleFullGrad, SmoothFullGrad]
MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def photos(count=3, size=(20, 24)):
    return torch.randn(count, 3, *size)


def method(cls, net, **options):
    """With few noisy copies, where there are any."""
    return cls(net, **({"samples": 3} if cls is SmoothFullGrad else {}), **options)


def bias_of(module):
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()
    return module.bias if isinstance(module, CONVOLUTIONS) else None


def terms(net, x, category):
    """x dy/dx, and b dy/dz of every call of a module that has a bias, in their order; one image, by forward hooks."""
    calls, x = [], x.clone().requires_grad_()

    def keep(module, _, z):
        calls.append((bias_of(module).detach(), z))
        return z.clone()  # which may be written into

    handles = [m.register_forward_hook(keep) for m in net.modules() if bias_of(m) is not None]
    score = net(x)[0, category]
    gradients = torch.autograd.grad(score, [x, *(z for _, z in calls)])
    for handle in handles:
        handle.remove()
    biases = [b.view(-1, *[1] * (x.ndim - 2)) for b, _ in calls]
    return (x * gradients[0])[0].detach(), [(b, g[0]) for b, g in zip(biases, gradients[1:], strict=True)]


def psi(v, rescale, size):
    """The sum over channels of |v|, scaled to [0, 1] and resized, a channel at a time."""
    v, total = v.abs(), 0
    for channel in v:
        low, high = (channel.min(), channel.max()) if rescale == "channel" else (v.min(), v.max())
        scaled = (channel - low) / (1e-7 + (high - low))
        total = total + F.interpolate(scaled[None, None], size, mode=MODES[v.ndim + 1], align_corners=False)[0, 0]
    return total


def by_formula(net, x, category, cls=FullGrad, rescale="channel"):
    """The unscaled map of one image `(1, k, *S)`."""
    size = x.shape[2:]
    if cls is SmoothFullGrad:
        generator = torch.Generator().manual_seed(0)
        std = 0.15 * (x.max() - x.min())
        copies = [x + std * torch.randn(x.shape[1:], generator=generator).to(x.dtype) for _ in range(3)]
        seen = [terms(net, c, category) for c in copies]
        image = sum(i for i, _ in seen).sum(0, keepdim=True) / 3
        layers = [b * sum(layers[n][1] for _, layers in seen) / 3 for n, (b, _) in enumerate(seen[0][1])]
    else:
        image, layers = terms(net, x, category)
        layers = [g if cls is SimpleFullGrad else b * g for b, g in layers]
    return psi(image, rescale, size) + sum(psi(v, rescale, size) for v in layers)


@pytest.mark.parametrize("rescale", ["channel", "layer"])
@pytest.mark.parametrize("cls", FAMILY)
def test_the_formula_channel_by_channel(cls, rescale):
    net, x = tiny().double(), photos().double()
    found = method(cls, net, rescale=rescale).attribute(x, [0, 3, 1], normalize=False)
    assert found.dtype == torch.float64 and found.shape == (3, 20, 24) and found.std() > 0.1
    for n, category in enumerate([0, 3, 1]):
        torch.testing.assert_close(found[n], by_formula(net, x[n : n + 1], category, cls, rescale))


def test_the_variants_differ_and_rescale_a_layer_at_once():
    net, x = tiny(), photos()
    maps = [method(cls, net)(x, 1) for cls in FAMILY] + [FullGrad(net, rescale="layer")(x, 1)]
    for n, m in enumerate(maps):
        assert m.min() == 0 and 0.999 < m.max() <= 1
        assert all(np.abs(m - other).max() > 0.01 for other in maps[:n])
    np.testing.assert_array_equal(SimpleFullGrad(net, rescale="layer")(x, 1), maps[1])


@pytest.mark.parametrize("cls", FAMILY)
def test_beside_a_cpu_channels_are_summed_by_the_operator(cls, monkeypatch):
    """Which on a GPU is a kernel in full fp32: a matrix product would obey the caller's TF32 setting."""
    seen = []
    monkeypatch.setattr(ops, "channel_sum", lambda A, w: seen.append((A.shape, w.shape)) or A[:, :2])  # two parts
    gradient, bias = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(3, device="meta")
    assert cls(tiny())._saliency(gradient, bias).shape == (2, 4, 5)
    assert seen == [((2, 3, 20), (2, 3))]


NETWORKS = ["resnet18", "vgg11_bn", "mobilenet_v3_small", "densenet121"]
CASES = [(name, *case) for name in NETWORKS for case in [(1, "predicted", False, False), (3, "given", False, True)]]
CASES += [("resnet18", 3, "callables", False, False), ("resnet18", 2, "given", True, False)]
CASES += [("mobilenet_v3_small", 1, "predicted", True, True)]


@pytest.mark.parametrize("network, batch, kind, aug_smooth, eigen_smooth", CASES)
def test_beside_pytorch_grad_cam(network, batch, kind, aug_smooth, eigen_smooth):
    x = inputs(network, batch)[..., :64, 16:96]
    targets = {
        "predicted": None,
        "given": [ClassifierOutputTarget(n) for n in range(batch)],
        "callables": [ClassifierOutputSoftmaxTarget(n) for n in range(batch)],
    }[kind]
    options = {"aug_smooth": aug_smooth, "eigen_smooth": eigen_smooth}
    expected = pytorch_grad_cam.FullGrad(build(network), [])(x, targets, **options)
    found = FullGrad(build(network), sign="lapack")(x, targets, **options)
    assert found.dtype == expected.dtype == np.float32 and expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eigen_smooth, factor", [(False, 1e-18), (True, 1e-29)])
def test_a_gradient_that_vanishes_stays_small_as_in_pytorch_grad_cam(eigen_smooth, factor):
    x, faint = inputs("resnet18", 2)[..., :64, 16:96], [lambda y: 1e3 * factor * y[3], lambda y: factor * y[3]]
    expected = pytorch_grad_cam.FullGrad(build("resnet18"), [])(x, faint, eigen_smooth=eigen_smooth)
    found = FullGrad(build("resnet18"), sign="lapack")(x, faint, eigen_smooth=eigen_smooth)
    assert expected.max() > 0.01 and expected[1].max() < 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aux", [False, True], ids=["without", "not run"])
def test_googlenet_with_auxiliary_heads_that_give_nothing(aux):
    torch.manual_seed(0)
    net = torchvision.models.googlenet(aux_logits=True, init_weights=False, num_classes=5).eval()
    x = photos(1, (64, 64))
    other = torchvision.models.googlenet(aux_logits=False, init_weights=False, num_classes=5).eval()
    other.load_state_dict(net.state_dict(), strict=False)
    found = FullGrad(net if aux else other)(x, 2)
    other.aux1 = other.aux2 = nn.Identity()  # pytorch-grad-cam stumbles over None
    expected = pytorch_grad_cam.FullGrad(other, [])(x, [ClassifierOutputTarget(2)])
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


class Tangled(TinyNet):
    """Its layers run in another order than they are registered; one runs twice, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.late = nn.Conv2d(8, 8, 3, padding=1)
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.early[1].running_mean.normal_()
        self.unused = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = self.early(x).relu()
        x = self.late(self.late(x).relu_())
        return self.head(F.max_pool2d(x, 2).relu().mean((2, 3)))


@pytest.mark.parametrize("cls", FAMILY)
def test_layers_in_any_order_twice_or_not_at_all(cls):
    net, x = tiny(Tangled).double(), photos(1).double()
    expected = by_formula(net, x, 2, cls, cls.rescale)
    torch.testing.assert_close(method(cls, net).attribute(x, 2, normalize=False)[0], expected)


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one, as timm has it: the bias is not added to the module's output."""

    def forward(self, x):
        return super().forward(x).relu()


class OwnConvolution(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(input=x, weight=self.weight, bias=self.bias, padding=1)


def test_a_bias_counts_where_it_is_added():
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(6 * 9 * 7, 3)]
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2, 3), *head)
    with torch.no_grad():
        for t in (plain[1].running_mean, plain[1].bias):
            t.normal_()
    own = nn.Sequential(OwnConvolution(3, 6, 3), NormAct(6), nn.Identity(), *plain[3:])
    own.load_state_dict(plain.state_dict())
    x = photos(2, (28, 22))
    maps = [FullGrad(net.eval(), rescale="layer")(x, 1) for net in (plain, own)]
    np.testing.assert_array_equal(*maps)
    own[1].bias = None
    assert np.abs(FullGrad(own, rescale="layer")(x, 1) - maps[1]).max() > 0.01


def test_biases_of_a_batch_norm():
    """With statistics of its own the implicit bias, with those of the input the explicit one, without a bias none."""
    x = photos(2)
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, affine=False)]
    for norm in norms:
        for t in [*norm.parameters(), *(b for b in norm.buffers() if b.ndim)]:
            nn.init.uniform_(t, 0.5, 2)
    net, seen = nn.Sequential(*norms, nn.Flatten()).eval(), []
    with full_gradients(net, x) as run:
        run.gradient(run.output, lambda place, bias, G: seen.append((place, bias)))
    assert [place for place, _ in seen] == [1, 0]
    torch.testing.assert_close(seen[0][1], norms[1].bias.detach())
    torch.testing.assert_close(seen[1][1], norms[0](torch.zeros(1, 3, 1, 1)).detach().flatten())


class Folded(TinyNet):
    """A convolution over half images in a batch of their own, one over channels: neither output lies on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.over_channels = nn.Conv2d(3, 3, 1), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        x = torch.cat(self.halves(torch.cat(x.chunk(2, 3))).chunk(2), 3)
        x = self.relu(self.body(self.stem(x)))
        x = x * self.over_channels(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        return self.head(self.tail(x).mean((2, 3)))


def test_maps_that_do_not_lie_on_the_image_are_left_out():
    net, seen = tiny(Folded), []
    with full_gradients(net, photos(2)) as run:
        run.gradient(run.output, lambda place, bias, G: seen.append((place, tuple(bias.shape), G.shape[1:])))
    small = (10, 12)
    assert seen == [(4, (16,), (16, *small)), (3, (12,), (12, *small)), (2, (12,), (12, *small))] + [
        (1, (8,), (8, *small)),
        (0, (8,), (8, *small)),
    ]


class Upsampling(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.ConvTranspose2d(12, 16, 3, stride=2)


@pytest.mark.parametrize("kind", [TinyNet, Tangled, Upsampling])
def test_all_terms_add_up_to_the_score(kind):
    """Completeness, proposition 1 of the paper."""
    net, x, total = tiny(kind).double(), photos(2).double(), []
    with full_gradients(net, x) as run:
        with torch.enable_grad():
            score = run.output[:, 3]

        def receive(_, bias, G):
            total.append((G * bias.view(-1, 1, 1)).sum((1, 2, 3)))

        total.append((x * run.gradient(score, receive)).sum((1, 2, 3)))
    assert len(total) > 4 and min(t.abs().min() for t in total) > 1e-5
    torch.testing.assert_close(sum(total) + net.head.bias[3], score)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("cls", FAMILY)
def test_signals_and_volumes(cls, rank, monkeypatch):
    def resize(maps, size, *_):
        return F.interpolate(maps[:, None], tuple(size), mode=MODES[rank + 2], align_corners=False)[:, 0]

    monkeypatch.setattr(ops, "resize", resize)
    torch.manual_seed(0)
    convolution, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    pool = getattr(nn, f"AdaptiveAvgPool{rank}d")(1)
    net = nn.Sequential(convolution(2, 4, 3, stride=2), norm(4), nn.ReLU(), convolution(4, 3, 3), pool, nn.Flatten())
    net[1].running_mean.normal_()
    net, x = net.eval().double(), torch.randn(2, 2, *(13, 9, 11)[:rank], dtype=torch.float64)
    found = method(cls, net).attribute(x, 1, normalize=False)
    for n in range(2):
        torch.testing.assert_close(found[n], by_formula(net, x[n : n + 1], 1, cls, cls.rescale))
    smooth = method(cls, net)(x, 1, eigen_smooth=True)
    assert smooth.shape == (2, *x.shape[2:])


@pytest.mark.parametrize("eigen_smooth", [False, True])
def test_each_resolution_is_resized_once(eigen_smooth, monkeypatch):
    sizes, plain = [], ops.resize

    def counted(maps, size, *options):
        sizes.append(tuple(maps.shape[1:]))
        return plain(maps, size, *options)

    monkeypatch.setattr(ops, "resize", counted)
    FullGrad(build("resnet18"))(inputs("resnet18", 2), eigen_smooth=eigen_smooth)
    layers = [(48, 64), (24, 32), (12, 16), (6, 8), (3, 4)]
    whole = [(96, 128), (12, 16)] if eigen_smooth else []
    assert sorted(sizes) == sorted([*layers, *whole])


@pytest.mark.parametrize("cls", FAMILY)
def test_targets(cls):
    net, x = tiny(), photos(2)
    cam = method(cls, net)
    several = cam(x, torch.tensor([[0, 1, 4], [2, 2, 3]]))
    assert several.shape == (2, 3, 20, 24)
    for t, classes in enumerate([[0, 2], [1, 2], [4, 3]]):
        one = cam(x, classes)
        np.testing.assert_allclose(several[:, t], one, atol=1e-6)
        np.testing.assert_array_equal(cam(x, [ClassifierOutputTarget(c) for c in classes]), one)
        np.testing.assert_allclose(cam(x, [lambda y, c=c: 1 * y[c] for c in classes]), one, atol=1e-6)
    assert cam(x, torch.tensor([[1], [2]])).shape == (2, 1, 20, 24)
    assert np.abs(several[0, 0] - several[0, 1]).max() > 0.01
    np.testing.assert_array_equal(cam(x), cam(x, net(x).argmax(1)))
    np.testing.assert_array_equal(cam.outputs, net(x).detach())
    assert not cam.outputs.requires_grad
    many = cam(x, torch.tensor([[0, 1], [2, 2]]), eigen_smooth=True)
    np.testing.assert_allclose(many[:, 1], cam(x, [1, 2], eigen_smooth=True), atol=1e-5)


@pytest.mark.parametrize("cls", FAMILY)
def test_a_batch_equals_its_images(cls):
    x, cam = photos(3) * torch.tensor([1.0, 3.0, 0.2]).view(3, 1, 1, 1), method(cls, tiny())
    batch = cam(x, [0, 3, 1], aug_smooth=True)
    for n, category in enumerate([0, 3, 1]):
        np.testing.assert_allclose(batch[n], cam(x[n : n + 1], category, aug_smooth=True)[0], atol=2e-6)


@pytest.mark.parametrize("cls", FAMILY)
def test_what_must_not_change_a_map(cls):
    net, x = tiny(), photos(2)
    expected = method(cls, net)(x, 1)
    with torch.no_grad():
        np.testing.assert_array_equal(method(cls, net)(x, 1), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(method(cls, net)(x.clone(), 1), expected)
    np.testing.assert_array_equal(method(cls, net.train())(x, 1), expected)
    assert net.training
    np.testing.assert_allclose(method(cls, tiny().requires_grad_(False))(x, 1), expected, atol=2e-6)
    last = torch.channels_last
    np.testing.assert_allclose(
        method(cls, tiny().to(memory_format=last))(x.to(memory_format=last), 1), expected, atol=1e-5
    )
    half = method(cls, tiny().to(torch.bfloat16))(x.to(torch.bfloat16), 1)
    assert half.dtype == np.float32 and np.corrcoef(half.ravel(), expected.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("where", [None, "forward", "target"])
def test_the_model_is_left_as_it_was(cls, where):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    net.broken = where == "forward"
    cam, image = method(cls, net), x.detach().clone()
    before = snapshot(net)
    if where is None:
        cam(x, torch.tensor([[0, 1], [2, 3]]))
        cam(x, eigen_smooth=True)
    else:
        with pytest.raises(KeyError, match=f"in {where}"):
            cam(x, broken_target if where == "target" else None)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None and x.requires_grad


@pytest.mark.gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("cls", FAMILY)
def test_on_the_gpu(cls, device):
    x = photos(2)
    # Noise takes inputs of a ReLU to where rounding decides which side they are on.
    tolerance = 2e-2 if cls is SmoothFullGrad else 5e-3
    for eigen_smooth in (False, True):
        expected = method(cls, tiny().double())(x.double(), 1, eigen_smooth=eigen_smooth)
        found = method(cls, tiny().to(device))(x, 1, eigen_smooth=eigen_smooth)
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_interpolation_is_that_of_the_map():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    linear, cubic = (FullGrad(net, interpolation=kind).attribute(x, 1) for kind in ("linear", "cubic"))
    assert torch.equal(linear, FullGrad(net).attribute(x, 1)) and (linear - cubic).abs().max() > 1e-3


def test_sizes():
    net, x = tiny(), photos(2)
    cam = FullGrad(net)
    raw = cam.attribute(x, 1, normalize=False)
    assert raw.min() > 0 and raw.max() > 2  # a sum over channels and layers
    torch.testing.assert_close(cam.attribute(x, 1, normalize=False, size=None), raw)
    torch.testing.assert_close(cam.attribute(x, 1), ops.min_max(raw), atol=1e-6, rtol=0)
    assert cam.attribute(x, 1, size=(7, 33)).shape == (2, 7, 33)
    with cam as inside:
        assert inside is cam


def test_a_network_without_biases_has_the_gradient_of_its_input():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1584, 2))
    x = photos(1)
    expected = psi(terms(net, x, 0)[0], "channel", (20, 24))
    torch.testing.assert_close(FullGrad(net).attribute(x, 0, normalize=False)[0], expected)


def test_the_class_of_noisy_copies_is_the_images():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1584, 5)), photos(6)
    cam = SmoothFullGrad(net, samples=3, spread=3)
    predicted = net(x).argmax(1)
    assert any((net(copy).argmax(1) != predicted).any() for copy in cam.noisy(x))
    np.testing.assert_array_equal(cam(x), cam(x, predicted))


def test_noise():
    net, x = tiny(), photos(2)
    cam = SmoothFullGrad(net, samples=4)
    np.testing.assert_array_equal(cam(x, 1), cam(x, 1))
    assert np.abs(SmoothFullGrad(net, samples=4, seed=1)(x, 1) - cam(x, 1)).max() > 0.01
    calm = SmoothFullGrad(net, samples=1, spread=0).noisy(x)
    assert torch.equal(next(calm), x)
    wide = x * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    noise = torch.stack([copy - wide for copy in SmoothFullGrad(net, samples=40).noisy(wide)])
    std = 0.15 * (wide.amax((1, 2, 3)) - wide.amin((1, 2, 3)))
    torch.testing.assert_close(noise.std((0, 2, 3, 4)), std, rtol=0.02, atol=0)


def test_a_compiled_part_runs_uncompiled():
    """What `submodule.compile()` leaves in a module is set by hand here: code in which no bias is seen."""
    net, x = tiny(), photos(1)
    expected = FullGrad(net)(x, 1)

    def hiding(h):
        with torch._C.DisableTorchFunction():
            return net.stem._call_impl(h)

    vars(net.stem)["_compiled_call_impl"] = hiding
    np.testing.assert_array_equal(FullGrad(net)(x, 1), expected)
    assert vars(net.stem)["_compiled_call_impl"] is hiding


class Cut(TinyNet):
    def features(self, x):
        return super().features(x.detach())


class WithoutGradient(TinyNet):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("kind", [Cut, WithoutGradient])
@pytest.mark.parametrize("cls", FAMILY)
def test_an_output_without_gradient_is_an_error(cls, kind):
    with pytest.raises(RuntimeError, match=f"the output of {kind.__name__} carries no gradient back to the input"):
        method(cls, tiny(kind))(photos(1), 0)


def test_arguments_of_the_wrong_kind():
    net, x = tiny(), photos(1)
    with pytest.warns(UserWarning, match="target_layers is ignored: FullGrad takes every layer with a bias") as caught:
        FullGrad(net, [net.body])
    assert caught[0].filename == __file__
    FullGrad(net, [])
    with pytest.raises(ValueError, match='rescale must be "channel" or "layer", got \'image\''):
        FullGrad(net, rescale="image")
    with pytest.raises(ValueError, match="samples must be 1 or more and spread not negative, got 0 and 0.15"):
        SmoothFullGrad(net, samples=0)
    with pytest.raises(ValueError, match="sign must be"):
        FullGrad(net, sign="plus")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        FullGrad("resnet18")
    with pytest.raises(ValueError, match="target 5 is out of range"):
        SmoothFullGrad(net)(x, 5)
    with pytest.raises(TypeError, match="input_tensor must be a tensor"):
        FullGrad(net)(x.numpy())
    with pytest.raises(ValueError, match="takes 3 channels, input_tensor has 1"):
        FullGrad(net)(x[:, :1])


@pytest.mark.parametrize("cached", [1, 100, 700, 10**9])
@pytest.mark.parametrize("cls", FAMILY)
def test_the_parts_that_stay_in_cache_change_nothing(cls, cached, monkeypatch):
    net, x = tiny(), photos(3)
    expected = method(cls, net).attribute(x, 1, normalize=False)
    channels_last = method(cls, net).attribute(x.contiguous(memory_format=torch.channels_last), 1, normalize=False)
    monkeypatch.setattr("fastcam.methods.fullgrad._CACHED", cached)
    torch.testing.assert_close(method(cls, net).attribute(x, 1, normalize=False), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(channels_last, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cls", FAMILY)
def test_a_long_batch_goes_in_equal_parts(cls, monkeypatch):
    net, x, sizes = tiny(), photos(5), []
    explain = method(cls, net)
    expected, outputs = explain(x, [0, 1, 2, 0, 1]), explain.outputs
    monkeypatch.setattr("fastcam.methods.fullgrad._AT_ONCE", 2 * x[0].numel())
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    np.testing.assert_allclose(explain(x, [0, 1, 2, 0, 1]), expected, atol=1e-4)
    assert set(sizes) == {1, 2} and sizes[0] == 2
    torch.testing.assert_close(explain.outputs, outputs)
