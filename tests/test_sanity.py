"""Sanity: what depends on the class depends on the head, and maps point at the digit more often than chance."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from fastcam.demo import demo_layer
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.metrics import centre_gaussian_maps, model_randomisation, pointing_game, random_maps, spearman
from fastcam.scenes import load_network, make_scenes
from fastcam.visualize import SALIENCY, GuidedGradCAM

CLASSLESS = {name for name, cls in METHODS.items() if not cls.class_discriminative}
# Random weights; and a deconvnet, which without max pooling sees nothing of the image.
NOT_MEANT_TO = {"randomcam", "deconvnet"}
NEARLY_UNIFORM = {"scorecam", "fasterscorecam", "sscam", "iscam"}  # softmax weights of a network with small logits
EVERY = [*METHODS, *SALIENCY]


@functools.cache
def scenes():
    return make_scenes(64, "test")


def count(method: str) -> int:
    return 12 if method in ("sscam", "iscam", "sess", "smoothfullgrad") else 32


def maps_of(method, network, images, labels):
    layer = demo_layer(method)
    if method in METHODS:
        np.random.seed(0)
        cls = METHODS[method]
        options = {"batch_size": 32} if issubclass(cls, PerturbationCAM) else {}
        return cls(network, None if layer == "-" else layer, **options).attribute(images, labels)
    if method == "guidedgradcam":
        return GuidedGradCAM(network, layer).attribute(images, labels).abs().amax(1)
    return SALIENCY[method](network).attribute(images, labels).abs().amax(1)


def test_which_methods_look_at_no_class():
    assert {"eigencam", "kpcacam", "fem", "randomcam"} == CLASSLESS


@pytest.mark.parametrize("method", EVERY)
def test_the_head_matters_to_what_explains_a_class(method):
    network, (images, labels) = load_network(), (scenes().images[:4], scenes().labels[:4])
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.weight.copy_(torch.randn(other.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    before, after = (maps_of(method, net, images, labels) for net in (network, other))
    if method in CLASSLESS:
        assert torch.equal(before, after)
    else:
        alike = spearman(before, after).mean()
        assert alike < (0.99999 if method in NEARLY_UNIFORM else 0.98), float(alike)


@pytest.mark.parametrize("method", EVERY)
def test_maps_point_at_the_digit_more_often_than_chance(method):
    n = count(method)
    data = scenes()
    score = pointing_game(maps_of(method, load_network(), data.images[:n], data.labels[:n]), data.boxes[:n])
    baselines = random_maps(n, 64, 64, seed=0), centre_gaussian_maps(n, 64, 64)
    chance = max(pointing_game(maps, data.boxes[:n]) for maps in baselines)
    if method in NOT_MEANT_TO:
        best = pointing_game(maps_of("gradcam", load_network(), data.images[:n], data.labels[:n]), data.boxes[:n])
        assert score < best - 0.1
    else:
        assert score > chance + 0.3


def test_randomised_layer_by_layer_grad_cam_forgets_what_it_saw():
    network, data = load_network(), scenes()

    def explain(model):
        return METHODS["gradcam"](model, "stage3").attribute(data.images[:8], data.labels[:8])

    stages = model_randomisation(network, explain)
    assert stages[0].layer == "head" and len(stages) > 8
    assert stages[-1].spearman.mean() < 0.6
