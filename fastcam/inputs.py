"""What a model is called with: a tensor, or several by position or by name, and arguments that every call gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcam.rows import Record


class Inputs:
    """The inputs of a batch of images: a structure of tensors that have the batch first, one of them the image.

    leaves           what is in the structure, tensors and whatever else
    image            the first floating-point tensor of three dimensions or more, `(B, k, *S)`: what is explained
    forward_kwargs   what every call gets as it is, whichever rows it is for
    """

    def __init__(self, given: Any, forward_kwargs: Mapping[str, Any] | None = None) -> None:
        self.leaves, self._structure = pytree.tree_flatten(dict(given) if isinstance(given, Mapping) else given)
        self._place = 0
        if not isinstance(given, Tensor):
            self._place = next(place for place, leaf in enumerate(self.leaves) if _is_image(leaf))
        self.forward_kwargs = dict(forward_kwargs or {})

    @property
    def image(self) -> Any:
        return self.leaves[self._place]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those of one image's tensors."""
        return tuple(tuple(t.shape[1:]) for t in self.leaves if isinstance(t, Tensor))

    @property
    def is_single(self) -> bool:
        """Whether the image is all that the model is called with."""
        return len(self.leaves) == 1 and not self.forward_kwargs

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, images: slice) -> Inputs:
        """A part of the batch."""
        return self.map(lambda t: t[images])

    def map(self, change: Callable[[Any], Any], everywhere: bool = False) -> Inputs:
        """The same structure with `change` of each tensor, or of what an earlier change put in its place.

        everywhere   in forward_kwargs too
        """
        other = self._with([change(leaf) if isinstance(leaf, Tensor | Record) else leaf for leaf in self.leaves])
        if everywhere:
            other.forward_kwargs = pytree.tree_map_only(Tensor, change, self.forward_kwargs)
        return other

    def clone(self) -> Inputs:
        """Tensors of its own, which a model may write into."""
        return self.map(lambda t: t.clone())

    def with_image(self, image: Tensor) -> Inputs:
        return self._with([image if place == self._place else leaf for place, leaf in enumerate(self.leaves)])

    def for_rows(self, seen: Tensor, images: Tensor) -> Inputs:
        """A batch of rows: `seen` as the image, and of the other tensors what goes with the images `(N,)` of the rows.

        They are copies, and `seen` is not.
        """
        others = self.with_image(seen)
        return others.map(lambda t: t if t is seen else t.index_select(0, images))

    def augmented(self, channel: int, flipped: int | None, factor: float) -> Inputs:
        """Flipped along a dimension and scaled: the image, and other floating-point tensors of its size in space.

        channel   the dimension of the channels, in which they may differ
        """

        def size(t: Tensor) -> list[int]:
            return [n for d, n in enumerate(t.shape) if d != channel]

        def change(t: Tensor) -> Tensor:
            if not t.is_floating_point() or size(t) != size(self.image):
                return t
            t = t if flipped is None else t.flip(flipped)
            return t if factor == 1 else t * factor

        return self.map(change)

    def arguments(self, net: nn.Module) -> tuple[Sequence[Any], dict[str, Any]]:
        """What the model is called with, by position and by name.

        Names are those of the mapping that was given, unless the model's forward has none of them and just one
        parameter that must be given: that takes the mapping.
        """
        given = pytree.tree_unflatten(self.leaves, self._structure)
        if isinstance(given, dict) and not _takes_mapping(net, given):
            return (), _joined(given, self.forward_kwargs)
        return given if isinstance(given, tuple | list) else (given,), self.forward_kwargs

    def _with(self, leaves: list[Any]) -> Inputs:
        other = object.__new__(Inputs)
        other.leaves, other._structure, other._place = leaves, self._structure, self._place
        other.forward_kwargs = self.forward_kwargs
        return other


def inputs_of(given: Any, forward_kwargs: Mapping[str, Any] | None = None) -> Inputs:
    """The checked inputs: a tensor, a tuple or list of arguments, a mapping of arguments by name.

    TypeError if there is no floating-point tensor with batch and channels, ValueError if it is empty or if another
    tensor has not its batch.
    """
    if isinstance(given, Inputs):
        return given
    if not isinstance(forward_kwargs, Mapping | None):
        raise TypeError(f"forward_kwargs must be a mapping of arguments, got {type(forward_kwargs).__name__}")
    if not isinstance(given, tuple | list | Mapping):
        check_input(given)
        return Inputs(given, forward_kwargs)
    placed = pytree.tree_flatten_with_path(dict(given) if isinstance(given, Mapping) else given)[0]
    tensors = [(path, leaf) for path, leaf in placed if isinstance(leaf, Tensor)]
    image = next((t for _, t in tensors if _is_image(t)), None)
    if image is None:
        kinds = ", ".join(f"{t.dtype} {tuple(t.shape)}" for _, t in tensors) or "no tensor"
        raise TypeError(f"input_tensor must hold a floating-point tensor (B, k, H, W), got {kinds}")
    check_input(image)
    for path, t in tensors:
        if t.ndim == 0 or len(t) != len(image):
            raise ValueError(
                f"input_tensor{pytree.keystr(path)} must have the batch of {len(image)} first, got shape "
                f"{tuple(t.shape)}; what has no batch goes into forward_kwargs"
            )
    return Inputs(given, forward_kwargs)


def check_input(x: Any) -> None:
    """TypeError unless x is a floating-point tensor with batch and channels, ValueError if it is empty."""
    if not isinstance(x, Tensor):
        hint = "; torch.from_numpy(x).float() makes one" if type(x).__name__ == "ndarray" else ""
        raise TypeError(f"input_tensor must be a tensor (B, k, H, W), got {type(x).__name__}{hint}")
    if x.ndim < 3 or not x.is_floating_point():
        hint = ": pass input_tensor.float() / 255, normalised as the model takes it" if x.dtype == torch.uint8 else ""
        got = f"{x.dtype} {tuple(x.shape)}{hint}"
        raise TypeError(f"input_tensor must be a floating-point tensor (B, k, H, W), got {got}")
    if x.numel() == 0:
        raise ValueError(f"input_tensor is an empty batch: shape {tuple(x.shape)}")


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim >= 3


def _takes_mapping(net: nn.Module, given: Mapping[str, Any]) -> bool:
    try:
        parameters = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is not written in Python
        return False
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p for p in named if p.default is p.empty]
    return len(required) == 1 and not any(p.name in given for p in named)


def _joined(given: dict[str, Any], forward_kwargs: dict[str, Any]) -> dict[str, Any]:
    if twice := given.keys() & forward_kwargs.keys():
        raise ValueError(f"{sorted(twice)} are in input_tensor and in forward_kwargs")
    return {**given, **forward_kwargs}
