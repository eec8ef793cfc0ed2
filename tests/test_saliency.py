"""Gradients of the input: batches, targets, surroundings and errors. The rules themselves are in test_rectifiers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastcam import GradCAM
from fastcam.targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from fastcam.visualize import SALIENCY, DeconvNet, GuidedBackprop, GuidedGradCAM
from fastcam.visualize.saliency import GuidedBackpropReLUModel

from models import TinyNet, build, inputs, tiny

GRADIENTS = [GuidedBackprop, DeconvNet]


def methods(net):
    """The three of them on a model, by name; Guided Grad-CAM at the layer `tail`."""
    return {n: cls(net, "tail") if cls is GuidedGradCAM else cls(net) for n, cls in SALIENCY.items()}


def photos(count=3):
    return torch.randn(count, 3, 20, 24)


@pytest.mark.parametrize("name", SALIENCY)
@pytest.mark.parametrize("targets", [None, 2, [0, 3, 1]], ids=["predicted", "one", "each"])
def test_a_batch_equals_its_images(name, targets):
    x, method = photos(), methods(tiny())[name]
    batch = method.attribute(x, targets)
    assert batch.shape == x.shape and batch.any() and not batch.requires_grad
    for n in range(3):
        alone = method.attribute(x[n : n + 1], targets[n] if isinstance(targets, list) else targets)
        torch.testing.assert_close(batch[n : n + 1], alone)


@pytest.mark.parametrize("name", SALIENCY)
def test_several_targets_an_image(name):
    x, method = photos(2), methods(tiny())[name]
    targets = torch.tensor([[0, 1, 4], [2, 2, 3]])
    several = method.attribute(x, targets)
    assert several.shape == (2, 3, 3, 20, 24)
    for t in range(3):
        torch.testing.assert_close(several[:, t], method.attribute(x, targets[:, t]))
    assert method.attribute(x, targets[:, :1]).shape == (2, 1, 3, 20, 24)


@pytest.mark.parametrize("name", SALIENCY)
def test_callables_are_targets(name):
    x, method = photos(2), methods(tiny())[name]
    torch.testing.assert_close(method.attribute(x, [lambda y: y[1], lambda y: y[3]]), method.attribute(x, [1, 3]))
    torch.testing.assert_close(method.attribute(x, ClassifierOutputTarget(2)), method.attribute(x, 2))
    assert not torch.equal(method.attribute(x, ClassifierOutputSoftmaxTarget(2)), method.attribute(x, 2))


def test_none_is_the_predicted_class():
    net, x = tiny(), photos()
    method = GuidedBackprop(net)
    predicted = net(x).argmax(1)
    assert torch.equal(method.attribute(x), method.attribute(x, predicted))
    assert torch.equal(method.outputs, net(x)) and not method.outputs.requires_grad
    assert method.rectifiers == 3


@pytest.mark.parametrize("name", SALIENCY)
def test_where_it_is_called_does_not_matter(name):
    net, x = tiny(), photos(2)
    expected = methods(net)[name].attribute(x, 1)
    with torch.no_grad():
        assert torch.equal(methods(net)[name].attribute(x, 1), expected)
    with torch.inference_mode():
        assert torch.equal(methods(net)[name].attribute(x.clone(), 1), expected)
    needing = x.clone().requires_grad_()
    assert torch.equal(methods(net)[name].attribute(needing, 1), expected)
    assert needing.grad is None and needing.requires_grad
    assert torch.equal(methods(net.train())[name].attribute(x, 1), expected) and net.training
    assert torch.equal(methods(net.requires_grad_(False))[name].attribute(x, 1), expected)
    with methods(net)[name] as method:
        assert torch.equal(method.attribute(x, 1), expected)


@pytest.mark.parametrize("cls", GRADIENTS)
def test_an_operation_in_place_on_the_input(cls):
    x = photos(1)
    image = x.clone()
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(1440, 2))
    assert cls(net).attribute(x, 0).any() and torch.equal(x, image)


@pytest.mark.parametrize("rectifier", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.Identity()], ids=repr)
@pytest.mark.parametrize("cls", GRADIENTS)
def test_no_rectifier_is_an_error_that_names_the_model(cls, rectifier):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), rectifier, nn.Flatten(), nn.Linear(1584, 2))
    with pytest.raises(ValueError, match=f"Sequential met no ReLU in its forward pass: {cls.__name__} would be"):
        cls(net).attribute(photos(1))


class WithoutGradient(TinyNet):
    def features(self, x):
        return super().features(x).detach()


class Cut(TinyNet):
    """Only the parameters, not the input, have a gradient."""

    def features(self, x):
        return super().features(x.detach())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [WithoutGradient, Cut])
@pytest.mark.parametrize("cls", GRADIENTS)
def test_an_output_without_gradient_is_an_error(cls, kind, frozen):
    net = tiny(kind).requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=f"the output of {kind.__name__} carries no gradient back to the input"):
        cls(net).attribute(photos(1), 0)


class Checkpointed(TinyNet):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=False)


@pytest.mark.parametrize("cls", GRADIENTS)
def test_checkpointed_activations(cls):
    """They would be computed again by the usual rule, in the middle of the backward pass."""
    with pytest.raises(RuntimeError, match="Checkpointed checkpoints activations.*switch that off"):
        cls(tiny(Checkpointed)).attribute(photos(2), 1)


@pytest.mark.parametrize("name", SALIENCY)
def test_arguments_of_the_wrong_kind(name):
    method = methods(tiny())[name]
    with pytest.raises(TypeError, match="input_tensor must be a tensor"):
        method(np.zeros((1, 3, 20, 24)))
    with pytest.raises(ValueError, match="first convolution takes 3 channels"):
        method(torch.rand(1, 4, 20, 24))
    with pytest.raises(ValueError, match="target 5 is out of range"):
        method(photos(1), 5)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        SALIENCY[name]("resnet18")


@pytest.mark.parametrize("targets", [None, [1, 0], torch.tensor([[1, 0], [2, 3]])], ids=["predicted", "each", "two"])
def test_guided_grad_cam_is_map_times_gradient(targets):
    net, x = tiny(), photos(2)
    method = GuidedGradCAM(net, "body")
    result = method.attribute(x, targets)
    maps = torch.as_tensor(GradCAM(net, "body")(x, targets))
    gradient = GuidedBackprop(net).attribute(x, targets)
    for channel in range(3):
        torch.testing.assert_close(result.select(-3, channel), gradient.select(-3, channel) * maps)
    assert torch.equal(method.outputs, net(x)) and result.any()


def test_guided_grad_cam_of_a_sequence():
    """One spatial dimension: each image's map goes to its own gradient."""
    net = nn.Sequential(nn.Conv1d(1, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    x, method = torch.randn(2, 1, 12), GuidedGradCAM(net, "2")
    maps = GradCAM(net, "2").attribute(x, 1)
    torch.testing.assert_close(method.attribute(x, 1), GuidedBackprop(net).attribute(x, 1) * maps[:, None])


@pytest.mark.parametrize("network", ["resnet18", "vgg11_bn"])
def test_under_the_name_of_pytorch_grad_cam(network):
    net, x = build(network), inputs(network, 3)
    ours = GuidedBackpropReLUModel(net)
    batch = ours(x, 4)
    assert batch.shape == (3, *x.shape[2:], 3) and batch.dtype == np.float32
    theirs = pytorch_grad_cam.GuidedBackpropReLUModel(build(network), device="cpu")
    for n, category in enumerate([4, None]):
        image = x[n : n + 1]
        expected = theirs(image.clone(), category)
        found = ours(image, category)
        assert found.shape == expected.shape == (*x.shape[2:], 3)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(batch[0] - ours(x[:1], 4)).max() <= 1e-5 * np.abs(batch[0]).max()


def test_two_threads_give_what_one_gives():
    net, x = tiny(), photos()
    expected = {c: methods(net)["guidedbackprop"].attribute(x, c) for c in range(2)} | {"plain": net(x).detach()}
    wrong, both = [], threading.Barrier(3)

    def explain(category):
        method = GuidedBackprop(net)
        both.wait()
        wrong.extend(category for _ in range(15) if not torch.equal(method.attribute(x, category), expected[category]))

    def forward():
        both.wait()
        for _ in range(15):
            y = net(x)
            nodes, names = [y.grad_fn], set()
            while nodes:
                node = nodes.pop()
                names.add(node.name())
                nodes.extend(child for child, _ in node.next_functions if child is not None)
            wrong.extend(["plain"] if "_RectifyBackward" in names or not torch.equal(y, expected["plain"]) else [])

    threads = [threading.Thread(target=explain, args=(c,)) for c in range(2)] + [threading.Thread(target=forward)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not net.training


@pytest.mark.parametrize("name", SALIENCY)
def test_a_compiled_part_runs_uncompiled(name):
    """What `submodule.compile()` leaves in a module is set by hand here: code in which no ReLU is seen."""
    net, x = tiny(), photos(2)
    expected = methods(net)[name].attribute(x, 1)
    seen = []

    def hiding(h):
        seen.append(h)
        with torch._C.DisableTorchFunction():
            return net.stem._call_impl(h)

    vars(net.stem)["_compiled_call_impl"] = hiding
    assert torch.equal(methods(net)[name].attribute(x, 1), expected)
    assert not seen or name == "guidedgradcam"  # Grad-CAM itself may run it
    assert vars(net.stem)["_compiled_call_impl"] is hiding
    with pytest.raises(ValueError, match="out of range"):
        methods(net)[name].attribute(x, 9)
    assert vars(net.stem)["_compiled_call_impl"] is hiding
    net(x)
    assert seen
