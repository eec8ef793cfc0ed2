"""Every operator and every method on a GPU, against the CPU in fp64 and against grad-cam on the same GPU.

TF32 is off. How far a result may be off is a share of its largest value, from what noise in place of rounding does to
these networks on a CPU: 1e-6 of the largest value in every convolution, more than fp32's transforms lose, comes out as
5e-5 of the small network and 3e-4 of ResNet-18; TF32, whose rounding is 5e-4, as a hundred times that.
"""

from __future__ import annotations

import pkgutil

import numpy as np
import pytest
import torch

import fastcam
from fastcam import kernels, ops
from fastcam.layers import find_layers
from fastcam.methods import METHODS
from fastcam.methods.base import BaseCAM
from fastcam.visualize import SALIENCY
from fastcam.visualize.gradients import InputGradient

from accuracy import assert_as_accurate_as
from gpu_cases import EVERY, ONE_PASS, OPERATIONS, PYTORCHS, TOKENS, drawn_on_the_cpu, explanation, off, on_resnet
from models import LAYERS, tiny

gpu = pytest.mark.gpu
pytestmark = pytest.mark.usefixtures("full_precision")
SMALL, RESNET = 2e-4, 1e-3
LOOSER = {
    "ablationcam": 1e-3,  # differences of scores
    "groupcam": 2e-2,  # differences of scores, and thresholds
    "reciprocam": 5e-3,  # differences of probabilities
    "vitreciprocam": 5e-3,
    "fem": 5e-2,  # a threshold that an activation may be near to
    "smoothfullgrad": 2e-2,  # noise takes inputs of a ReLU to where rounding decides which side they are on
    "smoothgrad": 2e-2,
    "integratedgradients": 5e-3,
}
COUNTED = {"sess": 0.98}  # where patches lie on one another rounding says how many count: a correlation instead
HALF = 0.98  # correlation of fp16 and bf16 with fp64
LESS_IN_HALF = {  # small changes of scores, which 8 bits of bf16 do not hold
    **{("reciprocam", torch.float16): 0.9, ("vitreciprocam", torch.float16): 0.9, ("groupcam", torch.float16): 0.9},
    **{("reciprocam", torch.bfloat16): None, ("vitreciprocam", torch.bfloat16): None},
    ("groupcam", torch.bfloat16): None,
}
RULES = ("guidedbackprop", "deconvnet", "guidedgradcam")  # are about ReLUs
LAST_ONLY = ("cam", "shapleycam", "fullgrad", "simplefullgrad", *SALIENCY)  # one layer, or none
WITHOUT_PEER = (
    *("cam", "fasterscorecam", "sscam", "iscam", "groupcam", "reciprocam", "smoothgradcam++", "simplefullgrad"),
    "smoothfullgrad",
)
PEERS = [name for name in METHODS if name not in WITHOUT_PEER]
ON_RESNET = [
    (name, layers)
    for name in ONE_PASS
    for layers in ("last", "several")
    if name not in RULES and (layers == "last" or name not in LAST_ONLY)
]


@pytest.fixture(autouse=True)
def same_draws(monkeypatch):
    monkeypatch.setattr("fastcam.visualize.smoothgrad.draws", drawn_on_the_cpu)


def test_no_method_and_no_kernel_is_missing():
    public = {getattr(fastcam, name) for name in fastcam.__all__}
    methods = {c for c in public if isinstance(c, type) and issubclass(c, BaseCAM | InputGradient)}
    assert {*METHODS, *SALIENCY} < set(EVERY) and methods == set(EVERY.values())
    parts = {"resampling", "channel_weights", "tiles"}  # of others
    files = {module.name for module in pkgutil.iter_modules(kernels.__path__)} - parts
    assert {name.split()[0] for name in OPERATIONS} == {*files, "channel_sum", "pooled_maps"}
    assert {f"channel_reduce {weighting}" for weighting in ops.WEIGHTINGS} < set(OPERATIONS)


@gpu
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operator(device, name, dtype, last):
    """Within twice the error of the definition in the same type on a CPU, plus one rounding; pictures to the level."""
    operation = OPERATIONS[name]
    given = operation.inputs(device, dtype, last)
    result, on_cpu = operation.run(*given), [t.cpu() for t in given]
    expected = operation.run(*on_cpu)
    if result.dtype == torch.uint8:
        assert torch.equal(result.cpu(), expected)
        return
    exact = operation.run(*(t.double() if t.is_floating_point() else t for t in on_cpu))
    assert exact.std() > 0
    if name in PYTORCHS:  # on either side
        assert off(result, exact) < 1e-4
    else:
        assert_as_accurate_as(expected, result, exact)


@gpu
@pytest.mark.parametrize("name", EVERY)
def test_method(device, name):
    reference, ours = explanation(name, "cpu", torch.float64), explanation(name, device)
    exact, result = reference(reference.x.double()), ours(ours.x.to(device))
    assert result.device.type == device.type and result.dtype == torch.float32
    if name in COUNTED:
        assert correlation(result, exact) > COUNTED[name]
    else:
        assert off(result, exact) < LOOSER.get(name, SMALL)


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_method_in_half_precision(device, name, dtype):
    least = LESS_IN_HALF.get((name, dtype), HALF)
    reference, ours = explanation(name, "cpu", torch.float64), explanation(name, device, dtype)
    result = ours(ours.x.to(device, dtype))
    assert result.isfinite().all() and result.any()
    if least is not None:
        assert correlation(result, reference(reference.x.double())) > least


def correlation(result, exact):
    """That of the image for which it is least."""
    pairs = zip(result.double().cpu().flatten(1), exact.double().cpu().flatten(1), strict=True)
    return min(torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs)


@gpu
@pytest.mark.parametrize(("name", "layers"), ON_RESNET)
def test_method_on_resnet(device, name, layers):
    reference, ours = on_resnet(name, layers, "cpu", torch.float64), on_resnet(name, layers, device)
    exact, result = reference(reference.x.double()), ours(ours.x.to(device))
    assert off(result, exact) < LOOSER.get(name, RESNET)


@gpu
@pytest.mark.parametrize(("name", "layers"), [case for case in ON_RESNET if case[0] in PEERS])
def test_method_against_grad_cam(device, name, layers):
    theirs = pytest.importorskip("pytorch_grad_cam")
    ours, other = on_resnet(name, layers, device), on_resnet(name, layers, device)
    x = ours.x.to(device)
    expected = their_map(theirs, name, other.net, LAYERS["resnet18"][layers], x)
    ours.method.sign = "lapack"
    assert off(ours(x), expected) < LOOSER.get(name, RESNET)


@gpu
@pytest.mark.parametrize("name", [name for name in PEERS if name not in ONE_PASS])
def test_method_of_many_passes_against_grad_cam(device, name):
    theirs = pytest.importorskip("pytorch_grad_cam")
    x = explanation(name).x.to(device)
    expected = their_map(theirs, name, tiny().to(device), "stem", x)  # behind a ReLU: theirs is another below 0
    result = METHODS[name](tiny().to(device), "stem").attribute(x)
    if name in COUNTED:
        assert correlation(result, expected) > COUNTED[name]
    else:
        assert off(result, expected) < LOOSER.get(name, SMALL)


def their_map(theirs, name, net, layers, x):
    """The map of grad-cam for the predicted classes."""
    cam = getattr(theirs, METHODS[name].__name__)(net, [] if name == "fullgrad" else find_layers(net, layers))
    np.random.seed(0)  # RandomCAM's generator
    return torch.from_numpy(cam(x.clone(), None))


@gpu
def test_guided_backpropagation_against_grad_cam(device):
    theirs = pytest.importorskip("pytorch_grad_cam")
    net, x = tiny().to(device), explanation("guidedbackprop").x[:1].to(device)
    expected = theirs.GuidedBackpropReLUModel(tiny().to(device), device)(x.clone(), 2)
    result = fastcam.GuidedBackprop(net).attribute(x, 2)
    assert off(result, torch.from_numpy(expected).movedim(-1, 0)[None]) < SMALL


def test_the_reference_has_no_more_methods():
    theirs = pytest.importorskip("pytorch_grad_cam")
    assert [n for n, cls in METHODS.items() if not hasattr(theirs, cls.__name__)] == list(WITHOUT_PEER)
    assert {*TOKENS, *METHODS, *SALIENCY} == set(EVERY)
