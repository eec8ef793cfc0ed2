"""The rows of a batch made from the images of a recorded run, and tensors that are made for them when needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Rows(NamedTuple):
    """The rows of a batch that is made from images: the image of each.

    images   `(N,)` on the model's device
    listed   the same on the host, so that no one waits for the device
    only     the image of all rows, if it is one
    """

    images: Tensor
    listed: Sequence[int]
    only: int | None

    @classmethod
    def of(cls, images: Iterable[int], device: torch.device) -> Rows:
        listed = tuple(images)
        return cls(torch.tensor(listed, device=device), listed, listed[0] if len(set(listed)) == 1 else None)


class Record:
    """A tensor of the recorded run, and how the images lie in it.

    dim      the dimension of the batch, None where nothing depends on it
    factor   how many entries an image has along it, one after the other: the windows of a Swin block, say
    sure     whether it was made of something that has the batch first
    """

    def __init__(self, value: Tensor, sure: bool) -> None:
        self.value = value.detach()
        self.sure = sure
        self.dim: int | None = 0
        self.factor = 1

    def for_rows(self, rows: Rows) -> Tensor:
        """A copy for the rows, in the memory order of the recorded tensor."""
        if self.dim is None:
            return self.value.clone()
        t = self.value.unflatten(self.dim, (-1, self.factor)) if self.factor > 1 else self.value
        order = sorted(range(t.ndim), key=t.stride().__getitem__, reverse=True)
        back = [order.index(d) for d in range(t.ndim)]
        t = t.permute(order).index_select(order.index(self.dim), rows.images).permute(back)
        return t.flatten(self.dim, self.dim + 1) if self.factor > 1 else t

    def as_view(self, rows: Rows) -> Tensor | None:
        """The same without a copy, where one tensor serves all rows."""
        if self.dim is None:
            return self.value
        if rows.only is None or self.factor > 1:
            return None
        size = [-1] * self.value.ndim
        size[self.dim] = len(rows.images)
        return self.value.narrow(self.dim, rows.only, 1).expand(size)


class Handed(Tensor):
    """What a replayed module hands back: it has a shape at once, and memory when something reads or writes it.

    Most of what is handed back only goes on to the next module that is replayed too, and is never needed.
    """

    _record: Record
    _rows: Rows
    _memory: Tensor | None

    @staticmethod
    def __new__(cls, record: Record, rows: Rows) -> Handed:
        value = record.value
        size = list(value.shape)
        if record.dim is not None:
            size[record.dim] = len(rows.images) * record.factor
        strides, step = [0] * value.ndim, 1
        for d in sorted(range(value.ndim), key=lambda d: (value.stride(d), -d)):
            strides[d], step = step, step * size[d]
        handed = Tensor._make_wrapper_subclass(
            cls, size, strides=strides, dtype=value.dtype, device=value.device, requires_grad=False
        )
        handed._record, handed._rows, handed._memory = record, rows, None
        return handed

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def memory(self) -> Tensor:
        """Memory of its own, which may be written."""
        if self._memory is None:
            self._memory = self._record.for_rows(self._rows)
        return self._memory

    def readable(self) -> Tensor:
        if self._memory is None and (view := self._record.as_view(self._rows)) is not None:
            return view
        return self.memory()

    def becomes(self, record: Record) -> None:
        """The replayed module wrote this into it."""
        if self._memory is None:
            self._record = record
        else:
            self._memory.copy_(record.for_rows(self._rows))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        plain = torch.Tag.pointwise in func.tags and not any(a.alias_info for a in func._schema.arguments)
        given = args
        args, kwargs = pytree.tree_map_only(
            Handed, lambda t: t.readable() if plain else t.memory(), (args, kwargs or {})
        )
        result = func(*args, **kwargs)
        written = func._schema.is_mutable and len(given) > 0 and isinstance(given[0], Handed)
        if not written or result is not args[0]:
            return result
        if result.shape != given[0].shape:
            raise RuntimeError(f"{func} changes in place the shape of what a module returned: use a GradCAM method")
        return given[0]

    def numpy(self, *, force: bool = False) -> Any:
        return self.memory().numpy(force=force)

    def tolist(self) -> Any:
        return self.memory().tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({tuple(self.shape)})"
