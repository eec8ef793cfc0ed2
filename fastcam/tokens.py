"""How a layer's output lies in space: `(B, C, h, w)`, channels last, or tokens with class and register tokens.

Nothing is guessed from sizes. Channels are found by the width of the layer's own norm or linear map; tokens by asking,
with gradients, which of them each position of the patch embedding's output goes into, before any attention mixes them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.channels import by_neighbours, by_width, channels_last, check_map
from fastcam.inputs import Inputs
from fastcam.observe import Sight, follow, observe
from fastcam.record import unwrap

_ADVICE = (
    "pass a reshape_transform that gives (B, C, h, w), for tokens behind a class token say "
    "lambda t: t[:, 1:].unflatten(1, (h, w)).movedim(-1, 1)"
)
_MAPS, _TOKENS = 6, 3  # how many of the nearest are tried as what tokens were made of
_FOLLOWED = 8  # how many tensors of tokens are looked at behind what they were made of


@dataclass(frozen=True, eq=False)
class Layout:
    """How a layer's output lies in space; a call gives an output, or a gradient of it, as `(B, C, *S)`.

    batch   the dimension of the images
    last    whether the channels are the last dimension
    order   for tokens, which of them is at each position of the map, int64 `S`; None where the output has space itself
    count   how many tokens there are, class and register tokens included
    """

    batch: int = 0
    last: bool = False
    order: Tensor | None = None
    count: int = 0

    def __call__(self, t: Tensor) -> Tensor:
        if self.order is None:
            return t.movedim(-1, 1) if self.last else t
        t, tokens = t.movedim(self.batch, 0), self.order.flatten()  # (B, N, C), (P,)
        first = int(tokens[0])
        if torch.equal(tokens, torch.arange(first, first + len(tokens))):
            t = t[:, first : first + len(tokens)]
        else:
            t = t[:, tokens.to(t.device)]
        return t.unflatten(1, self.order.shape).movedim(-1, 1)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an output of this shape can lie like this."""
        return self.order is None or len(shape) == 3 and shape[1 - self.batch] == self.count

    def has_space(self, shape: Sequence[int]) -> bool:
        """Whether there is more than one position."""
        return self.order is not None or torch.Size(shape[1:-1] if self.last else shape[2:]).numel() > 1


Key = tuple[Any, ...]
_known: weakref.WeakKeyDictionary[nn.Module, weakref.WeakKeyDictionary[nn.Module, dict[Key, Layout]]] = (
    weakref.WeakKeyDictionary()
)


def layout_of(model: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int]) -> Layout:
    """How the output of a layer, of this shape for inputs x, lies in space.

    A convolution or batch norm says it itself. Otherwise the model is run again, with one image or two, as often as
    it takes; what was found is remembered for the model, the layer and the shape of an image. Raises ValueError, with
    what to pass, where it can't be told, or where the output has no space.
    """
    net = unwrap(model)
    layouts = _known.setdefault(net, weakref.WeakKeyDictionary()).setdefault(layer, {})
    key: Key = (len(shape), *x.shapes)
    try:
        if key not in layouts or not layouts[key].fits(shape):
            layouts[key] = _found(net, layer, x, shape)
        if not layouts[key].has_space(shape):
            raise LookupError("it is a single position, choose an earlier layer or a larger input")
    except LookupError as error:
        name = next((n for n, m in net.named_modules() if m is layer), type(layer).__name__)
        raise ValueError(
            f"the output of target layer {name!r}, {tuple(shape)}, has no spatial extent (B, C, h, w): {error.args[0]}"
        ) from None
    return layouts[key]


def channel_axis(model: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int], rank: int) -> int:
    """Where the channels are in a layer's output, once the batch is first: 1, or -1 in tokens say.

    rank   the number of dimensions of the images that the layer sees, frames of a video say
    """
    if len(shape) != rank:
        return -1
    layouts = _known.get(unwrap(model))
    if layouts is not None and (known := layouts.get(layer, {}).get((len(shape), *x.shapes))) is not None:
        return -1 if known.last else 1
    try:
        return -1 if channels_last(unwrap(model), layer, x, shape) else 1
    except LookupError:
        return 1


def _found(net: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int]) -> Layout:
    frames = x.image.shape[1]
    if len(shape) == 4 and x.image.ndim == 5 and shape[0] == len(x) * frames:
        raise LookupError(
            f"it holds the {frames} frames of each video one after the other, pass reshape_transform="
            f"lambda t: t.unflatten(0, (-1, {frames})).movedim(1, 2)"
        )
    if len(shape) == x.image.ndim:
        last = channels_last(net, layer, x, shape)
        check_map(net, layer, x, shape, last)
        return Layout(last=last)
    if len(shape) != 3 or x.image.ndim < 4:
        raise LookupError("choose an earlier layer, or pass a reshape_transform that gives it one")
    return _Tokens(net, layer, x, shape).layout()


class _Tokens:
    """The search for the layout of tokens in one model, layer and shape of input."""

    def __init__(self, net: nn.Module, layer: nn.Module, x: Inputs, shape: Sequence[int]) -> None:
        images = 2 if len(x) == 1 else 1  # another number than in the call, so that the batch shows
        self._net, self._rank = net, x.image.ndim
        self._sights = observe(net, x[:1].map(lambda t: t.repeat_interleave(images, 0)))
        draw = torch.Generator().manual_seed(0)
        self._probe = x[:1].with_image(torch.rand(x[:1].image.shape, generator=draw).to(x.image))
        self._place = next((i for i, s in enumerate(self._sights) if s.module is layer and s.returned), -1)
        if self._place < 0:
            raise LookupError(f"it was not met in a run with {images} images, {_ADVICE}")
        seen = self._sights[self._place].shape
        differing = [d for d, (a, b) in enumerate(zip(shape, seen, strict=False)) if a != b]
        if len(seen) != 3 or differing not in ([0], [1]):
            raise LookupError(f"it is {tuple(seen)} for {images} images, which are no tokens of each image, {_ADVICE}")
        self._batch, self._images = differing[0], images
        if shape[self._batch] != len(x) or seen[self._batch] != images:
            raise LookupError(f"it has {seen[self._batch]} rows for {images} images, windows of them say, {_ADVICE}")

    def layout(self) -> Layout:
        count = self._sights[self._place].shape[1 - self._batch]
        order = self._order(count, self._place)
        if order is None:
            raise LookupError(f"how its {count} tokens lie in space can't be found, {_ADVICE}")
        return Layout(self._batch, True, order, count)

    def _order(self, count: int, stop: int) -> Tensor | None:
        """Which of `count` tokens is at each position up to the place `stop`, from what such tokens were made of."""
        targets = self._distinct([i for i in range(stop + 1) if self._counts(i) == count])
        tried: set[int | None] = set()
        for first in targets[:_TOKENS]:
            for source in self._sources(first, count):
                if source not in tried and (order := self._from(source, set(targets))) is not None:
                    return order
                tried.add(source)
        return None

    def _counts(self, place: int) -> int | None:
        """How many tokens an image has in a sight; None for what holds no tokens."""
        shape = self._sights[place].shape
        return shape[1 - self._batch] if len(shape) == 3 and shape[self._batch] == self._images else None

    def _distinct(self, places: Sequence[int]) -> list[int]:
        """Without those that only see the same tensor again."""
        return list({self._sights[i].number: i for i in reversed(places)}.values())[::-1]

    def _sources(self, first: int, count: int) -> list[int | None]:
        """What tokens may have been made of, the nearest first: maps, other tokens, in the end the input."""
        returned = [i for i in range(first) if self._sights[i].returned]
        maps = self._distinct([i for i in returned if self._is_map(self._sights[i])])
        tokens = self._distinct([i for i in returned if self._counts(i) not in (None, count)])
        return [*sorted(maps[-_MAPS:] + tokens[-_TOKENS:], reverse=True), None]

    def _is_map(self, sight: Sight) -> bool:
        return len(sight.shape) == self._rank and sight.shape[0] == self._images

    def _from(self, source: int | None, targets: set[int]) -> Tensor | None:
        """Which token is at each position, from the last tensor whose tokens are each made of a place in the source.

        What follows it, attention say, mixes the tokens; that it leaves them in their order is taken for granted.
        """
        for layout in [Layout()] if source is None else self._layouts_at(source):
            order, looked = None, 0

            def visit(place: int, leaf: Tensor, t: Tensor, layout: Layout = layout) -> bool:
                nonlocal order, looked
                if place in targets:
                    looked += 1
                    with torch.enable_grad():
                        tokens = t.movedim(self._batch, 0)  # (1, N, C)
                    if (found := _arrangement(leaf, tokens, layout)) is None:
                        return True
                    order = found
                return looked == _FOLLOWED or place >= max(targets)

            follow(self._net, self._probe, source, visit)
            if order is not None:
                return order
        return None

    def _layouts_at(self, place: int) -> list[Layout]:
        """How what a module returned may lie in space."""
        sight = self._sights[place]
        if (count := self._counts(place)) is not None:
            order = self._order(count, place)
            return [] if order is None else [Layout(self._batch, True, order, count)]
        last = by_width(sight.module, sight.shape)
        last = by_neighbours(sight.module, self._sights) if last is None else last
        return [Layout(last=True), Layout()] if last is None else [Layout(last=last)]


def _arrangement(leaf: Tensor, tokens: Tensor, layout: Layout) -> Tensor | None:
    """Which of the tokens `(1, N, C)` is at each position of a leaf, reduced to one position a token."""
    N, positions = tokens.shape[1], layout(leaf.detach())[0, 0].numel()
    for first in dict.fromkeys((0, max(N - positions, 0))):  # a class token may be the mean of all others
        labels = _labels(leaf, tokens, layout, first)
        if labels is not None and (order := _reduced(labels)) is not None:
            return order
    return None


def _labels(leaf: Tensor, tokens: Tensor, layout: Layout, first: int) -> Tensor | None:
    """Which token from `first` on each position goes into, int64 `S`, -1 for none; None if one goes into several.

    Bit by bit of the tokens' numbers: to which positions does a gradient come back from the tokens with the bit.
    """
    N = tokens.shape[1]
    number = torch.arange(N, device=tokens.device)
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)).to(tokens)
    labels: Tensor | None = None

    def reached(chosen: Tensor) -> Tensor:
        seed = torch.where((chosen & (number >= first)).view(1, N, 1), noise, 0)
        (g,) = torch.autograd.grad(tokens, leaf, seed, retain_graph=True, allow_unused=True)
        g = torch.zeros_like(leaf) if g is None else g
        return layout(g)[0].ne(0).any(0).cpu()  # S

    for bit in range(max(N - 1, 1).bit_length()):
        with_bit = (number >> bit & 1).bool()
        ones, zeros = reached(with_bit), reached(~with_bit)
        if (ones & zeros).any():
            return None
        if labels is None:
            labels = torch.where(ones | zeros, 0, -1)
        labels = torch.where(ones, labels | 1 << bit, labels)
    return labels


def _reduced(labels: Tensor) -> Tensor | None:
    """A position for each label of a map that is a grid of equal blocks or of single positions between others."""
    for d in range(labels.ndim):
        lines = labels.movedim(d, 0).flatten(1)
        lines = labels.movedim(d, 0)[(lines >= 0).any(1)]
        flat = lines.flatten(1)
        new = torch.ones(len(lines), dtype=torch.bool)
        new[1:] = (flat[1:] != flat[:-1]).any(1)
        if new.sum() == 1 < len(new):  # heads of an attention say: no dimension of space
            return None
        labels = lines[new].movedim(0, d)
    whole = labels.numel() > 1 and bool((labels >= 0).all()) and len(labels.unique()) == labels.numel()
    return labels.contiguous() if whole else None
