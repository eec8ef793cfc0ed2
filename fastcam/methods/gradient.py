"""The Grad-CAM family: a weight per channel, or per channel and position, from the gradient of the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.head import linear_head
from fastcam.inputs import Inputs
from fastcam.layers import default_layer, layer_name
from fastcam.methods.base import BaseCAM, warn
from fastcam.record import Run
from fastcam.targets import Targets, are_callables, class_indices, find_logits, logits_of, per_image

_WEIGHTS = 2**26  # numbers of weights that are looked up at once


class GradientCAM(BaseCAM):
    """map = sum_c W_c A_c, W from the activations A and the gradients G = d target / dA (both `(B, C, *S)`)."""

    is_capturable = True
    weighting = ""

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        A = self.spatial(run, run.activations)
        if not eigen_smooth and (maps := self._of_linear_head(run, A, targets)) is not None:
            return maps
        lows = []
        for G in self.gradients(run, targets):
            self._warn_if_zero(run, G)
            lows.append([self.low_map(a, g, eigen_smooth) for a, g in zip(A, G, strict=True)])
        return [torch.stack(layer, 1).flatten(0, 1) if len(lows) > 1 else layer[0] for layer in zip(*lows, strict=True)]

    def low_map(self, A: Tensor, G: Tensor, eigen_smooth: bool) -> Tensor:
        """The low map `(B, P, *S)` of one layer and one target per image."""
        if eigen_smooth:
            return ops.principal_component(ops.weighted_activations(A, G, self.weighting), self.sign)
        return ops.channel_reduce(A, G, self.weighting)

    def _of_linear_head(self, run: Run, A: Sequence[Tensor], targets: Targets) -> list[Tensor] | None:
        """The maps of several classes an image by one matrix product, where pooling and a linear layer follow only."""
        logits = find_logits(run.output)
        plain = self.reshape_transform is None and type(self).low_map is GradientCAM.low_map
        plain = plain and not are_callables(targets)
        if per_image(targets) is None or len(A) > 1 or not plain or logits is None:
            return None
        try:
            W = linear_head(run.attached(run.layers[0]), logits)  # (K, C)
        except ValueError:
            return None
        indices = class_indices(targets, logits)  # (B, T)
        step = indices.shape[1] if _alike(indices) else max(1, _WEIGHTS // (len(indices) * W.shape[1]))
        parts = []
        for some in indices.split(step, 1):
            maps = ops.pooled_maps(A[0], _rows_of(W, some), self.weighting)
            if maps is None:
                return None
            parts.append(maps.unflatten(0, some.shape))
        return [torch.cat(parts, 1).flatten(0, 1)]

    def _warn_if_zero(self, run: Run, gradients: Sequence[Tensor]) -> None:
        """Warn where the gradient is 0 everywhere; a GPU, which would have to wait, is asked until a layer is alive."""
        for layer, G in zip(run.layers, gradients, strict=True):
            if G.is_cuda and layer in self._with_gradient:
                continue
            if G[:1, :1].any() or G.any():  # the first channel tells, mostly
                self._with_gradient.add(layer)
                continue
            warn(
                f"the gradient of the target is zero everywhere at layer {layer_name(self.model, layer)!r}, "
                f"its map is empty{self._better_than(layer, run.inputs)}"
            )

    def _better_than(self, layer: nn.Module, x: Inputs) -> str:
        try:
            better = default_layer(self.model, x)
        except ValueError:  # no such layer in the model
            return ""
        return f"; a better layer is {layer_name(self.model, better)!r}" if better is not layer else ""


def _alike(indices: Tensor) -> bool:
    """Whether all images have the same classes `(B, T)`; a GPU is not asked."""
    known = not indices.stride(0) or len(indices) == 1
    return known or not indices.is_cuda and bool((indices == indices[0]).all())


def _rows_of(W: Tensor, indices: Tensor) -> Tensor:
    """The weights `(B, T, C)` of classes `(B, T)`, or `(T, C)` where all images have the same."""
    if not _alike(indices):
        return W[indices]
    first = indices[0]
    everything = not indices.is_cuda and torch.equal(first, torch.arange(len(W)))
    return W if everything else W[first]


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391).

    w_c = mean_ij G_cij,  map = sum_c w_c A_c

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
    >>> GradCAM(model, "0")(torch.rand(2, 1, 8, 8), targets=1).shape
    (2, 8, 8)
    """

    weighting = "gradcam"


class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, arXiv:1710.11063), for a target that enters through exp.

    w_c = sum_ij relu(G) a,  a = G² / (2 G² + G³ sum_ij A + 1e-6), a = 0 where G = 0,  map = sum_c w_c A_c

    The 1e-6 makes it depend on the gradient's scale.
    """

    weighting = "gradcam++"


class XGradCAM(GradientCAM):
    """Axiom-based Grad-CAM (Fu et al., BMVC 2020, arXiv:2008.02312).

    w_c = sum_ij G A / (sum_ij A + 1e-7),  map = sum_c w_c A_c
    """

    weighting = "xgradcam"


class HiResCAM(GradientCAM):
    """HiResCAM (Draelos and Carin 2020, arXiv:2011.08891).

    map = sum_c G_c A_c, position by position
    """

    weighting = "hirescam"


class GradCAMElementWise(GradientCAM):
    """Element-wise Grad-CAM (Pillai and Pirsiavash, AAAI 2021).

    map = sum_c relu(G_c A_c)
    """

    weighting = "gradcamelementwise"


class LayerCAM(GradientCAM):
    """LayerCAM (Jiang et al., IEEE TIP 2021).

    map = sum_c relu(G_c) A_c
    """

    weighting = "layercam"


class EigenGradCAM(HiResCAM):
    """EigenCAM's projection of G A: class-discriminative where EigenCAM is not.

    map = first principal component of (G A), see `EigenCAM`; `eigen_smooth` changes nothing
    """

    def low_map(self, A: Tensor, G: Tensor, eigen_smooth: bool) -> Tensor:
        return super().low_map(A, G, eigen_smooth=True)


class SegEigenCAM(HiResCAM):
    """Seg-Eigen-CAM (Chung and Ying, Applied Sciences 15(13), 2025), for segmentation.

    map = first principal component of (|G| A), its largest absolute value positive; `eigen_smooth` changes nothing
    """

    def low_map(self, A: Tensor, G: Tensor, eigen_smooth: bool) -> Tensor:
        p = ops.principal_component(ops.wide(G).abs() * ops.wide(A))
        low, high = p.flatten(1).aminmax(dim=1)
        return torch.where((low.abs() > high.abs()).view(-1, *[1] * (p.ndim - 1)), -p, p)


class CAM(BaseCAM):
    """Class activation mapping (Zhou et al., CVPR 2016, arXiv:1512.04150).

    map = sum_c W_kc A_c, W `(K, C)` the weights of the linear layer behind global average pooling, k the class

    Only for networks in which exactly these two follow the target layer (the autograd graph is asked), otherwise
    ValueError. Targets are class indices. `eigen_smooth` projects the weighted activations, as elsewhere.
    """

    looks_inside = True

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        if are_callables(targets):
            raise ValueError("CAM explains classes: targets must be None or class indices, got callables")
        logits = logits_of(run.output)
        indices = class_indices(targets, logits)  # (B,) or (B, T)
        lows = []
        for layer, A in zip(run.layers, self.spatial(run, run.activations), strict=True):
            weights = linear_head(run.attached(layer), logits)[indices].view(-1, A.shape[1])  # (B * T, C)
            lows.append(self.weighted_map(A, weights, eigen_smooth))
        return lows
