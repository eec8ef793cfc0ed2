"""Objectives of a batch of images, checked against a model and read off one run of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcam.channels import channels_last
from fastcam.inputs import Inputs
from fastcam.layers import find_layers, layer_name
from fastcam.targets import find_logits, logits_of, scores
from fastcam.visualize.ascent import Frame
from fastcam.visualize.forward import Seen, differentiable
from fastcam.visualize.objectives import Objective, Term, listed, objective_of


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
    return objective_of(terms)


def objectives_of(
    net: nn.Module, frame: Frame, given: Any, channels: Any
) -> tuple[dict[nn.Module, Site], int | None, list[Objective]]:
    """The layers that objectives speak of, the number of classes if they speak of the output, and the objectives."""

    def width(layer: str | nn.Module) -> int:
        if isinstance(layer, str) and layer == "logit":
            return look(net, frame, [], complete=True)[1] or 0
        module = resolved(net, layer)
        return look(net, frame, [module], complete=False)[0][module].shape[0]

    goals = listed(given, channels, width)
    if not goals:
        raise ValueError("there is no objective: the list of them, or of channels, is empty")
    terms = [term for o in goals for _, term in o.terms]
    layers = list(dict.fromkeys(resolved(net, t.layer) for t in terms if t.layer is not None))
    sites, classes = look(net, frame, layers, complete=any(t.layer is None for t in terms))
    return sites, classes, [bound(o, net, sites, classes) for o in goals]


def look(
    net: nn.Module, frame: Frame, layers: Sequence[nn.Module], complete: bool
) -> tuple[dict[nn.Module, Site], int | None]:
    """What one grey picture finds at the layers, and how many classes there are; None for an incomplete run."""
    grey = frame.inputs(torch.full((1, *frame.shape), 0.5, dtype=frame.low.dtype, device=frame.low.device))
    with differentiable(net, layers, complete=complete) as run, torch.no_grad():
        seen = run(grey)
    sites = {}
    for layer in layers:
        shape, name = seen.activations[layer].shape, layer_name(net, layer)
        if len(shape) < 2 or shape[0] != 1:
            raise ValueError(f"{name} gives {tuple(shape)} for one image, not (1, C) or (1, C, h, w)")
        last = len(shape) == 3 or len(shape) == 4 and channels_last(net, layer, Inputs(grey), shape)
        sites[layer] = Site(layer, name, tuple((*shape[-1:], *shape[1:-1]) if last else shape[1:]), last)
    logits = find_logits(seen.output)
    return sites, None if not complete else logits.shape[-1] if logits is not None else 0


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
