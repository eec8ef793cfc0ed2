"""Every method against the package grad-cam, as a pairwise cover of networks, layers, targets and options."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.methods.perturbation import PerturbationCAM

from models import LAYERS, SIGNED, build, inputs, tokens_to_map

BESIDE_THEIR_EQUATIONS = (  # as those that score changed rows
    *("cam", "shapleycam", "smoothgradcam++", "segeigencam", "kpcacam", "fem", "randomcam"),
    *("finercam", "refinecam", "sess"),
)
PEERS = [
    cls.__name__
    for name, cls in METHODS.items()
    if name not in BESIDE_THEIR_EQUATIONS and not issubclass(cls, PerturbationCAM)
]
FACTORS = {
    "method": PEERS,
    "network": list(LAYERS),
    "layers": ["last", "several", "middle"],
    "targets": ["predicted", "given", "callables"],
    "aug_smooth": [False, True],
    "eigen_smooth": [False, True],
    "batch": [1, 3],
    "square": [True, False],
}


def pairs(case: tuple) -> set:
    return set(itertools.combinations(enumerate(case), 2))


def cover() -> list[tuple]:
    """Each method with each network and each choice of layers, the other factors drawn; then what pairs are missing."""
    draw = random.Random(0)
    tail = list(FACTORS.values())[3:]
    cases = [(*head, *(draw.choice(v) for v in tail)) for head in itertools.product(*list(FACTORS.values())[:3])]
    missing = set().union(*(pairs(c) for c in itertools.product(*FACTORS.values()))) - set().union(*map(pairs, cases))
    while missing:
        (i, a), (j, b) = min(missing, key=str)
        case = [draw.choice(v) for v in FACTORS.values()]
        case[i], case[j] = a, b
        cases.append(tuple(case))
        missing -= pairs(tuple(case))
    return cases


CASES = cover()


def targets_of(kind: str, network: str, x: torch.Tensor, rank: int = 0):
    """(ours, the reference's) targets; among the classes that score high, or many a map would be 0 after its ReLU."""
    with torch.no_grad():
        ranked = build(network)(x).argsort(1, descending=True)
    classes = [ranked[n, n % 2 + rank].item() for n in range(len(x))]
    if kind == "predicted":
        return None, None
    if kind == "given":
        return classes, [ClassifierOutputTarget(c) for c in classes]
    softmax = [ClassifierOutputSoftmaxTarget(c) for c in classes]
    return softmax, softmax


def reference_map(method, network, layers, targets, aug_smooth, eigen_smooth, x):
    model = build(network).to(x.dtype)
    cam = getattr(pytorch_grad_cam, method)(
        model, find_layers(model, layers), reshape_transform=tokens_to_map if network == "small_vit" else None
    )
    return cam(x, targets, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)


def our_map(method, network, layers, targets, aug_smooth, eigen_smooth, x):
    cls = next(c for c in METHODS.values() if c.__name__ == method)
    cam = cls(build(network), layers, tokens_to_map if network == "small_vit" else None, sign="lapack")
    return cam(x, targets, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c))
def test_same_map_as_grad_cam(case):
    method, network, layers, kind, aug_smooth, eigen_smooth, batch, square = case
    x = inputs(network, batch, square)
    rest = (LAYERS[network][layers],)
    for rank in range(4):  # other classes, where the ReLU leaves nothing of an image's map
        ours, theirs = targets_of(kind, network, x, rank)
        expected = reference_map(method, network, *rest, theirs, aug_smooth, eigen_smooth, x)
        if np.ptp(expected, axis=(1, 2)).min() > 0.1:
            break
    actual = our_map(method, network, *rest, ours, aug_smooth, eigen_smooth, x)
    assert actual.dtype == np.float32 and actual.shape == (batch, *x.shape[2:])
    tolerance = 1e-5
    if network in SIGNED and method == "XGradCAM":  # divides by sums of activations, which come near 0 there
        tolerance = 1e-4
    if network in SIGNED and method == "GradCAMPlusPlus":  # its denominator can vanish there: no closer than fp32 gets
        exact = reference_map(method, network, *rest, theirs, aug_smooth, eigen_smooth, x.double())
        tolerance = max(1e-5, min(2 * np.abs(expected - exact).max(), 5e-4))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.1, "a constant map compares nothing"


def test_the_cover_holds_every_pair():
    assert 144 <= len(CASES) <= 250
    seen = set().union(*map(pairs, CASES))
    assert all(pairs(c) <= seen for c in itertools.product(*FACTORS.values()))


@pytest.mark.parametrize("network", LAYERS)
def test_methods_differ_at_a_middle_layer(network):
    x, layers = inputs(network), LAYERS[network]["middle"]
    maps = {m: our_map(m, network, layers, [3, 7, 5], False, False, x) for m in PEERS}
    for a, b in itertools.combinations(PEERS, 2):
        one_formula = {a, b} == {"GradCAMElementWise", "LayerCAM"} and network not in SIGNED  # relu(G A) = relu(G) A
        assert one_formula or np.abs(maps[a] - maps[b]).max() > 1e-2, (a, b)


def test_torch_threads_are_one_per_worker():
    assert torch.get_num_threads() == 1
