"""How the peers explain what a `Problem` asks, each by its documented use and with a network of its own.

grad-cam    finished maps in numpy, `(B, H, W)` in [0, 1], as fastcam's call gives them; guided backpropagation of one
            image `(1, k, H, W)`
torch-cam   maps at the layer's own size, a tensor `(B, h, w)` in [0, 1]
captum      Grad-CAM at the layer's own size, a tensor `(B, 1, h, w)` in its own unit; gradients `(B, k, H, W)`
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models import VisionTransformer

from benchmarks.problem import Problem
from fastcam.layers import find_layers
from fastcam.methods import METHODS

Call = Callable[[], Any]

SEED = 0  # of a peer's noise
PACKAGES = {"grad-cam": "pytorch_grad_cam", "torch-cam": "torchcam.methods", "captum": "captum.attr"}
TORCH_CAM = {
    **{"cam": "CAM", "gradcam": "GradCAM", "gradcam++": "GradCAMpp", "smoothgradcam++": "SmoothGradCAMpp"},
    **{"xgradcam": "XGradCAM", "layercam": "LayerCAM", "finercam": "FinerCAM", "refinecam": "RefineCAM"},
    **{"scorecam": "ScoreCAM", "sscam": "SSCAM", "iscam": "ISCAM"},
}
CAPTUM = {
    **{"gradcam": "LayerGradCam", "guidedgradcam": "GuidedGradCam", "saliency": "Saliency"},
    **{"inputxgradient": "InputXGradient", "guidedbackprop": "GuidedBackprop", "deconvnet": "Deconvolution"},
    **{"integratedgradients": "IntegratedGradients", "smoothgrad": "NoiseTunnel"},
}
# Where a peer's usual setting is another than fastcam's; names of options are fastcam's.
SAME_AS_OURS: dict[tuple[str, str], dict[str, Any]] = {
    ("torch-cam", "finercam"): {"gamma": 1.0},
    ("captum", "integratedgradients"): {"n_steps": 50, "internal_batch_size": 64},
    ("captum", "smoothgrad"): {"samples": 25},
}


def calls(problem: Problem, method: str, **options: Any) -> dict[str, Call]:
    """The peers that are installed and have the method, `side -> call`; see `left_out` for those that do not fit.

    method    as in `fastcam.methods.METHODS` and `fastcam.visualize.SALIENCY`
    options   by fastcam's names: `batch_size`, `samples`, `num_samples`, `num_scales`; `base_method` as a method's name
    What a peer sets up, but for its copy of the network, is set up within its first call, where its errors come too.
    """
    makers = {"grad-cam": _grad_cam, "torch-cam": _torch_cam, "captum": _captum}
    found = {}
    for side in having(method):
        if side not in left_out(problem, method):
            settings = {**SAME_AS_OURS.get((side, method), {}), **options}
            found[side] = lazily(partial(makers[side], problem.copied(), method, **settings))
    return found


def having(method: str) -> list[str]:
    """The sides that have the method and whose package is here."""
    has = {"torch-cam": method in TORCH_CAM, "captum": method in CAPTUM, "grad-cam": method == "guidedbackprop"}
    if method in METHODS and installed("grad-cam"):
        has["grad-cam"] = hasattr(importlib.import_module(PACKAGES["grad-cam"]), METHODS[method].__name__)
    return [side for side in PACKAGES if has[side] and installed(side)]


def left_out(problem: Problem, method: str) -> dict[str, str]:
    """Why a peer that has the method cannot be asked here without an error that says so, `side -> reason`."""
    reasons = {}
    if method == "guidedbackprop" and len(problem.x) > 1:
        reasons["grad-cam"] = "explains the first image of a batch alone"
    if method == "gradcam" and reshape_of(problem) is not None:
        reasons["captum"] = "takes tokens for channels"
    return {side: reason for side, reason in reasons.items() if side in having(method)}


@cache
def installed(side: str) -> bool:
    return importlib.util.find_spec(PACKAGES[side].partition(".")[0]) is not None


def lazily(make: Callable[[], Call]) -> Call:
    """A call of what `make` gives, which is made by the first one."""
    made = cache(make)
    return lambda: made()()


def reshape_of(problem: Problem) -> Callable[[Tensor], Tensor] | None:
    """What turns the tokens of a vision transformer into `(B, C, h, w)`; None for a convolutional network."""
    if not isinstance(problem.net, VisionTransformer):
        return None
    side = problem.net.image_size // problem.net.patch_size
    return lambda tokens: tokens[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)  # the first is the class token


def _grad_cam(problem: Problem, method: str, **options: Any) -> Call:
    package = importlib.import_module(PACKAGES["grad-cam"])
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if method == "guidedbackprop":
        guided, image = package.GuidedBackpropReLUModel(problem.net, problem.x.device), problem.x.clone()

        def back() -> np.ndarray:
            image.grad = None  # to which grad-cam adds
            return np.moveaxis(guided(image, problem.targets[0]), -1, 0)[None]

        return back
    if "base_method" in options:
        options["base_method"] = getattr(package, METHODS[options["base_method"]].__name__)
    batch_size = options.pop("batch_size", None)
    if method == "ablationcam" and reshape_of(problem) is not None:
        options["ablation_layer"] = package.AblationLayerVit()
    layers = [] if method == "fullgrad" else find_layers(problem.net, problem.layer)
    cls = getattr(package, METHODS[method].__name__)
    cam = cls(problem.net, layers, reshape_transform=reshape_of(problem), **options)
    if batch_size is not None:
        cam.batch_size = batch_size
    # Finer-CAM compares the predicted class with others if it is given none, and what is asked for is that class.
    targets = None if method == "finercam" else [ClassifierOutputTarget(t) for t in problem.targets]
    return partial(cam, input_tensor=problem.x, targets=targets)


def _torch_cam(problem: Problem, method: str, **options: Any) -> Call:
    if "samples" in options:
        options["num_samples"] = options.pop("samples")
    if (reshape := reshape_of(problem)) is not None:
        options["reshape_transform"] = reshape
    layers = find_layers(problem.net, problem.layer)
    package = importlib.import_module(PACKAGES["torch-cam"])
    if "base_method" in options:
        options["base_method"] = getattr(package, TORCH_CAM[options["base_method"]])
    cam = getattr(package, TORCH_CAM[method])(problem.net, layers if len(layers) > 1 else layers[0], **options)
    differentiated = method not in ("cam", "smoothgradcam++", "scorecam", "sscam", "iscam")  # the run that it is given
    noisy = method in ("smoothgradcam++", "sscam")

    def call() -> Tensor:
        if noisy:  # drawn from torch's own generator: the same draws in each call, so that the result can be checked
            torch.manual_seed(SEED)
        with torch.set_grad_enabled(differentiated):
            scores = problem.net(problem.x)
        (maps,) = cam(problem.targets, scores)
        return maps

    return call


def _captum(problem: Problem, method: str, **options: Any) -> Call:
    package = importlib.import_module(PACKAGES["captum"])
    net, x = problem.net, problem.x.clone().requires_grad_()
    targets = torch.tensor(problem.targets, device=x.device)
    if method == "smoothgrad":
        tunnel, samples = package.NoiseTunnel(package.Saliency(net)), options["samples"]
        spread = 0.15 * float((x.detach().amax((1, 2, 3)) - x.detach().amin((1, 2, 3))).mean())
        settings = {"nt_type": "smoothgrad", "nt_samples": samples, "stdevs": spread}  # in one batch, as by default
        return lambda: tunnel.attribute(x, target=targets, abs=False, **settings)
    of_layer = method in ("gradcam", "guidedgradcam")
    explain = getattr(package, CAPTUM[method])(net, *(find_layers(net, problem.layer) if of_layer else []))
    given: dict[str, dict[str, Any]] = {
        "gradcam": {"relu_attributions": True},
        "guidedgradcam": {"interpolate_mode": "bilinear"},  # as the paper does
        "saliency": {"abs": False},
    }
    options = {**given.get(method, {}), **options}
    return lambda: explain.attribute(x, target=targets, **options)
