"""A method as a function of a batch of arrays, for frameworks that bring their own data and workers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.dataset.explaining import records
from fastcam.fast.calls import device_of
from fastcam.methods import BaseCAM
from fastcam.methods.base import check_size
from fastcam.methods.fusion import FUSIONS

_OBJECTS = 4  # whose methods a process keeps for their copies


class MapBatches:
    """`batch -> batch with maps`, as Ray Data's `map_batches` and others want it: `data.map_batches(MapBatches(...))`.

    It can be pickled and keeps nothing of a batch. The model is made once in each process, on its first batch: copies
    that are unpickled in one, as for each task of Ray Data, share it. A process keeps it for the last four objects.

    make        gives the method, `GradCAM(model, layers)` say: a function at the top of a module
    image       the column of the inputs, `(B, k, H, W)`, as the model takes them
    label       the column of the classes to explain; None for the predicted ones
    size        of the maps: None for finished maps at the layer's size, "input" for the image's, or `(H, W)`
    normalize   False for signed maps
    device      None for a GPU if there is one
    A call returns the columns but for the inputs, and `map`, fp32, `predicted` and `score`, the probability of the
    explained class; of no images, none. Floating-point inputs are cast to the model's type. ValueError for a column
    that is not there, for images that differ in size, and for signed maps of several layers.

    >>> import fastcam
    >>> from torch import nn
    >>> def make():
    ...     return fastcam.GradCAM(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), "0")
    >>> batch = MapBatches(make, device="cpu")({"image": np.random.rand(2, 1, 8, 8).astype(np.float32)})
    >>> {name: column.shape for name, column in batch.items()}
    {'map': (2, 6, 6), 'predicted': (2,), 'score': (2,)}
    """

    def __init__(
        self,
        make: Callable[[], BaseCAM],
        image: str = "image",
        label: str | None = None,
        size: Any = None,
        normalize: bool = True,
        device: str | None = None,
    ) -> None:
        if not callable(make) or isinstance(make, BaseCAM | nn.Module):
            raise TypeError(f"make must be a function that gives the method, got {type(make).__name__}")
        check_size(size)
        self.make, self.image, self.label = make, image, label
        self.size, self.normalize, self.device = size, normalize, device
        self._name = secrets.token_hex(8)
        self._made: list[BaseCAM] = []  # one, after the first batch

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _made=_of_copies(state["_name"]))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        for name in (self.image, *([] if self.label is None else [self.label])):
            if name not in batch:
                raise ValueError(f"the batch has no column {name!r}: it has {', '.join(batch)}")
        kept = {name: column for name, column in batch.items() if name != self.image}
        maps, told = self._explained(batch) if len(batch[self.image]) else self._nothing()
        found = {"map": maps, "predicted": told[:, 1].long(), "score": told[:, 2].float()}
        return {**kept, **{name: column.cpu().numpy() for name, column in found.items()}}

    def _explained(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Maps, and what `records` gives."""
        cam = self._method()
        x = self._inputs(cam.model, batch[self.image])
        targets = None if self.label is None else [int(c) for c in batch[self.label]]
        lows = cam.signed_maps(x, targets)
        return self._finished(cam, lows, x), records(cam, targets, len(x))

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """The same of no images."""
        size = (0, 0) if self.size in (None, "input") else self.size
        return torch.zeros(0, *size), torch.zeros(0, 3)

    def _inputs(self, model: nn.Module, column: Any) -> Tensor:
        """The images of a column, which may hold each as an object, as the model takes them."""
        images = np.array(column)  # a copy: what a framework gives may be read-only
        if images.dtype == object:
            shapes = {np.shape(image) for image in images}
            if len(shapes) > 1:
                raise ValueError(f"images of sizes {sorted(shapes)} in column {self.image!r} make no batch")
            images = np.stack([*images])
        if images.dtype.kind not in "buif":
            raise TypeError(f"column {self.image!r} must hold images as arrays of numbers, got {images.dtype}")
        x = torch.as_tensor(images)
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        return x.to(device_of(model), kind if x.is_floating_point() else None)

    def _method(self) -> BaseCAM:
        if not self._made:
            cam = self.make()
            if not isinstance(cam, BaseCAM):
                raise TypeError(f"make must give a method such as GradCAM(model, layers), got {type(cam).__name__}")
            cam.model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._made.append(cam)
        return self._made[0]

    def _finished(self, cam: BaseCAM, lows: Sequence[Tensor], x: Tensor) -> Tensor:
        if not self.normalize and self.size is None and len(lows) == 1:
            return lows[0].float()
        if not self.normalize:
            raise ValueError("signed maps are those of one layer, at its size: leave size None, or normalize=True")
        size = x.shape[2:] if self.size == "input" else self.size
        size = max((low.shape[1:] for low in lows), key=torch.Size.numel) if size is None else size
        return FUSIONS[cam.fusion]([low.unsqueeze(1) for low in lows], size, cam.interpolation).float()


@lru_cache(maxsize=_OBJECTS)
def _of_copies(name: str) -> list[BaseCAM]:
    """Where the copies of one object keep its method in this process."""
    return []
