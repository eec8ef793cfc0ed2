"""Several methods on the same images, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.images import check_contrast
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import image_channel_dim, layer_name
from fastcam.methods import ATTENTION, METHODS
from fastcam.methods.base import BaseCAM
from fastcam.methods.many import explain
from fastcam.record import call, evaluation, owned, unwrap
from fastcam.results import Result
from fastcam.targets import Targets, are_callables, class_indices, find_logits, logits_of, per_image, scores
from fastcam.visualize import SALIENCY, GuidedGradCAM, InputGradient
from fastcam.visualize.attribution import REDUCTIONS, Attribution, ClassNames, captions, pictures_of

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout
    from fastcam.figures.panels import Scale

Method = str | type[BaseCAM] | type[InputGradient] | Callable[[Any, Any], Any]


class Comparison(Result):
    """The maps of M methods for the same images and targets: `data` `(B, M, H, W)`, `(B, T, M, H, W)` for T targets.

    maps      by name, each `(B, H, W)` or `(B, T, H, W)`
    target    the classes that were explained, `(B,)` or `(B, T)`; None for callables
    score     their scores, likewise
    layer     that of the methods that look at one, or several; None without such methods
    image     the input `(B, k, H, W)`, detached
    outputs   the logits, detached; None if the model gives none
    """

    def __init__(
        self, maps: Mapping[str, Tensor], *, image: Tensor, outputs: Tensor | None, unit: Sequence[str], **about: Any
    ) -> None:
        super().__init__(torch.stack(list(maps.values()), -3), **about)
        self.maps, self.image, self.outputs = dict(maps), image, outputs
        self._unit = set(unit)  # whose maps are scaled to [0, 1]

    def plot(  # type: ignore[override]
        self,
        ax: Any = None,
        *,
        overlay: bool = True,
        clip: float | None = 99.0,
        colormap: str | None = None,
        picture: Any = None,
        mean: Any = None,
        std: Any = None,
        class_names: ClassNames = None,
    ) -> Any:
        """A row an image and target: the image, and its map by each method; a bar a column, one scale in it.

        Class activation maps run from 0 to 1 in jet, half transparent; others to the column's limit, and the smaller a
        value the more of the image shows.

        ax         Axes `(rows, 1 + M)`; by default those of a new figure
        overlay    lay the maps over the image, whose colours are dimmed to grey; False shows the maps alone
        clip       the limit of a column is this percentile of its absolute values; None for the largest
        colormap   for every column
        picture, mean, std, class_names   as for `Attribution.plot`
        """
        options = {"overlay": overlay, "clip": clip, "colormap": colormap, "picture": picture, "mean": mean}
        return super().plot(ax, **options, std=std, class_names=class_names)

    def _tensors(self) -> dict[str, Tensor | None]:
        return super()._tensors() | {"image": self.image, "outputs": self.outputs}

    def _layout(self, **_: Any) -> Layout:
        from fastcam.figures.canvas import Layout

        rows, columns = len(self.image) * self._per_image, 1 + len(self.maps)
        aspect = self.image.shape[-2] / self.image.shape[-1]
        return Layout(rows, columns, 1.7 * columns + 0.3, 1.5 * min(aspect, 3) * rows + 0.7)

    def _draw(
        self,
        axes: np.ndarray,
        overlay: bool = True,
        clip: float | None = 99.0,
        colormap: str | None = None,
        picture: Any = None,
        mean: Any = None,
        std: Any = None,
        class_names: ClassNames = None,
    ) -> None:
        from fastcam.figures.attributions import comparison_grid, label_rows

        T, pictures = self._per_image, pictures_of(self.image, picture, mean, std)
        comparison_grid(axes, [p for p in pictures for _ in range(T)], self._columns(clip, colormap), overlay)
        places = [(n, t) for n in range(len(pictures)) for t in range(T)]
        label_rows(axes, [captions(self.outputs, self.target, self.score, n, t, class_names) for n, t in places])

    def _repr_html_(self) -> str:
        """Its maps over the images, with a slider."""
        from fastcam.report.notebook import slider_of

        T = self._per_image
        pictures = [p for p in pictures_of(self.image) for _ in range(T)]
        said = [captions(self.outputs, self.target, self.score, n, t) for n in range(len(self.image)) for t in range(T)]
        return slider_of(pictures, self._columns(), said)

    def _columns(
        self, clip: float | None = 99.0, colormap: str | None = None
    ) -> dict[str, tuple[np.ndarray, Scale, float | None]]:
        """Each method's maps `(rows, H, W)`, their scale, and how they lie over an image."""
        from fastcam.figures.panels import Scale, scale_of

        columns: dict[str, tuple[np.ndarray, Scale, float | None]] = {}
        for name, maps in self.maps.items():
            values = maps.detach().float().cpu().numpy().reshape(-1, *maps.shape[-2:])
            if name in self._unit:
                columns[name] = values, Scale(0.0, 1.0, colormap or "jet"), 0.5
            else:
                columns[name] = values, scale_of(values, clip, colormap), None
        return columns

    @property
    def _per_image(self) -> int:
        """T, or 1."""
        return self.data.shape[1] if self.data.ndim > 4 else 1


def compare(
    model: nn.Module,
    input_tensor: Any,
    methods: Sequence[Method] | Mapping[str, Method] = ("gradcam", "saliency", "smoothgrad", "integratedgradients"),
    targets: Targets = None,
    layers: Any = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    reduce: str = "max",
    reshape_transform: Callable[[Any], Tensor] | str | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Comparison:
    """The maps of several methods and, on demand, their figure: a row an image, a column a method.

    Class activation maps share their forward passes, see `explain`; every method explains the same classes.

    methods   names as in the command line or of the classes, classes, or callables `(input_tensor, targets)` that give
              maps `(B, H, W)` or an `Attribution`, an instance of a method say; a mapping gives them names of your own
    targets   as for `GradCAM`; None for the class predicted for each image
    layers    as `target_layers` of `GradCAM`, for the methods that look at one; of several each has a column
    options   arguments of the methods' classes, by the name in `methods`: `{"smoothgrad": {"samples": 50}}`
    reduce    how the channels of attributions become a map, see `Attribution.map`
    the others   as for `explain`
    Raises ValueError for an unknown method, a name that comes twice, maps that are not of the input's size, and what
    the methods raise; warns once of images of nearly no contrast (`check_contrast`).

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    >>> result = compare(model, torch.rand(2, 1, 8, 8), ["gradcam", "saliency"], targets=1, layers="0")
    >>> result.data.shape, list(result.maps)
    (torch.Size([2, 2, 8, 8]), ['gradcam', 'saliency'])
    """
    inputs = inputs_of(input_tensor, forward_kwargs)
    image = inputs.image
    if image.ndim != 4:
        raise ValueError(f"input_tensor must be images (B, k, H, W), got {tuple(image.shape)}")
    check_contrast(image, name="input_tensor", stacklevel=3)
    chosen = _named_methods(methods)
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    if others := [name for name in options or {} if name not in chosen]:
        raise ValueError(f"options are given for {others[0]!r}, which is not among the methods")
    logits, score, classes = _asked(model, inputs, targets)
    targets = targets if classes is None else classes
    cams = {n: m for n, m in chosen.items() if isinstance(m, type) and issubclass(m, BaseCAM)}
    answers = _cam_maps(model, inputs, cams, layers, targets, options or {}, reshape_transform)
    maps: dict[str, Tensor] = {}
    unit: list[str] = []
    looked: list[str] = []  # at these layers
    expected = (len(image), *([] if per_image(targets) is None else [per_image(targets)]), *image.shape[2:])
    for name, method in chosen.items():
        if name in answers:
            found = {name if len(answers[name]) == 1 else f"{name} {where}": m for where, m in answers[name].items()}
            unit += found
            looked += [where for where in answers[name] if where != "all layers"]
        else:
            made = _made(method, model, layers, reshape_transform, (options or {}).get(name, {}))
            m, where = _maps_by(made, input_tensor, inputs, targets, reduce)
            found = {name: m}
            looked += where
        for title, m in found.items():
            if m.shape != expected:
                raise ValueError(f"the maps of {title!r} must be {tuple(expected)}, got {tuple(m.shape)}")
            maps[title] = m.to(logits.device if logits is not None else m.device, torch.float32)
    names = list(dict.fromkeys(looked))
    given = {name: dict(one) for name, one in (options or {}).items()}
    settings = {"methods": list(maps), "layers": names, "options": given, "reduce": reduce}
    about: dict[str, Any] = {"target": classes, "score": score, "settings": settings}
    about["layer"] = names[0] if len(names) == 1 else names or None
    return Comparison(maps, image=image.detach(), outputs=logits, unit=unit, **about)


def _named_methods(methods: Any) -> dict[str, Any]:
    """Classes and callables by name; the names of classes are those of the command line."""
    classes: dict[str, Any] = {**METHODS, **ATTENTION, **SALIENCY}
    by_class = {cls.__name__: name for name, cls in classes.items()}
    listed = [methods] if isinstance(methods, str) or callable(methods) else methods
    pairs = methods.items() if isinstance(methods, Mapping) else [(None, m) for m in listed]
    named: dict[str, Any] = {}
    for name, method in pairs:
        if isinstance(method, str):
            known = by_class.get(method, method)
            if known not in classes:
                near = difflib.get_close_matches(method.lower(), classes, n=5, cutoff=0.3)
                hint = f"; the nearest names: {', '.join(near)}" if near else ""
                raise ValueError(f"methods must be names, classes or callables, no method is {method!r}{hint}")
            name, method = name or known, classes[known]
        elif not callable(method):
            raise ValueError(f"methods must be names, classes or callables, got {method!r}")
        kind = method if hasattr(method, "__name__") else type(method)
        name = name or by_class.get(kind.__name__, kind.__name__)
        if name in named:
            raise ValueError(f"methods has {name!r} twice: a mapping gives them names of their own")
        named[name] = method
    if not named:
        raise ValueError("methods is empty: give at least one")
    return named


def _asked(model: nn.Module, inputs: Inputs, targets: Targets) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The logits, the scores of the targets, and the classes they are; from a forward pass of its own."""
    net = unwrap(model)
    with evaluation(net):
        output = call(net, owned(net, inputs).clone())
        score = scores(output, targets, len(inputs))
    classes = None if are_callables(targets) else class_indices(targets, logits_of(output))
    return find_logits(output), score, classes


def _cam_maps(
    model: nn.Module,
    inputs: Inputs,
    cams: Mapping[str, type[BaseCAM]],
    layers: Any,
    targets: Targets,
    options: Mapping[str, Mapping[str, Any]],
    reshape_transform: Any,
) -> dict[str, dict[str, Tensor]]:
    """`explain` by the names that the methods have here."""
    if len({*cams.values()}) < len(cams):  # a class twice, with other options
        apart = [_cam_maps(model, inputs, {n: c}, layers, targets, options, reshape_transform) for n, c in cams.items()]
        return {name: maps for part in apart for name, maps in part.items()}
    names = {cls: next((k for k, known in METHODS.items() if known is cls), cls.__name__) for cls in cams.values()}
    given = {names[cls]: options[name] for name, cls in cams.items() if name in options}
    if not cams:
        return {}
    answers = explain(
        model, inputs, list(cams.values()), layers, targets, options=given, reshape_transform=reshape_transform
    )
    return {name: answers[names[cls]] for name, cls in cams.items()}


def _made(method: Any, model: nn.Module, layers: Any, reshape_transform: Any, options: Mapping[str, Any]) -> Any:
    """What is called with input and targets."""
    if not (isinstance(method, type) and issubclass(method, InputGradient)):
        if options:
            raise ValueError(f"options are for classes, {method!r} is made already")
        return method
    bound = (layers, reshape_transform) if issubclass(method, GuidedGradCAM) else ()
    return method(model, *bound, **options)


def _maps_by(method: Any, input_tensor: Any, inputs: Inputs, targets: Targets, reduce: str) -> tuple[Tensor, list[str]]:
    """The maps, and the layers that were looked at as far as that is known."""
    if isinstance(method, BaseCAM):
        return method.attribute(inputs, targets), [layer_name(method.model, m) for m in method.target_layers or []]
    if isinstance(method, InputGradient):
        channel = image_channel_dim(unwrap(method.model), inputs.image) - inputs.image.ndim
        data = method.attribute(inputs, targets)  # which warns of nothing that was warned of
        return REDUCTIONS[reduce](data, channel), _listed(method._layer(inputs))
    given = method(input_tensor, targets)
    if isinstance(given, Attribution):
        return given.map(reduce), _listed(given.layer)
    return torch.as_tensor(given).detach(), []


def _listed(layer: str | list[str] | None) -> list[str]:
    return [] if layer is None else [layer] if isinstance(layer, str) else layer
