"""pytorch-grad-cam's methods, each a direct subclass of its BaseCAM: users list `BaseCAM.__subclasses__()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.compat.base_cam import BaseCAM, as_numpy
from fastcam.compat.projections import get_2d_projection, get_2d_projection_with_sign_correction


class _ByName:
    """The constructor of all methods without options."""

    flags: dict[str, bool] = {}

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, **self.flags)  # type: ignore[call-arg]


class _ChannelWeights(_ByName):
    """A weight per channel from activations and gradients, which may be numpy arrays or tensors."""

    weighting = ""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        A, G = (torch.from_numpy(as_numpy(t)) for t in (activations, grads))
        if A.ndim not in (4, 5):
            raise ValueError(
                f"Invalid grads shape. Shape of grads should be 4 (2D image) or 5 (3D image), got {A.ndim}."
            )
        return ops.channel_weights(A, G, self.weighting).numpy()


class _Maps(_ByName):
    """A map that is no weighted sum of channels."""

    weighting = ""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        return self.low_map(target_layer, as_numpy(activations), grads, eigen_smooth)

    def low_map(self, layer: Any, A: np.ndarray, grads: Any, eigen_smooth: bool) -> np.ndarray:
        """The map `(B, *S)` of one layer."""
        G = torch.from_numpy(as_numpy(grads))
        weighted = ops.weighted_activations(torch.from_numpy(A), G, self.weighting).numpy()
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)


class _OfActivations(_Maps):
    """fastcam's map of the activations alone."""

    flags = {"uses_gradients": False}

    def low_map(self, layer: Any, A: np.ndarray, grads: Any, eigen_smooth: bool) -> np.ndarray:
        return self.bound([layer]).low_map(torch.from_numpy(A), eigen_smooth).sum(1).numpy()  # type: ignore[attr-defined]


class _ByScores(_ByName):
    """A weight per channel from scores of the model, in forward passes of fastcam's own method."""

    flags = {"uses_gradients": False}

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        """The weights `(B, C)`; what the layer gives is seen anew, `activations` do not matter."""
        found: list[Tensor] = []

        def keep(A: Tensor, weights: Tensor, eigen_smooth: bool) -> Tensor:
            found.append(weights)
            return ops.channel_sum(A, weights)

        cam = self.bound([target_layers])  # type: ignore[attr-defined]
        cam.weighted_map = keep
        try:
            cam.attribute(input_tensor, targets)
        finally:
            del cam.weighted_map
        return torch.cat(found).cpu().numpy()


class GradCAM(_ChannelWeights, BaseCAM):
    """`fastcam.GradCAM` with pytorch-grad-cam's interface."""

    native = "GradCAM"
    weighting = "gradcam"


class GradCAMPlusPlus(_ChannelWeights, BaseCAM):
    """`fastcam.GradCAMPlusPlus` with pytorch-grad-cam's interface."""

    native = "GradCAMPlusPlus"
    weighting = "gradcam++"


class XGradCAM(_ChannelWeights, BaseCAM):
    """`fastcam.XGradCAM` with pytorch-grad-cam's interface."""

    native = "XGradCAM"
    weighting = "xgradcam"


class HiResCAM(_Maps, BaseCAM):
    """`fastcam.HiResCAM` with pytorch-grad-cam's interface."""

    native = "HiResCAM"
    weighting = "hirescam"


class GradCAMElementWise(_Maps, BaseCAM):
    """`fastcam.GradCAMElementWise` with pytorch-grad-cam's interface."""

    native = "GradCAMElementWise"
    weighting = "gradcamelementwise"


class LayerCAM(_Maps, BaseCAM):
    """`fastcam.LayerCAM` with pytorch-grad-cam's interface."""

    native = "LayerCAM"
    weighting = "layercam"


class EigenGradCAM(_Maps, BaseCAM):
    """`fastcam.EigenGradCAM` with pytorch-grad-cam's interface and LAPACK's sign."""

    native = "EigenGradCAM"

    def low_map(self, layer: Any, A: np.ndarray, grads: Any, eigen_smooth: bool) -> np.ndarray:
        return get_2d_projection(as_numpy(grads) * A)


class EigenCAM(_Maps, BaseCAM):
    """`fastcam.EigenCAM` with pytorch-grad-cam's interface and LAPACK's sign."""

    native = "EigenCAM"
    flags = {"uses_gradients": False}

    def low_map(self, layer: Any, A: np.ndarray, grads: Any, eigen_smooth: bool) -> np.ndarray:
        return get_2d_projection(A)


class SegEigenCAM(_Maps, BaseCAM):
    """`fastcam.SegEigenCAM` with pytorch-grad-cam's interface."""

    native = "SegEigenCAM"

    def low_map(self, layer: Any, A: np.ndarray, grads: Any, eigen_smooth: bool) -> np.ndarray:
        return get_2d_projection_with_sign_correction(np.abs(as_numpy(grads)) * A)


class FEM(_OfActivations, BaseCAM):
    """`fastcam.FEM` with pytorch-grad-cam's interface."""

    native = "FEM"

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module], reshape_transform: Any = None, k: float = 2
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.k = k

    def native_options(self) -> dict[str, Any]:
        return {"k": self.k}


class KPCA_CAM(_OfActivations, BaseCAM):
    """`fastcam.KPCA_CAM` with pytorch-grad-cam's interface."""

    native = "KPCA_CAM"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Any = None,
        kernel: Any = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.kernel = kernel
        self.gamma = gamma

    def native_options(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "gamma": self.gamma}


class RandomCAM(_ByName, BaseCAM):
    """`fastcam.RandomCAM` with pytorch-grad-cam's interface."""

    native = "RandomCAM"
    flags = {"uses_gradients": False}

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        return np.random.uniform(-1, 1, size=activations.shape[:2])


class ScoreCAM(_ByScores, BaseCAM):
    """`fastcam.ScoreCAM` with pytorch-grad-cam's interface; `batch_size` may be assigned."""

    native = "ScoreCAM"


class AblationCAM(_ByScores, BaseCAM):
    """`fastcam.AblationCAM` with pytorch-grad-cam's interface, and its numbers on layers that go below 0."""

    native = "AblationCAM"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Any = None,
        ablation_layer: Any = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.batch_size = batch_size
        self.ablation_layer = ablation_layer
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def native_options(self) -> dict[str, Any]:
        return {
            "ablation_layer": self.ablation_layer,
            "batch_size": self.batch_size,
            "ratio_channels_to_ablate": self.ratio_channels_to_ablate,
            "reference_batching": True,
        }


class ShapleyCAM(_ByName, BaseCAM):
    """`fastcam.ShapleyCAM` with pytorch-grad-cam's interface."""

    native = "ShapleyCAM"
    flags = {"compute_input_gradient": True, "detach": False}

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        """mean (G - H A / 2) over space, H A from the graph that the tensors must carry."""
        HA = torch.autograd.grad(grads, activations, activations, retain_graph=True, allow_unused=True)[0]
        weights = grads if HA is None else grads - 0.5 * HA
        if self.reshape_transform is not None:
            weights = self.reshape_transform(weights)
        return as_numpy(weights).mean(axis=tuple(range(2, weights.ndim)))

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        A = activations if self.reshape_transform is None else self.reshape_transform(activations)
        weighted = weights[(..., *[None] * (A.ndim - 2))] * as_numpy(A)
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)


class FullGrad(_ByName, BaseCAM):
    """`fastcam.FullGrad` with pytorch-grad-cam's interface; its layers are all those with a bias."""

    native = "FullGrad"
    flags = {"compute_input_gradient": True}

    def __init__(self, model: nn.Module, target_layers: Any = (), reshape_transform: Any = None) -> None:
        super().__init__(model, [], reshape_transform)

    def compute_cam_per_layer(self, input_tensor: Any, targets: Any, eigen_smooth: bool) -> Any:
        """The sum over the input and all layers, one map `(B, 1, H, W)` in a list."""
        size = self.get_target_width_height(input_tensor)
        maps = self.bound([]).attribute(
            input_tensor.detach(),
            targets,
            eigen_smooth=eigen_smooth,
            normalize=False,
            size="input" if size is None else tuple(size)[::-1],
        )
        return [maps[:, None].cpu().numpy()]
