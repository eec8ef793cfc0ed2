"""Every method against the package grad-cam, as a pairwise cover of networks, layers, targets and options."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

import fastcam
from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM

from models import LAYERS, SIGNED, build, inputs, tokens_to_map

WITHOUT_PEER = ("cam", "smoothgradcam++", "simplefullgrad", "smoothfullgrad")
MANY_PASSES = "sess"  # compared in their own files, as those that score changed rows
PEERS = {
    cls.__name__: cls
    for name, cls in METHODS.items()
    if name not in (*WITHOUT_PEER, MANY_PASSES) and not issubclass(cls, PerturbationCAM)
}
FACTORS = {
    "method": list(PEERS),
    "network": list(LAYERS),
    "layers": ["last", "several", "middle"],
    "targets": ["predicted", "given", "callables"],
    "aug_smooth": [False, True],
    "eigen_smooth": [False, True],
    "batch": [1, 3],
    "square": [True, False],
}


def possible(case: tuple) -> bool:
    """Whether grad-cam has an answer."""
    method, network, layers, _, aug_smooth, eigen_smooth, *_ = case
    if method == "ShapleyCAM":  # no second derivative of attention and of MobileNet's squeezing, and of one layer only
        squeezed = network == "mobilenet_v3_small" and layers != "last"
        if network == "small_vit" or layers == "several" or squeezed:
            return False
    if method == "FullGrad" and network in ("small_vit", "volume"):  # two-dimensional convolutions only
        return False
    if method == "RefineCAM":  # takes eigen_smooth for aug_smooth, and has no other
        return not (aug_smooth or eigen_smooth)
    return not (method == "FinerCAM" and aug_smooth)  # which it has not


def pairs(case: tuple) -> set:
    return set(itertools.combinations(enumerate(case), 2))


ALL_PAIRS = set().union(*(pairs(c) for c in itertools.product(*FACTORS.values()) if possible(c)))


def cover() -> list[tuple]:
    """Cases that have every possible pair of choices: again and again that of many random ones with most new pairs."""
    draw = random.Random(0)
    cases, missing = [], set(ALL_PAIRS)
    while missing:
        (i, a), (j, b) = min(missing, key=str)
        candidates = []
        while len(candidates) < 40:
            case = [draw.choice(v) for v in FACTORS.values()]
            case[i], case[j] = a, b
            if possible(tuple(case)):
                candidates.append(tuple(case))
        best = max(candidates, key=lambda c: len(pairs(c) & missing))
        cases.append(best)
        missing -= pairs(best)
    return cases


CASES = cover()


def targets_of(kind: str, method: str, network: str, x: torch.Tensor, rank: int = 0):
    """(ours, the reference's) targets; among the classes that score high, or many a map would be 0 after its ReLU."""
    with torch.no_grad():
        ranked = build(network)(x).argsort(1, descending=True)
    classes = [ranked[n, n % 2 + rank].item() for n in range(len(x))]
    if kind == "predicted":
        return None, None
    if kind == "given":
        named = [ClassifierOutputTarget(c) for c in classes]
        return (named if method == "FinerCAM" else classes), named  # which compares plain indices with other classes
    softmax = [ClassifierOutputSoftmaxTarget(c) for c in classes]
    return softmax, softmax


def made(package, method, network, layers, **options):
    model = build(network)
    chosen = [] if method == "FullGrad" else find_layers(model, layers)
    return model, getattr(package, method)(model, chosen, tokens_to_map if network == "small_vit" else None, **options)


def call(cam, x, targets, aug_smooth, eigen_smooth):
    np.random.seed(0)  # RandomCAM's generator
    chosen = {"aug_smooth": aug_smooth, "eigen_smooth": eigen_smooth}
    return cam(x, targets, **{name: value for name, value in chosen.items() if value})


def reference_map(method, network, layers, targets, aug_smooth, eigen_smooth, x):
    model, cam = made(pytorch_grad_cam, method, network, layers)
    model.to(x.dtype)
    return call(cam, x, targets, aug_smooth, eigen_smooth)


def our_map(method, network, layers, targets, aug_smooth, eigen_smooth, x):
    _, cam = made(fastcam, method, network, layers, sign="lapack")
    return call(cam, x, targets, aug_smooth, eigen_smooth)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c))
def test_same_map_as_grad_cam(case):
    method, network, layers, kind, aug_smooth, eigen_smooth, batch, square = case
    x = inputs(network, batch, square)
    rest = (LAYERS[network][layers],)
    for rank in range(4):  # other classes, where the ReLU leaves nothing of an image's map
        ours, theirs = targets_of(kind, method, network, x, rank)
        expected = reference_map(method, network, *rest, theirs, aug_smooth, eigen_smooth, x)
        if np.ptp(expected, axis=tuple(range(1, x.ndim - 1))).min() > 0.1:
            break
    actual = our_map(method, network, *rest, ours, aug_smooth, eigen_smooth, x)
    assert actual.dtype == np.float32 and actual.shape == (batch, *x.shape[2:])
    tolerance = 1e-5
    if network in SIGNED and method == "XGradCAM":  # divides by sums of activations, which come near 0 there
        tolerance = 1e-4
    if network in SIGNED and method in (
        "GradCAMPlusPlus",
        "RefineCAM",
    ):  # its denominator can vanish there: no closer than fp32 gets
        exact = reference_map(method, network, *rest, theirs, aug_smooth, eigen_smooth, x.double())
        tolerance = max(1e-5, min(2 * np.abs(expected - exact).max(), 5e-4))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    assert np.ptp(expected, axis=tuple(range(1, x.ndim - 1))).min() > 0.1, "a constant map compares nothing"


def test_the_cover_holds_every_pair():
    assert len(PEERS) * len(LAYERS) - 20 <= len(CASES) <= 200
    assert set().union(*map(pairs, CASES)) == ALL_PAIRS
    assert {"small_vit", "volume"} < {network for _, network, *_ in CASES}


@pytest.mark.parametrize("network", LAYERS)
def test_methods_differ_at_a_middle_layer(network):
    x, layers = inputs(network), LAYERS[network]["middle"]
    # Shapley's second order is small, one layer's refinement is its base method, and FullGrad has no layer.
    methods = [m for m in PEERS if m not in ("ShapleyCAM", "RefineCAM", "FullGrad")]
    maps = {m: our_map(m, network, layers, [3, 7, 5], False, False, x) for m in methods}
    for a, b in itertools.combinations(methods, 2):
        one_formula = {a, b} == {"GradCAMElementWise", "LayerCAM"} and network not in SIGNED  # relu(G A) = relu(G) A
        assert one_formula or np.abs(maps[a] - maps[b]).max() > 1e-2, (a, b)


def test_torch_threads_are_one_per_worker():
    assert torch.get_num_threads() == 1
