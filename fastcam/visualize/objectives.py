"""What an image is to excite: channels, neurons, classes, directions, and sums of them, for many images at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcam.layers import find_layers, layer_name
from fastcam.targets import logits_of, scores
from fastcam.visualize.forward import Seen

_GRAMMAR = re.compile(r"(?P<layer>.+):(?P<channels>\*|\d+(-\d+)?)(@(?P<at>center|\d+(,\d+)*))?")
_EXPECTED = (
    'expected "layer:channel", "layer:channel@y,x", "layer:channel@center", "layer:0-15", "layer:*" or "logit:5"'
)


@dataclass(frozen=True, eq=False)
class Term:
    """A number to raise: of a layer's output, or of the model's.

    kind    "channel", "neuron", "direction", "diversity", "custom" of a layer; "logit", "output" of the model
    layer   a module or its name; None for the model's output
    given   the channel or class, the vector, or the function
    at      a neuron's place in the layer's map; None for the centre
    """

    kind: str
    layer: str | nn.Module | None = None
    given: Any = None
    at: tuple[int, ...] | None = None

    def text(self, name: str) -> str:
        """As it is written, `name` being that of the layer."""
        if self.kind in ("logit", "channel"):
            return f"{name}:{self.given}"
        if self.kind == "neuron":
            return f"{name}:{self.given}@{'center' if self.at is None else ','.join(map(str, self.at))}"
        called = getattr(self.given, "__name__", type(self.given).__name__)
        if self.kind == "output":
            return called
        return f"{called if self.kind == 'custom' else self.kind}({name})"


class Objective:
    """What an image is to maximise: a weighted sum of numbers that a run of the model gives.

    "layer:3" is the mean of channel 3 over the layer's map, "layer:3@4,5" its value at row 4 and column 5,
    "layer:3@center" in the middle, "logit:3" the score of class 3. Before what follows the layer, so for a convolution
    before its ReLU. Objectives, and texts beside one, are added, subtracted and multiplied by numbers.

    >>> str(Objective("layer4:3") - 0.5 * Objective("logit:1"))
    'layer4:3 - 0.5 logit:1'

    Raises ValueError for a text that says something else; what the model has not is found by `maximize`.
    """

    def __init__(self, text: str) -> None:
        layer, channels, at = _parsed(text)
        if not isinstance(channels, int):
            raise ValueError(f"objective {text!r} means several channels: give it to maximize as a text")
        self.terms: tuple[tuple[float, Term], ...] = ((1.0, _term(layer, channels, at)),)

    @classmethod
    def channel(cls, layer: str | nn.Module, channel: int) -> Objective:
        """The mean of a channel over the layer's map; a value of `(B, C)`."""
        return cls._of(Term("channel", layer, channel))

    @classmethod
    def neuron(cls, layer: str | nn.Module, channel: int, at: tuple[int, ...] | None = None) -> Objective:
        """One place `(y, x)` of a channel's map, by default the centre."""
        return cls._of(Term("neuron", layer, channel, at))

    @classmethod
    def logit(cls, index: int) -> Objective:
        """The score of a class before the softmax."""
        return cls._of(Term("logit", None, index))

    @classmethod
    def direction(cls, layer: str | nn.Module, vector: Any) -> Objective:
        """mean over the map of <a, v> / |v|, v being a vector `(C,)` of the layer's channels."""
        return cls._of(Term("direction", layer, torch.as_tensor(vector, dtype=torch.float64)))

    @classmethod
    def diversity(cls, layer: str | nn.Module) -> Objective:
        """How much an image's texture differs from those of the other variants of it (Olah et al. 2017).

        -(1 / (V - 1)) sum_w <G_v, G_w> / (|G_v| |G_w|), in [-1, 0], G = a a^T the Gram matrix of the layer's output
        `(C, positions)` after a ReLU. It needs `maximize(..., variants=2)` or more.
        """
        return cls._of(Term("diversity", layer))

    @classmethod
    def of(cls, layer: str | nn.Module | None, function: Callable[[Tensor], Tensor]) -> Objective:
        """`function(a)` of a layer's output `(B, C, ...)`, a number for each image `(B,)`.

        layer   None: of the model's output for one image, as a target of `GradCAM`
        """
        return cls._of(Term("output" if layer is None else "custom", layer, function))

    @classmethod
    def _of(cls, *terms: Term, weight: float = 1.0) -> Objective:
        return _objective((weight, t) for t in terms)

    def __add__(self, other: Objective | str) -> Objective:
        return _objective((*self.terms, *_as_objective(other).terms))

    def __sub__(self, other: Objective | str) -> Objective:
        return self + -1 * _as_objective(other)

    def __radd__(self, other: Objective | str | int) -> Objective:
        return self if isinstance(other, int) and other == 0 else _as_objective(other) + self  # sum() begins with 0

    def __rsub__(self, other: Objective | str) -> Objective:
        return _as_objective(other) - self

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, int | float):
            return NotImplemented
        return _objective((factor * weight, term) for weight, term in self.terms)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        return self * (1 / divisor)

    def __neg__(self) -> Objective:
        return self * -1

    def __str__(self) -> str:
        return self.text(lambda layer: layer if isinstance(layer, str) else type(layer).__name__)

    def __repr__(self) -> str:
        return f"Objective({str(self)!r})"

    def at(self, place: tuple[int, ...]) -> Objective:
        """The same with every neuron at another place."""
        return _objective((weight, replace(term, at=place)) for weight, term in self.terms)

    def text(self, named: Callable[[Any], str]) -> str:
        """As it is written, with a name for each layer."""
        words: list[str] = []
        for weight, term in self.terms:
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            words += ["-" if weight < 0 else "+"] if words or weight < 0 else []
            words.append(size + term.text("logit" if term.layer is None else named(term.layer)))
        return " ".join(words)


def _objective(terms: Any) -> Objective:
    made = object.__new__(Objective)
    made.terms = tuple(terms)
    return made


def _as_objective(given: Any) -> Objective:
    if isinstance(given, str):
        return Objective(given)
    if not isinstance(given, Objective):
        raise TypeError(f"an objective is added to an objective or a text, got {type(given).__name__}")
    return given


def _term(layer: str, channel: int, at: str | None) -> Term:
    if layer == "logit":
        return Term("logit", None, channel)
    if at is None:
        return Term("channel", layer, channel)
    return Term("neuron", layer, channel, None if at == "center" else tuple(map(int, at.split(","))))


def _parsed(text: str) -> tuple[str, int | range | None, str | None]:
    """The layer, its channel, several or all (None), and the place."""
    found = _GRAMMAR.fullmatch(text.strip())
    if found is None or found["layer"] == "logit" and found["at"]:
        raise ValueError(f"objective {text!r} is not understood: {_EXPECTED}")
    numbers = [int(n) for n in re.findall(r"\d+", found["channels"])]
    if not numbers:
        return found["layer"], None, found["at"]
    return found["layer"], numbers[0] if len(numbers) == 1 else range(numbers[0], numbers[1] + 1), found["at"]


def listed(given: Any, channels: Any, width: Callable[[str], int]) -> list[Objective]:
    """The objectives meant, one an image.

    channels   of the layer that is given: numbers, or one
    width      how many channels a layer has, or classes there are, by name
    """
    if channels is not None:
        if not isinstance(given, str | nn.Module) or isinstance(given, str) and ":" in given:
            raise ValueError(f"channels= goes with a layer, a module or its name, got {given!r}")
        numbers = [channels] if isinstance(channels, int) else list(channels)
        return [Objective.logit(int(k)) if given == "logit" else Objective.channel(given, int(k)) for k in numbers]
    if isinstance(given, list | tuple):
        return [o for item in given for o in listed(item, None, width)]
    if isinstance(given, Objective):
        return [given]
    if isinstance(given, nn.Module):
        raise ValueError(f"which channels of the {type(given).__name__}? pass channels=[0, 1], say")
    if isinstance(given, str):
        if ":" not in given:
            raise ValueError(f'which channels of {given!r}? "{given}:3", or channels=[3, 5]; {_EXPECTED}')
        layer, meant, at = _parsed(given)
        several = range(width(layer)) if meant is None else [meant] if isinstance(meant, int) else meant
        return [Objective._of(_term(layer, k, at)) for k in several]
    if callable(given):
        return [Objective.of(None, given)]
    raise TypeError(
        f"objective must be a text, an Objective, a callable, or a list of them, got {type(given).__name__}"
    )


class Site(NamedTuple):
    """A layer as an objective meets it: its module and name, the shape `(C, *S)` of an image, channels brought first.

    last   whether the model has the channels last
    """

    module: nn.Module
    name: str
    shape: tuple[int, ...]
    last: bool

    def read(self, activation: Tensor) -> Tensor:
        """`(n, C, *S)`."""
        return activation.movedim(-1, 1) if self.last else activation


def resolved(net: nn.Module, layer: str | nn.Module | None) -> nn.Module:
    """The one module meant."""
    found = find_layers(net, layer)
    if len(found) != 1:
        names = ", ".join(layer_name(net, m) for m in found[:5])
        raise ValueError(f"an objective is of one layer, {layer!r} means {len(found)}: {names} ...")
    return found[0]


def bound(objective: Objective, net: nn.Module, sites: dict[nn.Module, Site], classes: int | None) -> Objective:
    """The objective with modules for layers, checked against what the model has."""
    terms = []
    for weight, term in objective.terms:
        if term.layer is None:
            _check_class(term, classes)
        else:
            term = replace(term, layer=resolved(net, term.layer))
            _check(term, sites[term.layer])  # type: ignore[index]
        if term.kind == "neuron" and term.at is None:
            term = replace(term, at=tuple(n // 2 for n in sites[term.layer].shape[1:]))  # type: ignore[index]
        terms.append((weight, term))
    return _objective(terms)


def _check_class(term: Term, classes: int | None) -> None:
    if term.kind == "logit" and not 0 <= term.given < (classes or 0):
        raise ValueError(f"there is no class {term.given}: the model has {classes} classes, 0 to {(classes or 0) - 1}")


def _check(term: Term, site: Site) -> None:
    C, *places = site.shape
    if term.kind in ("channel", "neuron") and not 0 <= term.given < C:
        raise ValueError(f"there is no channel {term.given} in {site.name}: it has {C} channels, 0 to {C - 1}")
    if term.kind == "direction" and tuple(term.given.shape) != (C,):
        raise ValueError(f"a direction in {site.name} has {C} numbers, got shape {tuple(term.given.shape)}")
    if term.kind == "neuron" and not places:
        raise ValueError(f'{site.name} gives no map but {C} numbers: write "{site.name}:{term.given}"')
    if term.kind == "neuron" and term.at is not None and not _is_place(term.at, places):
        size = " x ".join(map(str, places))
        raise ValueError(f"there is no neuron at {term.at} in {site.name}: its map is {size}")


def _is_place(at: tuple[int, ...], places: Sequence[int]) -> bool:
    return len(at) == len(places) and all(0 <= a < n for a, n in zip(at, places, strict=True))


Part = Callable[[Seen], Tensor]


def evaluator(
    objectives: Sequence[Objective], sites: dict[nn.Module, Site], variants: int, device: torch.device
) -> Callable[[Seen], Tensor]:
    """The value `(n,)` of each image's own objective, as a function of a run of n images."""
    alike: dict[Any, list[tuple[int, float, Term]]] = {}
    for row, objective in enumerate(objectives):
        for weight, term in objective.terms:
            own = row if term.kind == "output" else id(term.given) if term.kind == "custom" else None
            alike.setdefault((term.kind, term.layer, own), []).append((row, weight, term))
    parts = []
    for (_, layer, _), found in alike.items():
        rows = torch.tensor([row for row, _, _ in found], device=device)
        weights = torch.tensor([weight for _, weight, _ in found], device=device)
        whole = len(found) == len(objectives) and [row for row, _, _ in found] == list(range(len(objectives)))
        part = _part([t for _, _, t in found], rows, whole, sites.get(layer), variants)
        parts.append((part, rows, weights))

    def values(seen: Seen) -> Tensor:
        total: Any = None
        for part, rows, weights in parts:
            found = part(seen)
            total = found.new_zeros(len(objectives)) if total is None else total
            total = total.index_add(0, rows, found.to(total) * weights.to(total))
        return total

    return values


def _part(terms: list[Term], rows: Tensor, whole: bool, site: Site | None, variants: int) -> Part:
    """The values `(m,)` of m terms alike, each of the image in its row."""
    kind, given = terms[0].kind, [t.given for t in terms]
    if site is None:
        if kind == "logit":
            indices = torch.tensor(given, device=rows.device)
            return lambda seen: logits_of(seen.output)[rows, indices]
        row = int(rows[0])
        return lambda seen: _output_value(seen.output, given[0], row)

    def read(seen: Seen) -> Tensor:
        return site.read(seen.activations[site.module])

    def images(seen: Seen) -> Tensor:
        return read(seen) if whole else read(seen)[rows]

    if kind in ("channel", "neuron"):
        channels = torch.tensor(given, device=rows.device)
        if kind == "channel":
            return lambda seen: _mean(read(seen)[rows, channels], 1)
        places = torch.tensor([t.at for t in terms], device=rows.device).unbind(1)
        return lambda seen: read(seen)[(rows, channels, *places)]
    if kind == "direction":
        unit = torch.stack([v / v.norm().clamp(min=1e-30) for v in given]).to(rows.device)
        return lambda seen: (_mean(images(seen), 2) * unit.to(read(seen))).sum(1)
    if kind == "diversity":
        return lambda seen: _diversity(images(seen), variants)
    return lambda seen: given[0](images(seen)).reshape(-1)


def _mean(a: Tensor, first: int) -> Tensor:
    """The mean over the dimensions from `first` on, of which there may be none."""
    return a.flatten(first).mean(first) if a.ndim > first else a


def _output_value(output: Any, target: Any, row: int) -> Tensor:
    own = output[row : row + 1] if isinstance(output, Tensor | list) else logits_of(output)[row : row + 1]
    return scores(own, [target], 1)


def _diversity(a: Tensor, variants: int) -> Tensor:
    a = a.clamp(min=0).flatten(2).unflatten(0, (-1, variants))  # (groups, V, C, positions)
    gram = torch.nn.functional.normalize((a @ a.mT).flatten(2), dim=2)
    alike = (gram @ gram.mT).sum(2) - gram.square().sum(2)
    return -alike.flatten() / (variants - 1)
