"""What all methods share: from the images over one recorded run to the finished maps."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastcam
from fastcam import ops
from fastcam.batches import free_memory, is_out_of_memory
from fastcam.fast.agreement import Agreement
from fastcam.fast.calls import FastCalls, device_of
from fastcam.fast.settings import Optimize, settings_of
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import default_layer, find_layers, image_channel_dim, layer_name
from fastcam.methods.fusion import FUSIONS
from fastcam.record import Run, record, to_cpu, unwrap
from fastcam.targets import Targets, find_logits, part_of, per_image, scores
from fastcam.tokens import Layout, layout_of

Size = Sequence[int] | str | None


class BaseCAM:
    """A class activation map method, bound to a model and its target layers.

    After a call `outputs` holds the logits, detached; None after a run that was stopped early.
    """

    uses_gradients = True
    class_discriminative = True  # whether the map depends on the target
    looks_inside = False  # of modules or of the graph behind the layer, which fast mode must not compile then
    sums_biases = False  # of each convolution and batch norm, which fast mode must not make one of two then
    is_capturable = False  # whether a call is the same work for every batch of a shape, which one CUDA graph can hold
    optimize: Optimize | None = None
    _fast: FastCalls | None = None
    fusion = "mean"  # of the layers' low maps to a finished one, a name in `FUSIONS`

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        *,
        sign: str = "activation",
        interpolation: str | None = None,
        optimize: bool | Optimize | None = None,
    ) -> None:
        """Bind the method to a model; nothing runs yet.

        model               any torch.nn.Module; it is left exactly as it was, whatever happens in a call
        target_layers       a module, a name (`"layer4.1"`), an index path (`"layer4[-1]"`), a glob, a list of these,
                            or None for the last convolutional stage; the maps of several layers are averaged
        reshape_transform   turns a layer's output into `(B, C, h, w)`; None or "auto" finds out how tokens, or
                            channels that are last, lie in space, see `fastcam.tokens`
        sign                of a principal component (EigenCAM, EigenGradCAM, eigen_smooth): "activation" correlates
                            with the mean over channels, "lapack" is the choice of pytorch-grad-cam on a CPU
        interpolation       of low maps to the size asked for: "linear", "cubic" (a spline), or None for what
                            pytorch-grad-cam takes, linear in one and two dimensions, cubic in three
        optimize            fast mode: True, or `fastcam.Optimize(...)` with settings; the maps are then those of a
                            private copy of the model, batch norms folded say, and `agreement` says how near they are
        Raises ValueError for a layer that is not in the model, TypeError for what is no model or no layer.
        """
        if sign not in ("activation", "lapack"):
            raise ValueError(f'sign must be "activation" or "lapack", got {sign!r}')
        if interpolation not in ops.INTERPOLATIONS:
            raise ValueError(f'interpolation must be None, "linear" or "cubic", got {interpolation!r}')
        self.model = model
        self.target_layers = None if target_layers is None else find_layers(model, target_layers)
        if not (reshape_transform is None or reshape_transform == "auto" or callable(reshape_transform)):
            raise TypeError(f'reshape_transform must be callable, "auto" or None, got {reshape_transform!r}')
        self.reshape_transform = reshape_transform if callable(reshape_transform) else None
        self.sign = sign
        self.interpolation = interpolation
        self.optimize = settings_of(optimize)
        if self.optimize is not None:
            self.optimize.check(device_of(unwrap(model)))
            self._fast = FastCalls(self.optimize)
        self.outputs: Tensor | None = None
        self._with_gradient: set[nn.Module] = set()  # layers at which a gradient other than 0 was seen

    def __call__(
        self,
        input_tensor: Any,
        targets: Targets = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        *,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """The maps of a batch as numpy float32: `(B, H, W)` in [0, 1], `(B, T, H, W)` for targets `(B, T)`.

        From a GPU the array lies in page-locked memory, its own as long as it is held: copy what you keep of very many.

        input_tensor     `(B, k, H, W)`, as the model takes it, a signal `(B, k, L)` or a volume `(B, k, D, H, W)`; or
                         several inputs with the batch first: a tuple of arguments, a mapping of arguments by name.
                         The first floating-point tensor of three dimensions or more is the image
        targets          None for the predicted class, an int, a list of ints, a LongTensor `(B,)` or `(B, T)`, or
                         callables from one image's output to a scalar: one, B, or B lists of T
        aug_smooth       mean over six augmentations: the image and its mirror, each times 0.9, 1 and 1.1, and with it
                         other floating-point inputs of its size
        eigen_smooth     first principal component of the weighted activations instead of their sum
        forward_kwargs   more arguments of the model, by name; they go into every call as they are, whichever rows it
                         is for: what belongs to an image goes into input_tensor
        Raises ValueError for an empty batch, a class out of range, lengths that do not fit, a layer that does not
        run or has no spatial output.
        """
        maps = self._explain(
            *(input_tensor, targets, aug_smooth, forward_kwargs),
            eigen_smooth=eigen_smooth,
            normalize=True,
            size="input",
            complete=True,
        )
        assert isinstance(maps, Tensor)
        return to_cpu(maps.float()).numpy()

    def attribute(
        self,
        input_tensor: Any,
        targets: Targets = None,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        normalize: bool = True,
        size: Size = "input",
        forward_kwargs: Mapping[str, Any] | None = None,
        complete: bool | None = None,
    ) -> Any:
        """The maps as a tensor on the model's device, fp32 (fp64 for an fp64 model on a CPU).

        normalize   ReLU and min-max to [0, 1]; False gives signed values in the method's own unit
        size        "input" for the image's `(H, W)`, `(L,)` or `(D, H, W)`, a size, or None for the layer's own; with
                    several layers of their own size the result is a list, a tensor per layer. A video `(B, T, C, H, W)`
                    has `(T, H, W)`; the model's first convolution tells it from a volume
        complete    run the model to its end, for `outputs`; None where the map depends on a class. Other methods stop
                    at the last layer
        Arguments and shapes otherwise as in a call.
        """
        return self._explain(
            *(input_tensor, targets, aug_smooth, forward_kwargs),
            eigen_smooth=eigen_smooth,
            normalize=normalize,
            size=size,
            complete=self.class_discriminative if complete is None else complete,
        )

    def signed_maps(
        self,
        input_tensor: Any,
        targets: Targets = None,
        *,
        eigen_smooth: bool = False,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Tensor]:
        """Of each layer the signed low map `(B, *S)`, `(B, T, *S)` for targets `(B, T)`; `outputs` are there too.

        `FUSIONS[self.fusion]` makes of them what a call gives. Arguments as in a call.
        """
        x = inputs_of(input_tensor, forward_kwargs)
        options = {"eigen_smooth": eigen_smooth, "normalize": False, "size": None, "complete": True, "fused": False}
        return self._answered(x, targets, False, **options)

    @property
    def agreement(self) -> Agreement | None:
        """How near the maps of fast mode were to the exact ones, on the first images since the weights last changed.

        None without fast mode, and before the first call.
        """
        return None if self._fast is None else self._fast.agreement

    def layer_names(self, input_tensor: Any) -> list[str]:
        """The names of the layers that are looked at: those given, or the one found for such inputs."""
        return [layer_name(self.model, layer) for layer in self._layers(inputs_of(input_tensor))]

    def __repr__(self) -> str:
        layers = None if self.target_layers is None else [layer_name(self.model, m) for m in self.target_layers]
        return f"{type(self).__name__}({type(self.model).__name__}, {layers})"

    def __enter__(self) -> BaseCAM:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo: a call leaves nothing in the model."""

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        """The low map `(B, P, *S)` of each layer of a run, `(B * T, P, *S)` for targets `(B, T)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no low_maps")

    def finished(self, lows: Sequence[Tensor], normalize: bool, size: Sequence[int] | None) -> list[Tensor]:
        """From the layers' low maps to one map at a size, or where `size` is None to a map a layer."""
        for low in lows:
            if size is not None and low.ndim - 2 != len(size):
                raise ValueError(
                    f"size must have {low.ndim - 2} values for maps {(len(low), *low.shape[2:])}, got {tuple(size)}: "
                    "attribute(..., size=...) gives maps that differ from the image in rank at a size of theirs"
                )
        if normalize and size is not None:
            return [FUSIONS[self.fusion](lows, size, self.interpolation)]
        maps = [low.sum(1) for low in lows]
        if normalize:
            maps = [ops.min_max(m.relu()) for m in maps]
        return maps if size is None else [torch.stack([ops.resize(m, size, self.interpolation) for m in maps]).mean(0)]

    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> AbstractContextManager[Run]:
        """The run of the model that a call needs."""
        return record(self.model, layers, x, gradients=self.uses_gradients, complete=complete)

    @property
    def may_split(self) -> bool:
        """Whether a batch for which memory does not suffice is explained in parts."""
        return False

    def at_once(self, x: Inputs) -> int:
        """How many of the images go into one run of the model: all, unless a method promises to need less memory."""
        return len(x)

    def weighted_map(self, A: Tensor, weights: Tensor, eigen_smooth: bool) -> Tensor:
        """The low map of weights `(B * T, C)`, those of an image in a row, for activations `(B, C, *S)`."""
        T = len(weights) // len(A)
        if eigen_smooth:
            A = A.repeat_interleave(T, 0) if T > 1 else A
            return ops.principal_component(A * weights.view(*weights.shape, *[1] * (A.ndim - 2)), self.sign)
        return ops.channel_sum(A, weights.unflatten(0, (len(A), T)) if T > 1 else weights)

    def gradients(self, run: Run, targets: Targets) -> Iterator[list[Tensor]]:
        """For each of the T targets of an image its gradients `(B, C, *S)` at the layers; the last ends the graph."""
        known = next((found for of, found in run.kept or () if of is targets), None)
        if known is not None:
            yield from (self.spatial(run, gradients) for gradients in known)
            return
        found: list[list[Tensor]] = []
        B = len(run.input)
        with torch.enable_grad():
            columns = scores(run.output, targets, B).view(B, -1).unbind(1)
        for t, column in enumerate(columns, 1):
            gradients = run.gradients(column, keep_graph=t < len(columns) or run.kept is not None)
            if run.kept is not None:  # otherwise those of one target at a time are held
                found.append(gradients)
            yield self.spatial(run, gradients)
        if run.kept is not None:
            run.kept.append((targets, found))

    def spatial(self, run: Run, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A tensor per layer of the run, activations or gradients, as `(B, C, *S)`."""
        return [self.spatial_of(run, layer, t) for layer, t in zip(run.layers, tensors, strict=True)]

    def spatial_of(self, run: Run, layer: nn.Module, t: Tensor) -> Tensor:
        """An activation or gradient of one layer as `(B, C, *S)`; ValueError if it has no space."""
        shape = tuple(t.shape)
        t = self.transform(run, layer, shape)(t)
        if not isinstance(t, Tensor) or t.ndim < 3:
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"reshape_transform must give (B, C, h, w), got {got} from {shape}")
        if len(t) != len(run.input):
            name = layer_name(self.model, layer)
            raise ValueError(f"target layer {name!r} gives {len(t)} maps {tuple(t.shape)} for {len(run.input)} images")
        return t

    def transform(self, run: Run, layer: nn.Module, shape: Sequence[int]) -> Callable[[Any], Tensor] | Layout:
        """What turns a layer's output of this shape into `(B, C, *S)`."""
        return self.reshape_transform or layout_of(self.model, layer, run.inputs, shape)

    def _explain(
        self,
        given: Any,
        targets: Targets,
        aug_smooth: bool,
        forward_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Tensor | list[Tensor]:
        x = inputs_of(given, forward_kwargs)
        options["size"] = map_size(unwrap(self.model), options["size"], x)
        maps = self._answered(x, targets, aug_smooth, **options)
        return maps[0] if len(maps) == 1 else maps

    def _answered(self, x: Inputs, targets: Targets, aug_smooth: bool, **options: Any) -> list[Tensor]:
        if self._fast is not None:
            return self._fast.of_method(self, x, targets, aug_smooth, **options)
        return (self._smoothed if aug_smooth else self._maps)(x, self._layers(x), targets, **options)

    def _layers(self, x: Inputs) -> Sequence[nn.Module]:
        return self.target_layers if self.target_layers is not None else [default_layer(self.model, x)]

    def _smoothed(self, x: Inputs, layers: Sequence[nn.Module], targets: Targets, **options: Any) -> list[Tensor]:
        """The mean of the maps over the image and its mirror, each at three contrasts."""
        rank = x.image.ndim
        axis, channel = min(3, rank - 1), image_channel_dim(unwrap(self.model), x.image)
        total: list[Tensor] = []
        for mirrored, factor in itertools.product((False, True), (0.9, 1.0, 1.1)):
            augmented = x.augmented(channel, axis if mirrored else None, factor)
            maps = self._maps(augmented, layers, targets, **options)
            if any(m.ndim - 1 - (per_image(targets) is not None) != rank - 2 for m in maps):
                raise ValueError(
                    f"aug_smooth mirrors maps of the image's {rank - 2} spatial dimensions, got {tuple(maps[0].shape)}"
                )
            maps = [m.flip(axis - rank) for m in maps] if mirrored else maps
            total = [a + b for a, b in zip(total, maps, strict=True)] if total else maps
            if not mirrored and factor == 1:
                outputs = self.outputs
        self.outputs = outputs
        return [m / 6 for m in total]

    def _maps(self, x: Inputs, layers: Sequence[nn.Module], targets: Targets, **options: Any) -> list[Tensor]:
        """The maps of each layer, or of all together; in parts of the batch if it is long."""
        B, step = len(x), self.at_once(x)
        start, parts, outputs = 0, [], []
        while start < B:
            part = targets if step >= B else part_of(targets, start, start + step, B)
            maps = self._unless_too_large(x[start : start + step], start, layers, part, **options)
            if maps is None:
                step = (min(step, B - start) + 1) // 2
                continue
            parts.append(maps)
            outputs.append(self.outputs)
            start += step
        if len(parts) == 1:
            return parts[0]
        logits = [o for o in outputs if o is not None]
        self.outputs = torch.cat(logits) if len(logits) == len(parts) else None
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _unless_too_large(self, x: Inputs, *arguments: Any, **options: Any) -> list[Tensor] | None:
        """`_maps_of_part`, or None if memory does not suffice and the method may take fewer images at once."""
        try:
            return self._maps_of_part(x, *arguments, **options)
        except RuntimeError as error:
            if not (is_out_of_memory(error) and self.may_split and len(x) > 1):
                raise
        free_memory()
        return None

    def _maps_of_part(
        self,
        x: Inputs,
        first: int,
        layers: Sequence[nn.Module],
        targets: Targets,
        eigen_smooth: bool,
        normalize: bool,
        size: Sequence[int] | None,
        complete: bool,
        fused: bool = True,
    ) -> list[Tensor]:
        with self.recorded(x, layers, complete) as run:
            run.first = first
            logits = find_logits(run.output)
            self.outputs = None if logits is None else logits.detach()
            lows = self.low_maps(run, targets, eigen_smooth)
            maps = self.finished(lows, normalize, size) if fused else [low.sum(1) for low in lows]
        T = per_image(targets)
        return maps if T is None else [per_target(m, len(x), T) for m in maps]


def warn(message: str) -> None:
    """A warning at the caller's own line, the nearest one outside of this package."""
    package, level = os.path.dirname(fastcam.__file__), 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def check_size(size: Any) -> None:
    """TypeError for what is no size of maps."""
    if not (size in (None, "input") if isinstance(size, str | None) else isinstance(size, Sequence)):
        raise TypeError(f'size must be "input", None or (H, W), got {size!r}')


def map_size(net: nn.Module, size: Size, x: Inputs) -> Sequence[int] | None:
    """The size of the maps of x in numbers, None for the layer's own."""
    check_size(size)
    if size == "input":
        channel = image_channel_dim(net, x.image)
        return [n for d, n in enumerate(x.image.shape) if d not in (0, channel)]
    return size  # type: ignore[return-value]


def per_target(maps: Tensor, batch: int, T: int) -> Tensor:
    """`(B * T, *S)` as `(B, T, *S)`; maps `(B, *S)` that do not depend on the target are repeated."""
    if len(maps) == batch * T:
        return maps.unflatten(0, (batch, T))
    return maps.unsqueeze(1).repeat_interleave(T, 1)
