"""Methods made of another method's maps: a sharper target, or the product over layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.inputs import Inputs
from fastcam.methods.base import BaseCAM
from fastcam.methods.fusion import product, product_of_maps
from fastcam.methods.gradient import GradCAM, GradCAMPlusPlus
from fastcam.model_targets import FinerWeightedTarget
from fastcam.record import Run
from fastcam.targets import Targets, are_callables, class_indices, logits_of, per_image

_COMPARED = (1, 2, 3)  # the most similar classes, by place


class CombinedCAM(BaseCAM):
    """A method that asks another one, `base_cam`, for the low maps of a run."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        base_method: Callable[..., BaseCAM] = GradCAM,
        **kwargs: Any,
    ) -> None:
        """Arguments as in `GradCAM`, the class of the method that is asked, and options for it."""
        super().__init__(model, target_layers, reshape_transform)
        self.base_cam = base_method(model, self.target_layers, reshape_transform, **kwargs)
        if not isinstance(self.base_cam, BaseCAM):
            raise TypeError(f"base_method must be a method such as GradCAM, it gives {type(self.base_cam).__name__}")
        self.sign, self.interpolation = self.base_cam.sign, self.base_cam.interpolation
        self.optimize, self._fast = self.base_cam.optimize, self.base_cam._fast
        self.uses_gradients = self.base_cam.uses_gradients
        self.class_discriminative = self.base_cam.class_discriminative

    def at_once(self, x: Inputs) -> int:
        return self.base_cam.at_once(x)

    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> AbstractContextManager[Run]:
        return self.base_cam.recorded(x, layers, complete)

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        return self.base_cam.low_maps(run, targets, eigen_smooth)


class FinerCAM(CombinedCAM):
    """Finer-CAM (Zhang et al., CVPR 2025, arXiv:2501.11309): what tells a class from those the model finds similar.

    The map of `base_method` for the target sum_i p_i (y_c - alpha y_i) / sum_i p_i, see `FinerWeightedTarget`, i over
    the classes whose logits are nearest to that of c.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> FinerCAM(model, "0")(torch.rand(2, 1, 8, 8), alpha=0.6).shape
    (2, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        base_method: Callable[..., BaseCAM] = GradCAM,
        *,
        alpha: float = 1.0,
        comparison_categories: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Arguments as in `GradCAM`, the class of the method, options for it, and what a call takes by default."""
        super().__init__(model, target_layers, reshape_transform, base_method, **kwargs)
        self.alpha, self.comparison_categories = alpha, comparison_categories

    def __call__(  # type: ignore[override]
        self,
        input_tensor: Any,
        targets: Targets = None,
        eigen_smooth: bool = False,
        alpha: float | None = None,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
        aug_smooth: bool = False,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """The maps of a batch as numpy float32, as from `GradCAM`; in the order of pytorch-grad-cam's arguments.

        targets                 None or class indices: the classes c that are compared with others, the predicted ones
                                by default; callables are explained as they are
        alpha                   strength of the comparison, 1 unless the constructor was told; 0 is the map of the
                                class itself
        comparison_categories   which classes to compare with, by their place among all sorted by the distance of their
                                logits from y_c: 0 is c, 1 the most similar; (1, 2, 3) by default; too large ones are
                                left out
        target_idx              one class c for the whole batch, in place of targets
        Raises ValueError if there is no class to compare with; otherwise as `GradCAM`.
        """
        bound = self._bound(alpha, comparison_categories)
        targets = target_idx if targets is None else targets
        maps = BaseCAM.__call__(bound, input_tensor, targets, aug_smooth, eigen_smooth, forward_kwargs=forward_kwargs)
        self.outputs = bound.outputs
        return maps

    def attribute(
        self,
        input_tensor: Any,
        targets: Targets = None,
        *,
        alpha: float | None = None,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
        **options: Any,
    ) -> Any:
        """The maps as a tensor; arguments as in a call and as in `GradCAM.attribute`."""
        bound = self._bound(alpha, comparison_categories)
        maps = BaseCAM.attribute(bound, input_tensor, target_idx if targets is None else targets, **options)
        self.outputs = bound.outputs
        return maps

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        first = targets[0] if isinstance(targets, list | tuple) and targets else targets
        if run.output is not None and not (are_callables(targets) or callable(first)):  # a `ClassifierOutputTarget`
            targets = self.compared(logits_of(run.output), targets)
        return super().low_maps(run, targets, eigen_smooth)

    def _bound(self, alpha: float | None, comparison_categories: Sequence[int] | None) -> FinerCAM:
        """A copy with the settings of one call, so that calls from several threads keep apart."""
        bound = copy.copy(self)
        bound.alpha = self.alpha if alpha is None else alpha
        if comparison_categories is not None:
            bound.comparison_categories = comparison_categories
        return bound

    def compared(self, logits: Tensor, targets: Targets) -> list[Any]:
        """A target per image, or T of them, that compares the class with others."""
        classes = class_indices(targets, logits)
        B, K = logits.shape
        given = _COMPARED if self.comparison_categories is None else self.comparison_categories
        places = [p for p in given if p < K]
        if not places:
            raise ValueError(f"FinerCAM compares classes: none of the places {tuple(given)} is among {K} classes")
        y = ops.wide(logits.detach())
        distance = (y.unsqueeze(1) - y.gather(1, classes.view(B, -1)).unsqueeze(2)).abs()  # (B, T, K)
        # numpy's sort, whose order of equal distances is that of pytorch-grad-cam
        ordered = np.argsort(distance.cpu().numpy(), axis=-1)
        compared = [[FinerWeightedTarget(int(o[0]), o[places].tolist(), self.alpha) for o in row] for row in ordered]
        return [row[0] for row in compared] if per_image(targets) is None else compared


class RefineCAM(CombinedCAM):
    """RefineCAM (arXiv:2605.14641): the product of several layers' maps, which removes the noise of early layers.

    map = min_max(prod_l map_l), map_l the finished map in [0, 1] of `base_method` at layer l

    One run of the model serves all layers; without `target_layers` it is one layer, with nothing to refine.
    `attribute(normalize=False)` gives the product itself, `size=None` at the size of the layer with most positions.

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> RefineCAM(model, ["0"])(torch.rand(2, 1, 8, 8), targets=1).shape
    (2, 8, 8)
    """

    fusion = "product"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
        base_method: Callable[..., BaseCAM] = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        """Arguments as in `GradCAM`, the class of the method whose maps are multiplied, and options for it."""
        super().__init__(model, target_layers, reshape_transform, base_method, **kwargs)

    def __call__(  # type: ignore[override]
        self,
        input_tensor: Any,
        targets: Targets = None,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """The maps of a batch as numpy float32, as from `GradCAM`; in the order of pytorch-grad-cam's arguments."""
        return super().__call__(input_tensor, targets, aug_smooth, eigen_smooth, forward_kwargs=forward_kwargs)

    def finished(self, lows: Sequence[Tensor], normalize: bool, size: Sequence[int] | None) -> list[Tensor]:
        size = max((low.shape[2:] for low in lows), key=torch.Size.numel) if size is None else size
        return [(product if normalize else product_of_maps)(lows, size, self.interpolation)]
