"""pytorch-grad-cam's methods that ask another one for its maps; none of them is a BaseCAM there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastcam
from fastcam import ops
from fastcam.compat.base_cam import BaseCAM
from fastcam.compat.cams import GradCAM, GradCAMPlusPlus
from fastcam.compat.runs import listed, smoothed
from fastcam.compat.scaling import scale_cam_image
from fastcam.methods.masking import blur
from fastcam.targets import logits_of

DEFAULT_COMPARISON_CATEGORIES = (1, 2, 3)


_CALL = {"forward": BaseCAM.forward, "__call__": BaseCAM.__call__}


class Combined:
    """What the methods share: calls, `with`, and fastcam's own method over that of the CAMs inside."""

    def __call__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        """`forward`, to which the arguments go."""
        return self.forward(*arguments, **keywords)

    def forward(self, input_tensor: Tensor, *arguments: Any, **keywords: Any) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1] of a batch."""
        raise NotImplementedError

    @property
    def bases(self) -> Sequence[Any]:
        """The CAMs inside."""
        return [self.base_cam]

    base_cam: Any

    @property
    def outputs(self) -> Any:
        """The model's outputs of the last call."""
        return getattr(self.bases[0], "outputs", None) if self.bases else None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        for cam in self.bases:
            cam.__exit__(*exception)

    def _smoothed(self, forward: Callable[[Tensor], np.ndarray], x: Tensor) -> np.ndarray:
        """The mean of the maps over the augmentations of the CAM inside."""
        return smoothed(self.bases[0].tta_transforms, forward, x)[0]


def native_base(cam: Any, x: Any, targets: Any, layers: Sequence[nn.Module] | None = None) -> Any:
    """fastcam's own method of a CAM, with these layers or its own; None where the CAM asks for its steps."""
    if not isinstance(cam, BaseCAM) or any(getattr(type(cam), n) is not f or n in vars(cam) for n, f in _CALL.items()):
        return None
    native = cam.fast(x, targets)
    return native if native is None or layers is None else cam.bound(layers)


class FinerCAM(Combined):
    """`fastcam.FinerCAM` with pytorch-grad-cam's interface."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: Callable[..., Any] = GradCAM,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform)
        self.compute_input_gradient = self.base_cam.compute_input_gradient
        self.uses_gradients = self.base_cam.uses_gradients

    def forward(
        self,
        input_tensor: Tensor,
        targets: Any = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
        aug_smooth: bool = False,
    ) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1] of a batch; arguments as in `fastcam.FinerCAM`."""
        options = alpha, comparison_categories, target_idx
        if aug_smooth:
            return self._smoothed(lambda x: self.forward(x, targets, eigen_smooth, *options), input_tensor)
        cam, targets = self.base_cam, listed(targets)
        native = native_base(cam, input_tensor, targets)
        finer = fastcam.FinerCAM(
            cam.model, list(cam.target_layers), cam.reshape_transform, lambda *_: native or cam.bound(cam.target_layers)
        )
        if native is None:
            finer.alpha, finer.comparison_categories = alpha, comparison_categories

            def compared(rows: Any) -> Any:
                return finer.compared(logits_of(rows), target_idx)

            return cam.by_steps(input_tensor, compared if targets is None else targets, eigen_smooth)
        maps = finer(input_tensor, targets, eigen_smooth, *options)
        cam.outputs = finer.outputs
        return maps


class RefineCAM(Combined):
    """`fastcam.RefineCAM` with pytorch-grad-cam's interface; one run of the model serves all layers where it can."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: Callable[..., Any] = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        """The options go to `base_method`."""
        self.base_cam_per_layer = [base_method(model, [m], reshape_transform, **kwargs) for m in target_layers]

    @property
    def bases(self) -> Sequence[Any]:
        return self.base_cam_per_layer

    def forward(
        self, input_tensor: Tensor, targets: Any = None, eigen_smooth: bool = False, aug_smooth: bool = False
    ) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1] of a batch."""
        if aug_smooth:
            return self._smoothed(lambda x: self.forward(x, targets, eigen_smooth), input_tensor)
        targets = listed(targets)
        native = self._native(input_tensor, targets)
        if native is None:
            cams = self.base_cam_per_layer
            maps = np.array([cam(input_tensor, targets, eigen_smooth=eigen_smooth) for cam in cams])
            return scale_cam_image(maps.prod(axis=0))
        refine = fastcam.RefineCAM(native.model, native.target_layers, native.reshape_transform, lambda *_: native)
        result = refine(input_tensor, targets, eigen_smooth)
        for cam in self.base_cam_per_layer:
            cam.outputs = refine.outputs
        return result

    def _native(self, x: Tensor, targets: Any) -> Any:
        """fastcam's own base method for all layers together; None where the CAMs inside differ or are changed."""
        first, *others = self.base_cam_per_layer
        layers = [m for cam in self.base_cam_per_layer for m in getattr(cam, "target_layers", ())]
        if len(layers) != len(others) + 1 or any(native_base(cam, x, targets) is None for cam in others):
            return None
        alike = all(
            type(cam) is type(first)
            and cam.model is first.model
            and cam.reshape_transform is first.reshape_transform
            and cam.native_options() == first.native_options()
            for cam in others
        )
        return native_base(first, x, targets, layers) if alike else None


class SESS(Combined):
    """`fastcam.SESS` with pytorch-grad-cam's interface; its steps, an image at a time, where one is overridden."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: Callable[..., Any] = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2 / 7,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        """Arguments as in `fastcam.SESS`; further options go to `base_method`."""
        self.base_cam = base_method(model, target_layers, reshape_transform, **kwargs)
        self.model = self.base_cam.model
        self.device = self.base_cam.device
        self.scales, self.num_scales, self.scale_step_ratio = scales, num_scales, scale_step_ratio
        self.window_size, self.step_size = window_size, step_size
        self.pre_filter_ratio, self.theta, self.pool, self.smooth = pre_filter_ratio, theta, pool, smooth
        self.use_softmax_scores, self.batch_size = use_softmax_scores, batch_size
        self._own(None)  # checks the arguments

    def forward(
        self, input_tensor: Tensor, targets: Any = None, eigen_smooth: bool = False, aug_smooth: bool = False
    ) -> np.ndarray:
        """The maps float32 `(B, H, W)` in [0, 1] of a batch."""
        if aug_smooth:
            return self._smoothed(lambda x: self.forward(x, targets, eigen_smooth), input_tensor)
        targets, x = listed(targets), input_tensor.detach().to(self.device)
        if targets is not None and len(targets) not in (1, len(x)):
            raise ValueError(f"Expected one target per image. Got {len(targets)} targets for {len(x)} images.")
        native = None if self._is_changed() else native_base(self.base_cam, x, targets)
        if native is not None:
            own = self._own(native)
            maps = own(x, targets, eigen_smooth)
            self.base_cam.outputs = own.outputs
            return maps
        each = [None] * len(x) if targets is None else targets * (len(x) // len(targets))
        singles = zip(x.split(1), each, strict=True)
        return scale_cam_image([self.forward_single_image(i, t, eigen_smooth) for i, t in singles])

    def forward_single_image(self, input_tensor: Tensor, target: Any, eigen_smooth: bool = False) -> np.ndarray:
        """The map `(H, W)` of one image `(1, k, H, W)`, not scaled."""
        H, W = input_tensor.shape[-2:]
        window = self.window_size or min(H, W)
        target = self.get_target(input_tensor) if target is None else target
        patches, places = self.collect_patches(input_tensor, window, self.step_size or window)
        scores = self.get_scores(patches, target)
        order = np.argsort(scores)[int(len(scores) * self.pre_filter_ratio) :]
        best = scores[order[-1]]
        weights = scores[order] / best if best > 0 else np.ones(len(order), np.float32)
        total, count = np.zeros((2, H, W), np.float32)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            batch = torch.cat([patches[i] for i in part])
            cams = self.base_cam(batch, [target] * len(part), eigen_smooth=eigen_smooth)
            for cam, weight, i in zip(cams, weights[start:], part, strict=False):
                pasted = self.paste_cam(cam * weight, places[i], (H, W))
                if self.pool == "max":
                    total = np.maximum(total, pasted)
                    continue
                above = pasted > self.theta
                total += pasted * above
                count += above
        mean = total if self.pool == "max" else np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return blur(torch.from_numpy(mean)[None, None], 11, 5.0)[0, 0].numpy() if self.smooth else mean

    def get_scales(self, window_size: int) -> Sequence[int]:
        """The lengths of the image's shorter side."""
        return self._own(None).get_scales(window_size)

    def collect_patches(self, input_tensor: Tensor, window_size: int, step_size: int) -> tuple[list[Tensor], Any]:
        """The patches, each `(B, k, window, window)`, and their places (x1, y1, scaled width, scaled height)."""
        own = self._own(None)
        own.scales = self.get_scales(window_size)
        return own.collect_patches(input_tensor, window_size, step_size)

    def get_target(self, input_tensor: Tensor) -> Any:
        """The predicted class of an image `(1, k, H, W)`."""
        with torch.no_grad():
            return fastcam.ClassifierOutputTarget(self.model(input_tensor)[0].argmax(-1).item())

    def get_scores(self, patches: Sequence[Tensor], target: Any) -> np.ndarray:
        """The target's value for each patch, `(P,)`, not below 0."""
        scores = []
        with torch.no_grad():
            for start in range(0, len(patches), self.batch_size):
                outputs = self.model(torch.cat(list(patches[start : start + self.batch_size])))
                outputs = outputs.softmax(-1) if self.use_softmax_scores else outputs
                scores += [target(output) for output in outputs]
        return torch.stack(scores).clamp(min=0).float().cpu().numpy()

    def paste_cam(self, cam: np.ndarray, coordinates: Sequence[int], target_size: Sequence[int]) -> np.ndarray:
        """A patch's map, put where it lies in the scaled image and brought to the size (H, W)."""
        x, y, width, height = coordinates
        canvas = torch.zeros(1, height, width)
        canvas[0, y : y + cam.shape[0], x : x + cam.shape[1]] = torch.from_numpy(np.float32(cam))
        return ops.resize(canvas, tuple(target_size))[0].numpy()

    def _is_changed(self) -> bool:
        return any(getattr(type(self), n) is not f or n in vars(self) for n, f in _SESS.items())

    def _own(self, native: Any) -> Any:
        """fastcam's own method with the settings of now, over its own method of the CAM inside."""
        return fastcam.SESS(
            self.model,
            list(self.base_cam.target_layers),
            self.base_cam.reshape_transform,
            lambda *arguments: native or fastcam.GradCAM(*arguments),
            **{name: getattr(self, name) for name in _SETTINGS},
        )


_SETTINGS = (
    *("scales", "num_scales", "scale_step_ratio", "window_size", "step_size", "pre_filter_ratio", "theta", "pool"),
    *("smooth", "use_softmax_scores", "batch_size"),
)
_STEPS = ("forward_single_image", "get_scales", "collect_patches", "get_target", "get_scores", "paste_cam")
_SESS = {name: getattr(SESS, name) for name in _STEPS}
