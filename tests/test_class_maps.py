"""The maps of many classes behind a linear head, by one product of matrices."""

import pytest
import torch
from torch import nn

import fastcam
from fastcam import ops

K, C = 7, 5
FAMILY = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise"]


def activations(*size):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, C, *size, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("size", [(4,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("weighting", ops.WEIGHTINGS)
def test_pooled_maps_are_those_of_uniform_gradients(weighting, size):
    A, W = activations(*size), torch.randn(3, K, C, dtype=torch.double)
    W[0, 0, :2] = 0
    N = A[0, 0].numel()
    for weights in (W, W[0]):
        found = ops.pooled_maps(A, weights, weighting)
        if weighting == "gradcamelementwise":
            assert found is None
            continue
        expected = []
        for t in range(K):
            w = weights[..., t, :].expand(3, C)
            G = (w / N).view(3, C, *[1] * len(size)).expand_as(A)
            expected.append(ops.weighted_activations(A, G, weighting).sum(1))
        torch.testing.assert_close(found.view(3, K, *size), torch.stack(expected, 1), rtol=1e-9, atol=1e-9)


def test_grad_cam_plus_plus_in_parts_of_the_classes():
    A = torch.randn(2, 2000, 2, 2)
    W = torch.randn(130, 2000)
    parts = [ops.pooled_maps(A, w, "gradcam++").view(2, -1, 2, 2) for w in W.split(7)]
    torch.testing.assert_close(ops.pooled_maps(A, W, "gradcam++").view(2, 130, 2, 2), torch.cat(parts, 1))


def pooled():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, C, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, K)
    return nn.Sequential(*layers).eval()


TARGETS = {
    "all": torch.arange(K).expand(3, -1),
    "all, each row its own memory": torch.arange(K).repeat(3, 1),
    "all, in another order": torch.arange(K).flip(0).repeat(3, 1),
    "the same": [[5, 2]] * 3,
    "one row for all": [[5, 2, 2]],
    "others": [[5, 2], [2, 5], [0, 0]],
    "one each": [[1], [2], [3]],
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", FAMILY)
def test_each_class_has_the_map_that_it_has_alone(name, targets):
    cam, x = getattr(fastcam, name)(pooled(), "1"), torch.rand(3, 3, 8, 8)
    found = cam.attribute(x, targets, normalize=False, size=None)
    each = torch.as_tensor(targets).expand(3, -1)
    assert found.shape == (3, each.shape[1], 6, 6)
    for t in range(each.shape[1]):
        alone = cam.attribute(x, each[:, t], normalize=False, size=None)
        torch.testing.assert_close(found[:, t], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_weights_of_each_image_are_looked_up_in_parts_of_the_classes(name, monkeypatch):
    cam, x = getattr(fastcam, name)(pooled(), "1"), torch.rand(3, 3, 8, 8)
    targets = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 1, 2, 6, 0]])
    expected = cam.attribute(x, targets, normalize=False, size=None)
    seen, maps_of = [], ops.pooled_maps
    monkeypatch.setattr("fastcam.methods.gradient._WEIGHTS", 2 * 3 * C)
    monkeypatch.setattr(ops, "pooled_maps", lambda A, W, w: seen.append(W.shape) or maps_of(A, W, w))
    torch.testing.assert_close(cam.attribute(x, targets, normalize=False, size=None), expected)
    if name != "GradCAMElementWise":
        assert seen == [(3, 2, C), (3, 2, C), (3, 1, C)]
    cam.attribute(x, torch.arange(K).repeat(3, 1))
    assert seen[-1] == (K, C)


def test_the_weights_of_the_model_are_not_written_into():
    net = pooled()
    before = net[4].weight.detach().clone()
    for name in FAMILY:
        getattr(fastcam, name)(net, "1").attribute(torch.rand(3, 3, 8, 8), TARGETS["all"])
    assert torch.equal(net[4].weight, before) and net[4].weight.grad is None
