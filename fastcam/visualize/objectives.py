"""What an image is to excite: channels, neurons, classes, directions, and sums of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.visualize.selection import indices_of

_GRAMMAR = re.compile(r"(?P<layer>.+):(?P<channels>\*|\d+(-\d+)?)(@(?P<at>center|\d+(,\d+)*))?")
_EXPECTED = (
    'expected "layer:channel", "layer:channel@y,x", "layer:channel@center", "layer:0-15", "layer:*" or "logit:5"'
)
_SUM = re.compile(r":\s*\d.*[-+].*:|\d\s*\*\s")  # two of them with a sign between, or a number before one


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
        return objective_of((weight, t) for t in terms)

    def __add__(self, other: Objective | str) -> Objective:
        return objective_of((*self.terms, *_asobjective_of(other).terms))

    def __sub__(self, other: Objective | str) -> Objective:
        return self + -1 * _asobjective_of(other)

    def __radd__(self, other: Objective | str | int) -> Objective:
        return self if isinstance(other, int) and other == 0 else _asobjective_of(other) + self  # sum() begins with 0

    def __rsub__(self, other: Objective | str) -> Objective:
        return _asobjective_of(other) - self

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, int | float):
            return NotImplemented
        return objective_of((factor * weight, term) for weight, term in self.terms)

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
        return objective_of((weight, replace(term, at=place)) for weight, term in self.terms)

    def text(self, named: Callable[[Any], str]) -> str:
        """As it is written, with a name for each layer."""
        words: list[str] = []
        for weight, term in self.terms:
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            words += ["-" if weight < 0 else "+"] if words or weight < 0 else []
            words.append(size + term.text("logit" if term.layer is None else named(term.layer)))
        return " ".join(words)


def objective_of(terms: Any) -> Objective:
    made = object.__new__(Objective)
    made.terms = tuple(terms)
    return made


def _asobjective_of(given: Any) -> Objective:
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
    if _SUM.search(text):
        raise ValueError(
            f'objective {text!r} is a sum, which no text is: write Objective("layer:1") - Objective("layer:2"), say'
        )
    found = _GRAMMAR.fullmatch(text.strip())
    if found is None or found["layer"] == "logit" and found["at"]:
        raise ValueError(f"objective {text!r} is not understood: {_EXPECTED}")
    numbers = [int(n) for n in re.findall(r"\d+", found["channels"])]
    if not numbers:
        return found["layer"], None, found["at"]
    return found["layer"], numbers[0] if len(numbers) == 1 else range(numbers[0], numbers[1] + 1), found["at"]


def listed(given: Any, channels: Any, width: Callable[[Any], int]) -> list[Objective]:
    """The objectives meant, one an image.

    channels   of the layer that is given: numbers, one, or a slice
    width      how many channels a layer has, a module or a name, or classes there are, for "logit"
    """
    if channels is not None:
        if not isinstance(given, str | nn.Module) or isinstance(given, str) and ":" in given:
            raise ValueError(f"channels= goes with a layer, a module or its name, got {given!r}")
        if isinstance(channels, Iterable) and not isinstance(channels, str | Tensor | np.ndarray):
            channels = list(channels)
        what = "classes" if given == "logit" else f"channels in {given if isinstance(given, str) else 'the layer'}"
        numbers = indices_of(channels, width(given), "channels", what)
        return [Objective.logit(k) if given == "logit" else Objective.channel(given, k) for k in numbers]
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
