"""What is beside a map of one class on a GPU: options, several classes, tokens, pictures, metrics, data sets.

Against the CPU in fp64, or in fp32 where random weights are drawn in the model's own type.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcam
from fastcam import metrics, ops
from fastcam.layers import find_layers
from fastcam.methods import METHODS

from gpu_cases import Pooled, drawn_on_the_cpu
from models import LAYERS, build, inputs, tiny, tokens_to_map

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]
SMALL = 2e-4  # as in test_gpu
LOOSER = {
    "maximize pixel": 2e-3,  # steps divide by the gradient's size
    "maximize fourier": 2e-3,
    "maximize maco": 2e-3,
    "deep_dream": 2e-3,
    "perturbation": 2e-3,  # differences of scores
}
CLASSES = {"of all": torch.tensor([[0, 3, 1]]), "of each": torch.tensor([[0, 3, 1], [2, 4, 1]])}
MAPS = torch.rand(2, 40, 56, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[3, 5, 30, 40], [10, 0, 40, 20]])
SAMPLES = {"options": {"smoothgrad": {"samples": 3, "batch_size": 4}}}


def cam(net, **options):
    return fastcam.GradCAM(net, "body", **options)


def pictures(x):
    """Images in [0, 1]."""
    return (0.2 * x + 0.5).clamp(0, 1)


def of_classes(weighting, classes):
    return lambda net, x: METHODS[weighting](net, "tail").attribute(x, classes, normalize=False)


def made(parametrization):
    def run(net, x):
        goals = ["body:3", "logit:1", "stem:2@center"]
        options = {"size": (20, 26), "steps": 4, "parametrization": parametrization, "batch_size": 3}
        found = fastcam.maximize(net, goals, **options)
        return found.data, found.score

    return run


def curves(net, x):
    options = {"steps": 7, "batch_size": 8}
    return [curve(net, x, MAPS, [0, 1], **options) for curve in (metrics.insertion_curve, metrics.deletion_curve)]


def randomised(net, x):
    return [stage.maps for stage in metrics.model_randomisation(net, lambda net: cam(net).attribute(x, 1), ["head"])]


def patches(net, x):
    found = fastcam.top_patches(net, torch.cat([x, x.flip(3), 0.5 * x]), "body", [2, 0, 11], k=3, batch_size=4)
    return found.index, found.data, found.score, found.projections


CALLS = {
    **{f"{w}, classes {kind}": of_classes(w, classes) for w in ops.WEIGHTINGS for kind, classes in CLASSES.items()},
    "a call": lambda net, x: cam(net)(x, [0, 1]),
    "a call with classes": lambda net, x: cam(net)(x, CLASSES["of each"]),
    "aug_smooth": lambda net, x: cam(net)(x, [0, 1], aug_smooth=True),
    "eigen_smooth": lambda net, x: cam(net)(x, [0, 1], eigen_smooth=True),
    "eigen_smooth of 64 positions": lambda net, x: cam(net)(x[..., :16, :16], [0, 1], eigen_smooth=True),
    "low": lambda net, x: cam(net).attribute(x, [0, 1], size=None),
    "signed": lambda net, x: cam(net).attribute(x, [0, 1], normalize=False),
    "signed and low": lambda net, x: cam(net).signed_maps(x, [0, 1]),
    "another size": lambda net, x: cam(net).attribute(x, [0, 1], size=(61, 90)),
    "cubic": lambda net, x: cam(net, interpolation="cubic").attribute(x, [0, 1]),
    "explain": lambda net, x: fastcam.explain(
        net, x, ["gradcam", "layercam", "eigencam"], ["stem", "body"], CLASSES["of each"]
    ),
    "compare": lambda net, x: (
        fastcam.compare(net, x, ["gradcam", "saliency", "smoothgrad"], [0, 1], "body", **SAMPLES).data
    ),
    "feature_maps": lambda net, x: [maps.data for maps in fastcam.feature_maps(net, x, ["stem", "body"]).values()],
    **{f"maximize {kind}": made(kind) for kind in ("pixel", "fourier", "maco")},
    "deep_dream": lambda net, x: fastcam.deep_dream(net, pictures(x), "body", octaves=2, steps=2, jitter=3).data,
    "invert": lambda net, x: fastcam.invert(net, pictures(x), "body", steps=5, batch_size=2).data,
    "top_patches": patches,
    "average_drop": lambda net, x: metrics.average_drop(net, x, MAPS, [0, 1]),
    "average_gain": lambda net, x: metrics.average_gain(net, x, MAPS, [3, 4]),
    "adcc": lambda net, x: metrics.adcc(net, x, MAPS, cam(net), [0, 1]),
    "curves": curves,
    "imputation": lambda net, x: metrics.NoisyLinearImputer(noise=0)(x, (MAPS > 0.6).to(x.device)),
    "perturbation": lambda net, x: metrics.ROADCombined([30, 70])(x, MAPS.numpy(), None, net),
    "localisation": lambda net, x: metrics.energy_pointing_game(cam(net).attribute(x, [0, 1]), BOXES),
    "sparseness": lambda net, x: metrics.sparseness(cam(net).attribute(x, [0, 1])),
    "model_randomisation": randomised,
}
IN_FP32 = ("model_randomisation", "perturbation")


def network(device, dtype=torch.float32):
    net = tiny(Pooled)
    net.head.weight.data.mul_(20)  # scores far enough apart that their differences are no rounding
    return net.to(device, dtype)


def images(device, dtype=torch.float32):
    return torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def tensors(found):
    """All that a call gave, in order."""
    parts = list(found.values()) if isinstance(found, dict) else found
    return [t for part in parts for t in tensors(part)] if isinstance(parts, list | tuple) else [torch.as_tensor(parts)]


def error(result, exact):
    """The largest as a share of the largest value."""
    result, exact = result.double().cpu(), exact.double().cpu()
    assert result.shape == exact.shape and result.isfinite().all() and exact.any()
    return float((result - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", CALLS)
def test_call(device, name, monkeypatch):
    monkeypatch.setattr("fastcam.visualize.smoothgrad.draws", drawn_on_the_cpu)
    dtype = torch.float32 if name in IN_FP32 else torch.float64
    torch.manual_seed(0)  # ROAD's noise
    exact = tensors(CALLS[name](network("cpu", dtype), images("cpu", dtype)))
    torch.manual_seed(0)
    found = tensors(CALLS[name](network(device), images(device)))
    for result, expected in zip(found, exact, strict=True):
        assert error(result, expected) < LOOSER.get(name, SMALL)


@pytest.mark.parametrize("layers", ["last", "several"])
@pytest.mark.parametrize("name", ["gradcam", "layercam", "eigencam", "scorecam"])
def test_volumes(device, name, layers):
    nets = build("volume").double(), build("volume").to(device)
    exact, result = (
        METHODS[name](net, LAYERS["volume"][layers]).attribute(inputs("volume", 2).to(next(net.parameters())), [1, 2])
        for net in nets
    )
    assert result.device.type == device.type and error(result, exact) < 5 * SMALL


@pytest.mark.parametrize("layers", ["last", "several"])
@pytest.mark.parametrize(
    "name", ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam", "eigengradcam", "scorecam"]
)
def test_tokens_against_grad_cam(device, name, layers):
    theirs = pytest.importorskip("pytorch_grad_cam")
    ours, other = build("small_vit").to(device), build("small_vit").to(device)
    x, layers = inputs("small_vit", 2).to(device), LAYERS["small_vit"][layers]
    targets = [theirs.utils.model_targets.ClassifierOutputTarget(c) for c in (2, 5)]
    cls = getattr(theirs, METHODS[name].__name__)
    expected = cls(other, find_layers(other, layers), reshape_transform=tokens_to_map)(x.clone(), targets)
    result = METHODS[name](ours, layers, sign="lapack")(x, [2, 5])
    assert np.ptp(expected, (1, 2)).max() > 0.5 and error(torch.from_numpy(result), torch.from_numpy(expected)) < 1e-3


@pytest.mark.parametrize("targets", ["predicted", "label"])
@pytest.mark.parametrize("full", [False, True])
def test_data_set(device, tmp_path, full, targets):
    """Batches on their way in a stream of their own, the last one smaller; maps on their way back."""
    x, classes = images("cpu").repeat(12, 1, 1, 1)[:23] * torch.linspace(0.5, 2, 23).view(-1, 1, 1, 1), torch.arange(23)
    data = torch.utils.data.TensorDataset(x, classes % 5)
    options = {"workers": 0, "shard_size": 7, "batch_size": 4, "store": "fp32", "full": full}
    found = fastcam.attribute_dataset(cam(network(device)), data, tmp_path, targets, **options)
    explained = cam(network("cpu", torch.float64))
    exact = explained.attribute(x.double(), None if targets == "predicted" else classes % 5)
    assert found.complete and found.failed == [] and error(torch.from_numpy(found[:]), exact) < SMALL
    assert found.predicted.tolist() == explained.outputs.argmax(1).tolist()


def test_maps_are_an_array_of_their_own(device):
    method, x = cam(network(device)), images(device)
    first = method(x, 0)
    kept = first.copy()
    others = [method(x, c) for c in (1, 2, 3)]
    assert np.array_equal(first, kept) and not any(np.shares_memory(first, other) for other in others)
    assert first.flags.writeable and torch.from_numpy(first).is_pinned() == (device.type == "cuda")
