"""Models with several inputs: by position, by name, as one mapping, with more arguments for every call."""

import collections

import numpy as np
import pytest
import torch
from torch import nn

import fastcam
from fastcam import (
    AblationCAM,
    GradCAM,
    GroupCAM,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    ReciproCAM,
    ScoreCAM,
    layer_table,
)
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import default_layer
from fastcam.methods import METHODS
from fastcam.record import record

from models import tiny


class Two(nn.Module):
    """An image and its depth meet before `body`; an embedding of a word, and a gain, behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.rgb, self.far = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(1, 6, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.words, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)
        self.calls = []

    def start(self, image, depth):
        return self.body((self.rgb(image) + self.far(depth)).relu())

    def rest(self, A, depth, word=None, gain=1.0):
        features = (self.tail(A) * (1 + depth[..., ::2, ::2])).mean((2, 3)) * 3  # raw inputs behind the layer
        return self.head(features if word is None else features + self.words(word)) * gain

    def forward(self, image, depth, word=None, gain=1.0):
        self.calls.append((image, depth, word, gain))
        return self.rest(self.start(image, depth), depth, word, gain)


class OneMapping(Two):
    """As models that take a batch as one mapping."""

    def forward(self, batch, **rest):
        return super().forward(batch["image"], batch["depth"], batch.get("word"), **rest)


class AnyNames(Two):
    def forward(self, **given):
        return super().forward(**given)


@pytest.fixture
def x():
    torch.manual_seed(4)
    return {"image": torch.randn(3, 3, 12, 16), "depth": torch.rand(3, 1, 12, 16), "word": torch.tensor([1, 7, 3])}


def grad_cam(net, x, target=1):
    """Signed maps, by the formula."""
    A = net.start(x["image"], x["depth"]).detach().requires_grad_()
    G = torch.autograd.grad(net.rest(A, x["depth"], x.get("word"))[:, target].sum(), A)[0]
    return (G.mean((2, 3), keepdim=True) * A).sum(1).detach()


def signed(cam, x, *args, **options):
    return cam.attribute(x, *args, normalize=False, size=None, **options)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: tuple(x.values()),
        lambda x: list(x.values()),
        dict,
        collections.OrderedDict,
        collections.UserDict,
        lambda x: dict(reversed(x.items())),  # the depth is the first image then, of the same size
    ],
    ids=["tuple", "list", "dict", "OrderedDict", "UserDict", "other-order"],
)
def test_several_inputs(x, given):
    net = Two()
    expected = grad_cam(net, x)
    assert expected.flatten(1).std(1).min() > 1e-4
    cam = GradCAM(net, "body")
    torch.testing.assert_close(signed(cam, given(x), 1), expected)
    maps = cam(given(x), 1)
    assert maps.shape == (3, 12, 16) and maps.max() > 0.99
    torch.testing.assert_close(cam.outputs, net(**x).detach())


@pytest.mark.parametrize("cls", [OneMapping, AnyNames])
def test_a_mapping_is_arguments_or_the_one_argument(x, cls):
    torch.testing.assert_close(signed(GradCAM(cls(), "body"), x, 1), grad_cam(Two(), x))
    gained = signed(GradCAM(cls(), "body"), x, 1, forward_kwargs={"gain": 2.0})
    torch.testing.assert_close(gained, 2 * grad_cam(Two(), x))


def test_one_tensor_by_name_and_in_a_tuple_is_that_tensor(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(560, 3))
    cam = HiResCAM(net, "1")
    expected = cam(x["image"], 1)
    assert np.array_equal(cam((x["image"],), 1), expected) and expected.max() > 0.99
    assert np.array_equal(cam({"input": x["image"]}, 1), expected)


def test_forward_kwargs_go_into_every_call_as_they_are(x):
    net, gain = Two(), torch.tensor([[0.5, 4.0, 3.0, 2.0]])
    rest = {"word": x.pop("word"), "gain": gain}
    expected = GradCAM(net, "body")((x["image"], x["depth"], rest["word"]), 1)
    net.calls.clear()
    actual = GradCAM(net, "body")(x, 1, forward_kwargs=rest)
    assert all(call[2] is rest["word"] and call[3] is gain for call in net.calls) and net.calls
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    given = {"gain": gain}
    net.calls.clear()
    cam = ScoreCAM(net, "body", batch_size=5)
    low = signed(cam, x, 1, forward_kwargs=given)
    assert len(net.calls) > 4 and all(call[3] is gain for call in net.calls)
    assert (low - signed(cam, x, 1)).abs().max() > 1e-4
    gradient = GuidedBackprop(net).attribute(x, 1, forward_kwargs=given)
    torch.testing.assert_close(gradient, gain[0, 1] * GuidedBackprop(net).attribute(x, 1))
    assert (signed(ReciproCAM(net, "body"), x, 1, forward_kwargs=given) - signed(ReciproCAM(net, "body"), x, 1)).any()
    net.calls.clear()
    signed(AblationCAM(net, "body"), x, 1, forward_kwargs=given)
    assert len(net.calls) > 2 and all(call[3] is gain for call in net.calls)


def test_the_caller_keeps_his_tensors(x):
    class Writes(Two):
        def forward(self, image, depth, word):
            return super().forward(image.mul_(2), depth.add_(1), word)

    net, before = Writes(), {name: t.clone() for name, t in x.items()}
    x["image"].requires_grad_()
    for cam in (GradCAM(net, "body"), AblationCAM(net, "body"), ScoreCAM(net, "body"), GroupCAM(net, "body", groups=2)):
        assert cam(x, 1).max() > 0.9
    assert GuidedGradCAM(net, "body").attribute(x, 1).abs().max() > 0
    assert all(torch.equal(x[name], t) for name, t in before.items()) and x["image"].grad is None


@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_ablation_cam_with_two_inputs_is_the_full_run(x, batch_size):
    net = Two()
    A = net.start(x["image"], x["depth"]).detach()
    with torch.no_grad():
        y, weights = net(**x)[:, 1], []
        for c in range(8):
            without = A.clone()
            without[:, c] = 0
            weights.append((y - net.rest(without, x["depth"], x["word"])[:, 1]) / y)
    expected = torch.einsum("cb,bchw->bhw", torch.stack(weights), A)
    actual = signed(AblationCAM(net, "body", batch_size=batch_size), x, 1)
    assert expected.flatten(1).std(1).min() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_recipro_cam_with_two_inputs_is_the_full_run(x):
    net = Two()
    A, scores = net.start(x["image"], x["depth"]).detach(), []
    for i, j in np.ndindex(6, 8):
        only = torch.zeros_like(A)
        only[..., i, j] = A[..., i, j]
        scores.append(net.rest(only, x["depth"], x["word"]).softmax(1)[:, 1].detach())
    expected = torch.stack(scores, 1)
    actual = signed(ReciproCAM(net, "body"), x, 1).flatten(1)
    assert expected.std(1).min() > 1e-4
    torch.testing.assert_close(actual, expected - expected.amin(1, keepdim=True), rtol=1e-3, atol=1e-6)


def test_score_cam_masks_the_image_alone(x):
    net = Two()
    A = net.start(x["image"], x["depth"]).detach()
    u = nn.functional.interpolate(A, (12, 16), mode="bilinear", align_corners=True)
    u = u - u.amin((2, 3), keepdim=True)
    masks = u / (u.amax((2, 3), keepdim=True) + 1e-8)
    with torch.no_grad():
        y = [net(x["image"] * masks[:, c, None], x["depth"], x["word"])[:, 1] for c in range(8)]
    expected = torch.einsum("bc,bchw->bhw", torch.stack(y, 1).softmax(1), A)
    for batch_size in (1, 5, "auto"):
        actual = signed(ScoreCAM(net, "body", batch_size=batch_size), x, 1)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*METHODS} - {"cam", "randomcam", "sess"}))  # drawn anew; of one tensor only
def test_every_method_takes_each_image_with_its_own_inputs(x, name):
    net = Two()
    cam = METHODS[name](net, "body", **({"batch_size": 2} if hasattr(METHODS[name](net), "batch_size") else {}))
    batch = signed(cam, x, [0, 2, 1])
    for n, target in enumerate([0, 2, 1]):
        alone = {key: t[n : n + 1] for key, t in x.items()}
        torch.testing.assert_close(signed(cam, alone, target)[0], batch[n], rtol=1e-3, atol=1e-5)
    shuffled = {**x, "depth": x["depth"].flip(0)}
    assert (signed(cam, shuffled, [0, 2, 1]) - batch).abs().max() > 1e-5


def test_gradients_are_those_of_the_image(x):
    net = Two()
    gradient = GuidedBackprop(net).attribute(x, 1)
    assert gradient.shape == x["image"].shape and gradient.abs().max() > 0
    alone = GuidedBackprop(net).attribute({name: t[1:2] for name, t in x.items()}, 1)
    torch.testing.assert_close(gradient[1:2], alone)
    guided = GuidedGradCAM(net, "body")
    torch.testing.assert_close(guided.attribute(x, 1), gradient * GradCAM(net, "body").attribute(x, 1).unsqueeze(1))


def test_aug_smooth_augments_what_has_the_size_of_the_image(x):
    net, x = Two(), {**x, "gain": torch.rand(3, 4)}
    cam = GradCAM(net, "body")
    maps = []
    for flip in (False, True):
        for f in (0.9, 1, 1.1):
            seen = {n: (t.flip(3) if flip else t) * f if n in ("image", "depth") else t for n, t in x.items()}
            m = cam.attribute(seen, 1)
            maps.append(m.flip(2) if flip else m)
    torch.testing.assert_close(cam.attribute(x, 1, aug_smooth=True), torch.stack(maps).mean(0), rtol=0, atol=1e-5)
    assert (maps[0] - maps[3]).abs().max() > 0.01


def test_default_layer_table_and_record_take_several_inputs(x):
    net = Two()
    assert default_layer(net, x) is default_layer(net, tuple(x.values())) is net.tail
    assert {row.name: row.shape for row in layer_table(net, x)}["body"] == (3, 8, 6, 8)
    assert np.array_equal(GradCAM(net)(x, 1), GradCAM(net, "tail")(x, 1))
    with record(net, [net.body], inputs_of(x)) as run:
        assert torch.equal(run.input, x["image"]) and torch.equal(run.inputs.leaves[1], x["depth"])
        torch.testing.assert_close(run.output.detach(), net(**x).detach())


def test_nested_inputs_and_those_that_are_no_tensors(x):
    class Nested(Two):
        def forward(self, pair, names, word):
            assert names == ["a", None]
            return super().forward(pair[0], pair[1]["depth"], word)

    given = ([x["image"], {"depth": x["depth"]}], ["a", None], x["word"])
    torch.testing.assert_close(signed(GradCAM(Nested(), "body"), given, 1), grad_cam(Two(), x))
    torch.testing.assert_close(
        signed(AblationCAM(Nested(), "body"), given, 1), signed(AblationCAM(Two(), "body"), x, 1), rtol=1e-4, atol=1e-6
    )


def test_inference_tensors_and_frozen_models(x):
    net = Two().requires_grad_(False).train()
    with torch.inference_mode():
        made = {name: t.clone() for name, t in x.items()}
        actual = signed(GradCAM(net, "body"), {n: made[n] for n in ("image", "depth")}, 1)
        signed(GradCAM(net, "body"), made, 1, forward_kwargs={"gain": torch.ones(4)})
    torch.testing.assert_close(actual, grad_cam(net, {n: x[n] for n in ("image", "depth")}))
    assert net.training


def test_the_structure():
    image, word = torch.rand(4, 3, 5, 6), torch.arange(4)
    inputs = inputs_of({"word": word, "image": image, "flag": True})
    assert inputs.image is image and len(inputs) == 4 and not inputs.is_single and inputs_of(inputs) is inputs
    assert inputs[1:3].image.shape == (2, 3, 5, 6) and inputs[1:3].leaves[0].tolist() == [1, 2]
    rows = inputs.for_rows(image[:3], torch.tensor([3, 0, 0]))
    assert rows.leaves[0].tolist() == [3, 0, 0] and torch.equal(rows.image, image[:3]) and rows.leaves[2] is True
    twice = inputs_of((image, image)).with_image(word)
    assert twice.leaves[0] is word and twice.leaves[1] is image
    assert Inputs(image).is_single and not Inputs(image, {"a": 1}).is_single


def test_bad_inputs(x):
    cam = GradCAM(Two(), "body")
    with pytest.raises(ValueError, match=r"input_tensor\['depth'\] must have the batch of 3 first.*\(2, 1, 12, 16\)"):
        cam({**x, "depth": x["depth"][:2]})
    with pytest.raises(ValueError, match=r"input_tensor\[2\] must have the batch of 3 first, got shape \(\)"):
        cam((x["image"], x["depth"], torch.tensor(1)))
    with pytest.raises(TypeError, match=r"must hold a floating-point tensor \(B, k, H, W\), got torch.int64 \(3,\)"):
        cam({"word": x["word"]})
    with pytest.raises(TypeError, match="must hold a floating-point tensor .* got no tensor"):
        cam([])
    with pytest.raises(ValueError, match="empty batch"):
        cam({name: t[:0] for name, t in x.items()})
    with pytest.raises(TypeError, match="forward_kwargs must be a mapping of arguments, got list"):
        cam(x, forward_kwargs=[1])
    with pytest.raises(ValueError, match=r"\['word'\] are in input_tensor and in forward_kwargs"):
        cam(x, forward_kwargs={"word": x["word"]})
    with pytest.raises(TypeError, match=r"input_tensor must be a tensor \(B, k, H, W\), got ndarray"):
        GradCAM(Two(), "body")(np.zeros((1, 3, 8, 8)))


def test_what_is_often_given_instead_of_a_batch_is_explained():
    x = torch.rand(2, 3, 20, 24)
    for given in ([x[:1], x[1:]], tuple(x)):
        with pytest.raises(TypeError, match=f"a {type(given).__name__} of 2, which are 2 arguments.*torch.stack.*cat"):
            GradCAM(tiny(), "body")(given)
        with pytest.raises(TypeError, match="torch.stack"):
            fastcam.feature_maps(tiny(), given, "body")
    with pytest.raises(ValueError, match=r"takes 3 channels, input_tensor has 20: .*; pass x.permute\(0, 3, 1, 2\)"):
        GradCAM(tiny(), "body")(x.permute(0, 2, 3, 1))
    with pytest.raises(TypeError, match=r"got torch.uint8 \(2, 3, 20, 24\): pass input_tensor.float\(\) / 255"):
        GradCAM(tiny(), "body")((x * 255).byte())


def test_a_type_error_of_the_model_is_its_own(x):
    class Wrong(nn.Module):
        def forward(self, a, b):
            return a + "text"

    with pytest.raises(TypeError) as caught:
        layer_table(Wrong(), [x, x])
    assert "torch.stack" not in str(caught.value)
