"""pytorch-grad-cam's BaseCAM: fastcam's own method for plain calls, a pipeline of overridable steps for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastcam
from fastcam.compat.hooks import ActivationsAndGradients, LateRecorder
from fastcam.compat.projections import get_2d_projection
from fastcam.compat.runs import (
    AUGMENTATIONS,
    as_numpy,
    detached,
    gradients_kept,
    listed,
    per_row,
    rows_of,
    smoothed,
    version_of,
)
from fastcam.compat.scaling import scale_cam_image
from fastcam.methods.base import BaseCAM as NativeCAM
from fastcam.record import evaluation, hooked, unwrap
from fastcam.targets import ClassifierOutputTarget as ClassifierOutputTarget

_STEPS = (
    *("get_cam_weights", "get_cam_image", "get_target_width_height"),
    *("compute_cam_per_layer", "aggregate_multi_layers"),
)


class BaseCAM:
    """pytorch-grad-cam's base class, for subclasses that override its steps and scripts that call them.

    A method of fastcam's that nobody has changed is run by fastcam itself, and the model stays as it is. Where a step
    is overridden or replaced, in a subclass, on the class or on the object, where `activations_and_grads` is in use, or
    fastcam refuses what the model gives, `forward` records the layers and calls the steps, numpy in and out:

    map = min_max(mean over layers of relu(resize(min_max(relu(get_cam_image(A, G))))))

    The constructor switches the model to evaluation mode, as there. Otherwise it is left as it was, `.grad` included.
    """

    native = ""  # the name of fastcam's own method
    _shipped: dict[str, Any] = {}  # the steps, as they come with the native method

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "native" in vars(cls):
            cls._shipped = {name: getattr(cls, name) for name in _STEPS}

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Any = None,
        detach: bool = True,
    ) -> None:
        """Bind the method to a model.

        compute_input_gradient   let `input_tensor.grad` be there in the steps
        uses_gradients           run backwards before the steps
        tta_transforms           what aug_smooth goes through: objects with augment_image and deaugment_mask
        detach                   False leaves activations and gradients in the graph, see `ActivationsAndGradients`
        """
        self.model = model
        self.model.eval()
        self.target_layers = target_layers
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.reshape_transform = reshape_transform
        self.compute_input_gradient = compute_input_gradient
        self.uses_gradients = uses_gradients
        self.tta_transforms = AUGMENTATIONS if tta_transforms is None else tta_transforms
        self.detach = detach
        self.outputs: Any = None
        self._flags = (compute_input_gradient, uses_gradients, detach)
        self._recorder: Any = None
        self._last: tuple[Any, Any, int] | None = None  # input, targets, and how often the input was written into
        self._bound: tuple[tuple[Any, ...], Any] = ((), None)

    @property
    def activations_and_grads(self) -> Any:
        """The recorder; it has hooks in the model from the moment it is asked for or assigned."""
        if self._recorder is None:
            self._recorder = LateRecorder(self._record_last, *self._recorded())
        return self._recorder

    @activations_and_grads.setter
    def activations_and_grads(self, recorder: Any) -> None:
        self._recorder = recorder

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        """The weights `(B, C)` of the channels; a subclass defines this or `get_cam_image`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither get_cam_weights nor get_cam_image")

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        """The signed map `(B, *S)` of one layer from its activations and gradients `(B, C, *S)`."""
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        A = as_numpy(activations)
        if A.ndim not in (4, 5):
            raise ValueError(f"Invalid activation shape. Get {A.ndim}.")
        weighted = np.asarray(weights)[(..., *[None] * (A.ndim - 2))] * A
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)

    def get_target_width_height(self, input_tensor: Any) -> Any:
        """The size of the maps, (W, H) or, for a volume `(B, k, D, H, W)`, (W, H, D); None would leave the layer's."""
        if input_tensor.ndim not in (4, 5):
            raise ValueError("Invalid input_tensor shape. Only 2D or 3D images are supported.")
        return tuple(input_tensor.shape[2:])[::-1]

    def compute_cam_per_layer(self, input_tensor: Any, targets: Any, eigen_smooth: bool) -> Any:
        """The scaled maps of what was recorded, `(B, 1, *S)` a layer."""
        recorder = self.activations_and_grads
        lists = recorder.activations, recorder.gradients
        A, G = ([as_numpy(t) for t in tensors] if self.detach else list(tensors) for tensors in lists)
        size = self.get_target_width_height(input_tensor)
        maps = []
        for n, layer in enumerate(self.target_layers):
            a, g = (tensors[n] if n < len(tensors) else None for tensors in (A, G))
            cam = np.maximum(self.get_cam_image(input_tensor, layer, targets, a, g, eigen_smooth), 0)
            maps.append(scale_cam_image(cam, size)[:, None])
        return maps

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> np.ndarray:
        """The mean over the layers, scaled: `(B, *S)`."""
        return scale_cam_image(np.maximum(np.concatenate(cam_per_target_layer, axis=1), 0).mean(axis=1))

    def forward(self, input_tensor: Tensor, targets: Any = None, eigen_smooth: bool = False) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1] of a batch; arguments as in a call."""
        targets = listed(targets)
        native = self.fast(input_tensor, targets)
        if native is None:
            return self.by_steps(input_tensor, targets, eigen_smooth)
        try:
            return self._natively(native, input_tensor, targets, eigen_smooth)
        except (ValueError, TypeError, IndexError) as refusal:
            try:
                return self.by_steps(input_tensor, targets, eigen_smooth)
            except Exception:
                raise refusal from None

    def forward_augmentation_smoothing(
        self, input_tensor: Tensor, targets: Any = None, eigen_smooth: bool = False
    ) -> np.ndarray:
        """The mean of the maps over the augmentations; `outputs` are those of the image itself, where it is one."""

        def forward(x: Tensor) -> np.ndarray:
            return self.forward(x, targets, eigen_smooth)

        maps, outputs = smoothed(self.tta_transforms, forward, input_tensor, lambda: self.outputs)
        self.outputs = self.outputs if outputs is None else outputs
        return maps

    def __call__(
        self, input_tensor: Tensor, targets: Any = None, aug_smooth: bool = False, eigen_smooth: bool = False
    ) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1], or `(B, D, H, W)`, of a batch.

        targets        a callable an image, from its output to a scalar; None for the predicted classes
        aug_smooth     mean over `tta_transforms`, by default the image and its mirror, each times 0.9, 1 and 1.1
        eigen_smooth   first principal component instead of the sum over channels
        """
        if aug_smooth is True:
            return self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)
        return self.forward(input_tensor, targets, eigen_smooth)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._recorder is not None:
            self._recorder.release()

    def __del__(self) -> None:
        if vars(self).get("_recorder") is not None:
            self._recorder.release()

    def native_options(self) -> dict[str, Any]:
        """Keywords for the constructor of fastcam's own method."""
        return {}

    def bound(self, layers: Sequence[nn.Module]) -> Any:
        """fastcam's own method with these target layers."""
        options = self.native_options()
        state = (self.native, self.model, *layers, self.reshape_transform, *options.values())
        known, cam = self._bound
        if len(known) != len(state) or any(a is not b for a, b in zip(known, state, strict=True)):
            cam = self.native_class()(self.model, list(layers), self.reshape_transform, **options)
            cam.sign = "lapack"
            self._bound = state, cam
        if hasattr(self, "batch_size") and hasattr(cam, "batch_size"):
            cam.batch_size = self.batch_size
        return cam

    def native_class(self) -> type[NativeCAM]:
        if not hasattr(fastcam, self.native):
            raise ImportError(f"this fastcam has no {self.native}")
        return getattr(fastcam, self.native)

    def fast(self, x: Any, targets: Any) -> Any:
        """fastcam's own method, bound; None where the user's changes or the arguments ask for the steps."""
        if not self.native or self._is_changed() or isinstance(x, Tensor) and not x.is_floating_point():
            return None
        if targets is not None and isinstance(x, Tensor) and len(targets) not in (1, len(x)):
            return None  # a model may give other than an output an image
        inside = set(unwrap(self.model).modules())
        if any(layer not in inside for layer in self.target_layers):
            return None
        return self.bound(self.target_layers)

    def _is_changed(self) -> bool:
        recorder = self._recorder
        in_use = recorder is not None and not (type(recorder) is LateRecorder and not recorder.handles)
        flags = (self.compute_input_gradient, self.uses_gradients, self.detach)
        replaced = any(getattr(type(self), n) is not self._shipped[n] or n in vars(self) for n in _STEPS)
        return in_use or replaced or flags != self._flags or scale_cam_image is not _SCALE

    def _natively(self, native: Any, x: Tensor, targets: Any, eigen_smooth: bool) -> np.ndarray:
        seen: list[Any] = []
        with hooked([unwrap(self.model)], lambda _, output: seen.append(output) if not seen else None):
            maps = native(x, targets, eigen_smooth=eigen_smooth)
        self.outputs = detached(seen[0]) if seen and not isinstance(seen[0], Tensor) else native.outputs
        self._last = x, targets, version_of(x)
        return maps

    def by_steps(self, x: Any, targets: Any, eigen_smooth: bool) -> np.ndarray:
        """Record, run backwards, and go through the steps; hooks of our own are gone afterwards."""
        own = self._recorder is None
        if own:
            self._recorder = ActivationsAndGradients(*self._recorded())
        try:
            with self._recording(x, targets, self._recorder) as (x, targets):
                result = self.aggregate_multi_layers(self.compute_cam_per_layer(x, targets, eigen_smooth))
        finally:
            if own:
                self._recorder.release()
                self._recorder = None
            self.outputs = detached(self.outputs)
        return result

    @contextmanager
    def _recording(self, x: Any, targets: Any, recorder: Any) -> Iterator[tuple[Any, Any]]:
        """One run, forward and, if gradients are used, backward, through the recorder; gives input and targets."""
        self._last = x, targets, version_of(x)
        x = x.to(self.device) if hasattr(x, "to") else x
        parameters = list(self.model.parameters())
        with evaluation(self.model), torch.set_grad_enabled(self.uses_gradients), gradients_kept(parameters):
            leaf = x = x.clone() if isinstance(x, Tensor) and x.is_inference() else x
            # Behind frozen parameters a gradient flows only if it is meant to reach the input.
            frozen = self.uses_gradients and not all(p.requires_grad for p in parameters)
            if isinstance(x, Tensor) and (frozen or self.compute_input_gradient or not self.detach):
                leaf = x.detach().requires_grad_(x.is_floating_point())
                x = leaf if self.compute_input_gradient else x
            self.outputs = recorder(leaf)
            rows = rows_of(self.outputs, targets)
            targets = per_row(targets, rows)
            if self.uses_gradients:
                loss = sum(target(row) for target, row in zip(targets, rows, strict=False))
                if not isinstance(loss, Tensor) or loss.numel() != 1:
                    raise ValueError(f"targets must give a scalar tensor each, they add up to {loss!r}")
                if self.detach:
                    loss.backward(retain_graph=True)
                else:
                    torch.autograd.grad(loss, leaf, torch.ones_like(loss), retain_graph=True, create_graph=True)
            yield x, targets

    def _recorded(self) -> tuple[Any, ...]:
        """The arguments of a recorder."""
        return self.model, self.target_layers, self.reshape_transform, self.detach

    def _record_last(self, recorder: ActivationsAndGradients) -> None:
        """Let a recorder see the last call once more; RuntimeError if its input was written into since."""
        if self._last is None:
            return
        x, targets, version = self._last
        if version_of(x) != version:
            raise RuntimeError(
                "the input of the last call was changed since, so that its activations can't be recorded any more: "
                "look at activations_and_grads before the call"
            )
        outputs = self.outputs
        with self._recording(x, targets, recorder):
            self.outputs = outputs


_SCALE = scale_cam_image
