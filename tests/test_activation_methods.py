"""Methods that look at activations, and Seg-Eigen-CAM, beside grad-cam and beside their equations."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from sklearn.decomposition import KernelPCA

from fastcam import FEM, KPCA_CAM, RandomCAM, SegEigenCAM
from fastcam.layers import find_layers

from models import LAYERS, TinyNet, build, inputs, tiny, tokens_to_map

KERNELS = ["sigmoid", "rbf", "poly", "cosine", "linear"]


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 24)


def activations(net, layer, x):
    seen = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    with torch.no_grad():
        net(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("cls", [SegEigenCAM, KPCA_CAM, FEM, RandomCAM])
@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn", "mobilenet_v3_small", "small_vit"])
@pytest.mark.parametrize(
    ("layers", "batch", "options"),
    [("last", 3, {}), ("several", 1, {"eigen_smooth": True}), ("several", 1, {"aug_smooth": True})],
    ids=["last", "several-eigen", "several-aug"],
)
def test_same_map_as_grad_cam(cls, network, layers, batch, options):
    x, layers = inputs(network, batch), LAYERS[network][layers]
    transform = tokens_to_map if network == "small_vit" else None
    model = build(network)
    np.random.seed(4)
    theirs = getattr(pytorch_grad_cam, cls.__name__)(model, find_layers(model, layers), reshape_transform=transform)
    expected = theirs(x, None, **options)
    np.random.seed(4)
    actual = cls(build(network), layers, transform, sign="lapack")(x, **options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert actual.dtype == np.float32 and np.ptp(expected, axis=(1, 2)).min() > 0.1, "a constant map compares nothing"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_kernels_as_in_scikit_learn(kernel, gamma, x):
    net, x = tiny().double(), x.double()
    maps = KPCA_CAM(net, "body", kernel=kernel, gamma=gamma).attribute(x, normalize=False, size=None)
    for A, actual in zip(activations(net, "body", x).flatten(2).mT.numpy(), maps, strict=True):
        pca = KernelPCA(n_components=1, kernel=kernel, gamma=gamma)
        expected = pca.fit_transform(A - A.mean(0)).reshape(actual.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
        assert np.ptp(expected) > 0


def test_a_kernel_of_ones_own(x):
    net, x = tiny().double(), x.double()[:, :, :12, :12]

    def kernel(a, b):
        return np.exp(-0.3 * ((a - b) ** 2).sum())

    low = {"normalize": False, "size": None}
    ours = KPCA_CAM(net, "body", kernel=kernel).attribute(x, **low)
    torch.testing.assert_close(ours, KPCA_CAM(net, "body", kernel="rbf", gamma=0.3).attribute(x, **low))
    model = tiny().double()
    expected = pytorch_grad_cam.KPCA_CAM(model, [model.stem], kernel=kernel)(x, None)
    np.testing.assert_allclose(KPCA_CAM(net, "stem", kernel=kernel)(x), expected, rtol=0, atol=1e-5)


def test_constant_and_missing_activations(x):
    net = tiny()
    with torch.no_grad():
        net.body[1].weight.zero_()
    for cls in (KPCA_CAM, FEM):
        maps = cls(net, "body").attribute(x, 1)
        assert maps.max() == 0
    A = torch.randn(1, 4, 3, 3)
    A[0, 1, 1, 1] = float("nan")
    zeroed = A.nan_to_num(0)
    cam = KPCA_CAM(net, "body")
    torch.testing.assert_close(cam.low_map(A, False), cam.low_map(zeroed, False))


@pytest.mark.parametrize("k", [0.5, 2])
def test_fem_by_its_equation(k, x):
    net, x = tiny().double(), x.double()
    maps = FEM(net, "body", k=k).attribute(x, normalize=False, size=None)
    for A, actual in zip(activations(net, "body", x).numpy(), maps, strict=True):
        weights = [np.mean(channel > channel.mean() + k * channel.std()) for channel in A]
        expected = sum(w * channel for w, channel in zip(weights, A, strict=True))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
        assert max(weights) > 0


def test_random_weights_are_drawn_in_the_order_of_the_layers(x):
    net = tiny().double()
    np.random.seed(7)
    maps = RandomCAM(net, ["tail", "body"]).attribute(x.double(), normalize=False, size=None)
    np.random.seed(7)
    for layer, actual in zip(["tail", "body"], maps, strict=True):
        A = activations(net, layer, x.double()).numpy()
        weights = np.random.uniform(-1, 1, size=A.shape[:2])
        np.testing.assert_allclose(actual, np.einsum("bc,bchw->bhw", weights, A), rtol=0, atol=1e-12)
    first, second = (RandomCAM(net, "body")(x.double()) for _ in range(2))
    assert np.abs(first - second).max() > 0.1, "each call draws anew"


def test_seg_eigen_cam_by_its_equation(x):
    net, x = tiny().double(), x.double()
    with torch.no_grad():
        net.head.weight.copy_(net.head.weight.abs())
    maps = SegEigenCAM(net, "tail").attribute(x, [1, 2], normalize=False, size=None)
    A = activations(net, "tail", x)
    for b, c in enumerate([1, 2]):
        at = A[b : b + 1].clone().requires_grad_()
        (G,) = torch.autograd.grad(net.head(at.relu().mean((2, 3)))[0, c], at)
        X = (G.abs() * at).detach()[0].flatten(1).T.numpy()
        X = X - X.mean(0)
        p = X @ np.linalg.svd(X)[2][0]
        p = -p if abs(p.min()) > abs(p.max()) else p
        np.testing.assert_allclose(maps[b].flatten(), p, rtol=0, atol=1e-9 * np.abs(p).max())
        assert maps[b].max() > 0 and maps[b].abs().max() == maps[b].max()


def test_no_gradient_and_no_more_than_needed_is_computed(x):
    class Watched(TinyNet):
        def features(self, x):
            x = self.body(self.stem(x))
            if self.stop:
                raise AssertionError("ran on behind the layer")
            self.saw = x.requires_grad
            return self.tail(x).mean((2, 3))

        saw, stop = None, False

    for cls in (KPCA_CAM, FEM, RandomCAM):
        net = tiny(Watched)
        cls(net, "body")(x)
        assert net.saw is False
        net.stop = True
        cls(net, "body").attribute(x)  # ends at the layer


def test_bad_arguments(x):
    with pytest.raises(ValueError, match="kernel must be one of 'sigmoid', 'rbf', .* or a callable, got 'precomputed'"):
        KPCA_CAM(tiny(), "body", kernel="precomputed")
    for cls in (KPCA_CAM, FEM, RandomCAM):
        with pytest.raises(ValueError, match="target 5 is out of range"):
            cls(tiny(), "body")(x, 5)
