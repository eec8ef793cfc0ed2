"""Deep feature factorization beside pytorch-grad-cam, and beside its equation."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam.feature_factorization import deep_feature_factorization as reference
from sklearn.decomposition import NMF
from torch import nn
from torch.nn import functional as F

from fastcam.figures import factors as figures
from fastcam.layers import find_layers
from fastcam.methods.factorization import DeepFeatureFactorization, dff, run_dff_on_image

from models import TinyNet, build, inputs, photographs, tiny, tokens_to_map
from test_untouched import assert_same, fragile, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of iterations")


def signed(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (3, 6, 5, 7)])
def test_dff_has_the_numbers_of_pytorch_grad_cam(shape):
    A = signed(*shape)
    A[0, 2, 1, 3] = np.nan
    before = A.copy()
    expected = reference.dff(A.copy(), n_components=4)
    for given in (A, torch.from_numpy(A)):
        for ours, theirs in zip(dff(given, n_components=4), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and theirs.std() > 0.1
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(A, before)


@pytest.mark.parametrize("space", [(40,), (5, 8), (2, 4, 5)])
def test_dff_is_a_factorisation_of_activations_above_their_minimum(space):
    A = signed(2, 6, 40).reshape(2, 6, *space)
    concepts, explanations = dff(A, 3)
    assert concepts.shape == (6, 3) and explanations.shape == (2, 3, *space)
    matrix = A.reshape(2, 6, 40).transpose(1, 0, 2).reshape(6, 80)
    low = matrix.min(1, keepdims=True)
    product = (concepts - low) @ explanations.reshape(2, 3, 40).transpose(1, 0, 2).reshape(3, 80)
    error = np.linalg.norm(matrix - low - product)
    best = NMF(3, init="random", random_state=0).fit(matrix - low).reconstruction_err_
    assert error == pytest.approx(best, rel=1e-3) and error < 0.5 * np.linalg.norm(matrix - low)
    assert explanations.min() >= 0


NETWORKS = {
    "resnet18": ("layer4", None),
    "vgg11_bn": ("features[13]", None),
    "densenet121": ("features.denseblock4", None),
    "small_vit": ("encoder.layers[1].ln_1", tokens_to_map),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_beside_pytorch_grad_cam(network, batch):
    layer, transform = NETWORKS[network]
    theirs, ours, x = build(network), build(network), inputs(network, batch)
    (module,) = find_layers(theirs, layer)
    head = nn.Linear({"resnet18": 512, "vgg11_bn": 256, "densenet121": 1024, "small_vit": 48}[network], 4)
    expected = reference.DeepFeatureFactorization(theirs, module, transform, head)(x, n_components=3)
    found = DeepFeatureFactorization(ours, layer, transform, head)(x, n_components=3)
    assert len(found) == 3 and isinstance(found[1], list) and len(found[1]) == batch
    for one, other in zip((found[0], *found[1], found[2]), (expected[0], *expected[1], expected[2]), strict=True):
        assert one.dtype == other.dtype == np.float32 and one.shape == other.shape and other.std() > 0.01
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    alone = DeepFeatureFactorization(ours, layer, transform)(x, n_components=3)
    assert len(alone) == 2
    np.testing.assert_array_equal(alone[0], found[0])


def test_the_maps_are_scaled_each_for_itself_and_resized():
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    _, maps = DeepFeatureFactorization(net, "body")(x, 4)
    with torch.no_grad():
        H = torch.from_numpy(dff(net.body(net.stem(x)), 4)[1])  # (2, 4, 10, 12)
    low, high = H.amin((2, 3), keepdim=True), H.amax((2, 3), keepdim=True)
    expected = F.interpolate((H - low) / (high - low + 1e-7), (20, 24), mode="bilinear")
    np.testing.assert_allclose(np.stack(maps), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_concepts_reach_the_computation_as_the_model_has_its_numbers(dtype):
    net, x = tiny().to(dtype), torch.randn(1, 3, 20, 24).to(dtype)
    seen = []

    def classify(concepts):
        seen.append((concepts.dtype, concepts.shape, torch.is_grad_enabled(), net.training))
        return net.head(F.pad(concepts, (0, 4)))

    _, (maps,), outputs = DeepFeatureFactorization(net.train(), net.body, computation_on_concepts=classify)(x, 2)
    assert seen == [(dtype, (2, 12), False, False)] and net.training
    assert outputs.shape == (2, 5) and maps.dtype == np.float32
    assert outputs.dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_a_default_layer_and_a_stopped_run():
    net, x = tiny(), torch.randn(1, 3, 20, 24)
    expected = DeepFeatureFactorization(net, "tail")(x, 2)
    net.head.register_forward_hook(lambda *_: pytest.fail("the model runs on behind the layer"))
    factorize = DeepFeatureFactorization(net, "tail")
    np.testing.assert_array_equal(factorize(x, 2)[0], expected[0])
    with DeepFeatureFactorization(tiny()) as inside:
        np.testing.assert_array_equal(inside(input_tensor=x, n_components=2)[0], expected[0])
        assert inside(x)[0].shape == (16, 16)


@pytest.mark.parametrize("where", [None, "forward", "computation"])
def test_the_model_is_left_as_it_was(where):
    net, x = fragile(), torch.randn(2, 3, 20, 24, requires_grad=True)
    net.broken = where == "forward"
    image = x.detach().clone()

    def classify(concepts):
        if where == "computation":
            raise KeyError("in computation")
        return net.head(concepts)

    before = snapshot(net)
    factorize = DeepFeatureFactorization(net, "tail", computation_on_concepts=classify)
    if where is None:
        concepts, _, outputs = factorize(x, 3)
        assert concepts.shape == (16, 3) and outputs.shape == (3, 5)
    else:
        with pytest.raises(KeyError, match=f"in {where}"):
            factorize(x, 3)
    assert_same(before, snapshot(net))
    assert torch.equal(x, image) and x.grad is None


def test_the_picture_of_an_image():
    net = build("resnet18")
    net.config = SimpleNamespace(id2label={n: f"class {n}, so called" for n in range(20)})
    x = photographs(1, 64, 96)[0]
    pixels = ((x * 0.25 + 0.45).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
    for image in (Image.fromarray(pixels), pixels):
        result = run_dff_on_image(net, net.layer4, net.fc, image, x, n_components=3, top_k=1)
        assert result.dtype == np.uint8 and result.shape == (64, 3 * 96, 3)
        np.testing.assert_array_equal(result[:, :96], pixels)
    _, (maps,), logits = DeepFeatureFactorization(net, net.layer4, None, net.fc)(x[None], 3)
    labels = figures.create_labels_legend(torch.from_numpy(logits).softmax(-1).numpy(), net.config.id2label, 1)
    shown = figures.show_factorization_on_image(pixels / 255, maps, image_weight=0.3, concept_labels=labels)
    np.testing.assert_array_equal(result[:, 96:], shown)
    assert shown[:, :96].std() > 10 and shown[:, 96:].min() < 250


def test_arguments_of_the_wrong_kind(monkeypatch):
    net, x = tiny(), torch.randn(1, 3, 20, 24)
    with pytest.raises(ValueError, match="n_components must be 1 or more, got 0"):
        DeepFeatureFactorization(net)(x, 0)
    with pytest.raises(ValueError, match=r"activations must be \(B, C, h, w\), got \(3, 4\)"):
        dff(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="target_layer must be one layer, got 2"):
        DeepFeatureFactorization(net, ["stem", "body"])
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        DeepFeatureFactorization(net, "nowhere")
    with pytest.raises(ValueError, match="'head'.*has no spatial extent"):
        DeepFeatureFactorization(net, "head")(x, 2)
    with pytest.raises(TypeError, match="input_tensor must be a tensor"):
        DeepFeatureFactorization(net)(x.numpy())
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'fastcam\[dff\]'"):
        dff(np.zeros((1, 2, 3, 3)))


def test_activations_that_are_the_same_everywhere():
    """There is nothing to factorise, and no NaN."""

    class Blind(TinyNet):
        def features(self, x):
            return super().features(x * 0)

    concepts, maps = DeepFeatureFactorization(tiny(Blind), "stem")(torch.randn(1, 3, 20, 24), 2)
    assert np.isfinite(concepts).all() and concepts.std() > 0
    np.testing.assert_allclose(concepts[:, 0], concepts[:, 1], atol=1e-6)
    assert np.isfinite(maps[0]).all()


@pytest.mark.gpu
def test_the_computation_gets_its_concepts_on_the_models_device(device):
    net, x = tiny(), torch.randn(2, 3, 20, 24)
    expected = DeepFeatureFactorization(net, "tail", None, net.head)(x, 3)
    moved = tiny().to(device)
    found = DeepFeatureFactorization(moved, "tail", None, moved.head)(x, 3)
    for one, other in zip((found[0], *found[1], found[2]), (expected[0], *expected[1], expected[2]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2)  # a solver's rounding, from other rounding
