"""Many methods, layers and targets from one forward pass, each as it is alone."""

from __future__ import annotations

import pytest
import torch

import fastcam
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM

from models import TinyNet, build, inputs, tiny

ONE_PASS = [
    *("gradcam", "gradcam++", "xgradcam", "hirescam", "gradcamelementwise", "layercam", "eigencam", "eigengradcam"),
    *("segeigencam", "kpcacam", "fem", "randomcam", "refinecam"),
]


class Counting(TinyNet):
    images = 0

    def forward(self, x):
        self.images += len(x)
        return super().forward(x)


@pytest.fixture
def x():
    return torch.randn(3, 3, 20, 24)


@pytest.mark.parametrize("targets", [None, 2, [0, 3, 1], torch.tensor([[0, 1], [2, 3], [4, 4]])])
def test_each_answer_is_that_of_its_method_alone(targets, x):
    methods = [name for name in METHODS if name not in ("cam", "randomcam")]
    options = {name: {"batch_size": 16} for name, cls in METHODS.items() if issubclass(cls, PerturbationCAM)}
    net, x = tiny().double(), x.double()
    answers = fastcam.explain(net, x, methods, ["body", "tail"], targets, options=options, normalize=False)
    assert list(answers) == methods
    for name in methods:
        assert list(answers[name]) == (["all layers"] if "fullgrad" in name else ["body", "tail"])
        for layer, maps in answers[name].items():
            chosen = None if layer == "all layers" else layer
            alone = METHODS[name](net, chosen, **options.get(name, {})).attribute(x, targets, normalize=False)
            torch.testing.assert_close(maps, alone, rtol=1e-7, atol=1e-9)
            assert maps.abs().amax((-2, -1)).min() > 1e-7


def test_one_forward_and_one_backward_pass(x, monkeypatch):
    passes, backward = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or backward(*a, **k))
    net = tiny(Counting)
    fastcam.explain(net, x, ONE_PASS, ["stem", "body", "tail"], [1, 2, 3])
    assert net.images == 3 and len(passes) == 1
    fastcam.explain(net, x, ONE_PASS, ["stem", "body"], torch.tensor([[1, 2]] * 3))
    assert net.images == 6 and len(passes) == 1 + 2


def test_only_fullgrad_goes_in_parts_where_it_asks_for_them(x, monkeypatch):
    monkeypatch.setattr("fastcam.methods.fullgrad._AT_ONCE", 2 * x[0].numel())
    net, seen = tiny(), []
    net.stem.register_forward_hook(lambda m, args, output: seen.append(len(output)))
    fastcam.explain(net, x, ["gradcam", "fullgrad", "layercam"], "body", [1, 2, 3])
    assert seen == [3, 2, 1]


def test_ablation_and_recipro_share_a_second_pass_in_front_of_the_layer(x):
    net, seen = tiny(), []
    net.stem.register_forward_hook(lambda m, args, output: seen.append(len(output)))
    fastcam.explain(net, x, ["ablationcam", "gradcam", "reciprocam"], "body", 1)
    assert seen == [3, 3]


def test_plain_cam_beside_methods_that_go_backward(x):
    class Pooled(TinyNet):
        def forward(self, x):
            return self.head(self.tail(self.relu(self.body(self.stem(x)))).mean((2, 3)))

    answers = fastcam.explain(tiny(Pooled), x, ["gradcam", "eigengradcam", fastcam.CAM], "tail", 1)
    torch.testing.assert_close(answers["cam"]["tail"], answers["gradcam"]["tail"], rtol=0, atol=1e-5)


def test_sizes_and_signed_maps(x):
    answers = fastcam.explain(tiny(), x, ["hirescam"], ["stem", "tail"], 1, normalize=False, size=None)
    for layer, maps in answers["hirescam"].items():
        expected = fastcam.HiResCAM(tiny(), layer).attribute(x, 1, normalize=False, size=None)
        assert torch.equal(maps, expected) and maps.amin() < 0
    assert fastcam.explain(tiny(), x, size=(5, 6))["gradcam"]["tail"].shape == (3, 5, 6)


def test_long_batches_go_in_parts_with_their_own_targets():
    x, targets = torch.randn(7, 3, 20, 24), [0, 1, 2, 3, 4, 0, 1]
    options = {"scorecam": {"batch_size": 3}}
    answers = fastcam.explain(tiny(), x, ["gradcam", "scorecam"], "body", targets, options=options)
    torch.testing.assert_close(
        answers["gradcam"]["body"], fastcam.GradCAM(tiny(), "body").attribute(x, targets), rtol=0, atol=1e-5
    )


def test_names_of_classes_and_attention_methods(x):
    model, image = build("small_vit"), inputs("small_vit", 1)
    answers = fastcam.explain(model, image, ["LayerCAM", "legrad"], "encoder.layers[-1]", 1)
    assert list(answers) == ["layercam", "legrad"]
    for name, cls in [("layercam", fastcam.LayerCAM), ("legrad", fastcam.LeGrad)]:
        (maps,) = answers[name].values()
        torch.testing.assert_close(maps, cls(model, "encoder.layers[-1]").attribute(image, 1), rtol=0, atol=1e-5)
    assert list(fastcam.explain(tiny(), x, "gradcam")) == ["gradcam"]


def test_bad_input(x):
    with pytest.raises(ValueError, match="methods must be classes or names among gradcam, .*, got 'grad'"):
        fastcam.explain(tiny(), x, ["grad"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'channels'"):
        fastcam.explain(tiny(), x, ["gradcam"], options={"gradcam": {"channels": 3}})
    with pytest.raises(ValueError, match="options are given for 'layercam', which is not among the methods"):
        fastcam.explain(tiny(), x, ["gradcam"], options={"layercam": {}})
    with pytest.raises(ValueError, match="methods is empty"):
        fastcam.explain(tiny(), x, [])
