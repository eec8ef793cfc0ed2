"""Receptive fields, measured, beside those of the formula: r = r + (k - 1) j d, j = j s."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fastcam import layer_table

from models import tiny


def fields(net, *shape):
    return {row.name: row.receptive_field for row in layer_table(net, torch.rand(1, *shape), receptive_fields=True)}


def by_formula(layers):
    r, j, found = 1, 1, []
    for kernel, stride, dilation in layers:
        r, j = r + (kernel - 1) * j * dilation, j * stride
        found.append((r, r))
    return found


def test_a_chain_of_convolutions_and_pooling():
    layers = [(3, 1, 1), (5, 2, 1), (3, 1, 2), (2, 2, 1), (3, 1, 1)]
    chain = []
    for n, (kernel, stride, dilation) in enumerate(layers):
        padding = dilation * (kernel - 1) // 2
        convolution = nn.Conv2d(2 if n == 0 else 4, 4, kernel, stride, padding, dilation)
        chain += [nn.MaxPool2d(2) if kernel == 2 else convolution, nn.ReLU()]
    found = fields(nn.Sequential(*chain), 2, 80, 90)
    expected = by_formula(layers)
    assert [found[str(2 * n)] for n in range(5)] == [found[str(2 * n + 1)] for n in range(5)] == expected


def test_resnet18():
    found = fields(torchvision.models.resnet18(num_classes=2).eval(), 3, 224, 224)
    stages = [found[name] for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")]
    assert stages == [(7, 7), (11, 11), (43, 43), (99, 99), (211, 211), "global"]
    assert found["bn1"] == (7, 7) and found["fc"] is None


def test_a_global_operation_in_between_sees_everything():
    class Squeeze(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    found = fields(nn.Sequential(nn.Conv2d(1, 4, 3), Squeeze(), nn.Conv2d(4, 4, 1)), 1, 20, 20)
    assert found == {"0": (3, 3), "1": "global", "2": "global"}


@pytest.mark.parametrize("rank", [1, 3])
def test_any_number_of_spatial_dimensions(rank):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[rank]
    assert fields(nn.Sequential(conv(1, 3, 3), conv(3, 3, 3)), 1, *[12] * rank) == {"0": (3,) * rank, "1": (5,) * rank}


def test_layers_without_a_gradient_to_the_input_have_none():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    found = fields(nn.Sequential(nn.Conv2d(1, 4, 3), Detached(), nn.Conv2d(4, 4, 3)), 1, 20, 20)
    assert found == {"0": (3, 3), "1": None, "2": None}


def test_the_model_stays_as_it_is():
    net = tiny().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert fields(net, 3, 20, 24)["stem"] == (3, 3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and all(p.grad is None for p in net.parameters())
