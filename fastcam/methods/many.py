"""Many answers from one forward pass: methods, layers and targets that share a recorded run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.fast.agreement import Agreement
from fastcam.fast.calls import FastCalls, device_of
from fastcam.fast.settings import Optimize, settings_of
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import default_layer, find_layers, layer_name
from fastcam.methods import ATTENTION, METHODS
from fastcam.methods.base import BaseCAM, Size, map_size, per_target
from fastcam.methods.combine import CombinedCAM
from fastcam.methods.fullgrad import FullGrad
from fastcam.record import unwrap
from fastcam.targets import Targets, part_of, per_image

_SHOWN = 8  # images in a notebook
_fast_calls: weakref.WeakKeyDictionary[nn.Module, FastCalls] = weakref.WeakKeyDictionary()  # the last of each model


class Answers(dict[str, dict[str, Tensor]]):
    """The maps of `explain`: `answers[method][layer]`.

    agreement   with `optimize`, how near each method's maps were to the exact ones, on the first images
    """

    agreement: Mapping[str, Agreement] = MappingProxyType({})
    _images: Tensor | None = None  # the first ones, to show them
    _normalized = True

    def _repr_html_(self) -> str | None:
        """The maps of the first images over them, with a slider; of what is no image in two dimensions nothing."""
        if self._images is None:
            return None
        from fastcam.report.notebook import slider_of_answers

        return slider_of_answers(self, self._images, self._normalized)


def explain(
    model: nn.Module,
    input_tensor: Any,
    methods: str | Sequence[str | type[BaseCAM]] = ("gradcam",),
    layers: Any = None,
    targets: Targets = None,
    *,
    reshape_transform: Callable[[Any], Tensor] | str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    eigen_smooth: bool = False,
    normalize: bool = True,
    size: Size = "input",
    forward_kwargs: Mapping[str, Any] | None = None,
    optimize: bool | Optimize | None = None,
) -> Answers:
    """The maps of several methods at several layers: `answers[method][layer]`, a tensor `(B, H, W)` or `(B, T, H, W)`.

    All methods that need activations and gradients share one forward pass, and one backward pass a target; AblationCAM
    and Recipro-CAM share another forward pass. What a method runs beyond that, Score-CAM's masked images say, it runs.
    Each map is that of the method's class at that layer alone.

    methods     names as in the command line or of the classes, or classes; those that take every layer, FullGrad say,
                have one answer, under "all layers"
    layers      as `target_layers` of `GradCAM`; each has its own maps, under its dotted name
    targets     as in `GradCAM`'s call
    options     arguments of the methods' classes: `{"scorecam": {"batch_size": 16}}`
    optimize    fast mode, as in `GradCAM`: on a copy of the model that later calls take again, with an `agreement` of
                each method in what is returned
    the others  as in `GradCAM` and its `attribute`
    Raises ValueError for an unknown method, and what the methods raise.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> answers = explain(model, torch.rand(2, 1, 8, 8), ["gradcam", "eigencam"], "0", targets=[[0, 1, 2]] * 2)
    >>> answers["gradcam"]["0"].shape
    torch.Size([2, 3, 8, 8])
    """
    x = inputs_of(input_tensor, forward_kwargs)
    chosen = find_layers(model, layers) if layers is not None else [default_layer(model, x)]
    cams = {}
    if not methods:
        raise ValueError("methods is empty: give at least one")
    for method in [methods] if isinstance(methods, str) else methods:
        name, cls = _named(method)
        if name in cams:
            raise ValueError(f"methods has {name!r} twice")
        everywhere = issubclass(cls, FullGrad)
        cams[name] = cls(model, [] if everywhere else chosen, reshape_transform, **(options or {}).get(name, {}))
    if others := [name for name in options or {} if name not in cams]:
        raise ValueError(f"options are given for {others[0]!r}, which is not among the methods")
    pixels = map_size(unwrap(model), size, x)
    keywords: dict[str, Any] = {"eigen_smooth": eigen_smooth, "normalize": normalize, "size": pixels}
    names = [layer_name(model, layer) for layer in chosen]
    agreement: Mapping[str, Agreement] = {}
    if (settings := settings_of(optimize)) is None:
        found = _found(cams, x, targets, **keywords)
    else:
        calls, answer = _calls_of(model, settings), partial(_found, **keywords)
        key = repr((list(cams), names, options, eigen_smooth))
        _, found, agreement = calls.answered(cams, tuple(chosen), x, targets, answer, normalize, key)
    answers = Answers()
    for name, cam in cams.items():
        answers[name] = dict(zip(["all layers"] if cam.target_layers == [] else names, found[name], strict=True))
    answers.agreement, answers._normalized = agreement, normalize
    if x.image.ndim == 4:
        answers._images = x.image[:_SHOWN].detach().clone()  # a copy, so that answers keep no batch alive
    return answers


def _calls_of(model: nn.Module, settings: Optimize) -> FastCalls:
    """What earlier calls for this model left, if they had these settings."""
    net = unwrap(model)
    known = _fast_calls.get(net)
    if known is None or known.settings != settings:
        settings.check(device_of(net))
        known = _fast_calls[net] = FastCalls(settings)
    return known


def _found(cams: Mapping[str, BaseCAM], x: Inputs, targets: Targets, **keywords: Any) -> dict[str, list[Tensor]]:
    """The maps of each method, one a layer."""
    found: dict[str, list[Tensor]] = {}
    for sharing in _sharing(cams):
        found.update(_in_parts(sharing, x, targets, **keywords))
    return found


def _named(method: str | type[BaseCAM]) -> tuple[str, type[BaseCAM]]:
    if isinstance(method, type) and issubclass(method, BaseCAM):
        return next((name for name, cls in METHODS.items() if cls is method), method.__name__), method
    known = METHODS | ATTENTION
    by_class = {cls.__name__: name for name, cls in known.items()}
    name = by_class.get(method, method) if isinstance(method, str) else None
    if name not in known:
        raise ValueError(f"methods must be classes or names among {', '.join(known)}, got {method!r}")
    return name, known[name]


def _sharing(cams: Mapping[str, BaseCAM]) -> Iterator[dict[str, BaseCAM]]:
    """The methods in groups that need the same kind of run."""
    for kind in dict.fromkeys(map(_kind, cams.values())):
        yield {name: cam for name, cam in cams.items() if _kind(cam) is kind}


def _kind(cam: BaseCAM) -> Any:
    if _runs_alone(cam) or cam.target_layers == []:
        return cam
    asked = cam.base_cam if isinstance(cam, CombinedCAM) else cam
    return type(asked).recorded


def _runs_alone(cam: BaseCAM) -> bool:
    """Whether a method has runs of its own kind, and no low maps."""
    return type(cam)._maps_of_part is not BaseCAM._maps_of_part


def _in_parts(cams: Mapping[str, BaseCAM], x: Inputs, targets: Targets, **keywords: Any) -> dict[str, list[Tensor]]:
    """The maps of methods that share a run, one a layer, for as many images at once as all of them take."""
    B, step = len(x), min(cam.at_once(x) for cam in cams.values())
    parts = [
        _of_run(cams, x[start : start + step], start, part_of(targets, start, start + step, B), **keywords)
        for start in range(0, B, step)
    ]
    return {name: [torch.cat(maps) for maps in zip(*(part[name] for part in parts), strict=True)] for name in cams}


def _of_run(
    cams: Mapping[str, BaseCAM],
    x: Inputs,
    first: int,
    targets: Targets,
    eigen_smooth: bool,
    normalize: bool,
    size: Sequence[int] | None,
) -> dict[str, list[Tensor]]:
    """The maps of methods that share a run, which the most demanding one records."""
    (name, cam), *others = cams.items()
    if not others and _runs_alone(cam):
        run_alone: dict[str, Any] = {
            "eigen_smooth": eigen_smooth,
            "normalize": normalize,
            "size": size,
            "complete": True,
        }
        layers = cam.target_layers or []
        return {name: [cam._maps_of_part(x, first, [layer], targets, **run_alone)[0] for layer in layers]}
    leader = max(cams.values(), key=lambda cam: (cam.uses_gradients, getattr(cam, "head", False)))
    assert leader.target_layers is not None
    T, found = per_image(targets), {}
    with leader.recorded(x, leader.target_layers, complete=True) as run:
        run.first = first
        run.kept = []  # shared from now on
        for name, cam in cams.items():
            maps = [cam.finished([low], normalize, size)[0] for low in cam.low_maps(run, targets, eigen_smooth)]
            found[name] = maps if T is None else [per_target(m, len(x), T) for m in maps]
    return found
