"""Guided backpropagation by the names of `pytorch_grad_cam.guided_backprop`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.visualize.saliency import GuidedBackprop


class GuidedBackpropReLU(torch.autograd.Function):
    """max(x, 0), with the gradient max(g, 0) [x > 0]."""

    @staticmethod
    def forward(ctx: Any, input_img: Tensor) -> Tensor:
        ctx.save_for_backward(input_img > 0)
        return input_img.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].clamp(min=0) * ctx.saved_tensors[0]


class GuidedBackpropReLUasModule(nn.Module):
    """`GuidedBackpropReLU` as a module."""

    def forward(self, input_img: Tensor) -> Tensor:
        return GuidedBackpropReLU.apply(input_img)


class _Anyway(GuidedBackprop):
    """The plain gradient where the model has no rectifier, which pytorch-grad-cam gives without a word."""

    def _check_rectifiers(self, net: nn.Module, score: Tensor) -> None:
        """Any number of them is right."""


class GuidedBackpropReLUModel:
    """`fastcam.GuidedBackprop` as pytorch-grad-cam calls it, for batches too."""

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        """The model is switched to evaluation mode and, if a device is given, moved there."""
        self.model = model.eval()
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if device is not None:
            self.device = torch.device(device)
            self.model = model.to(self.device)

    def forward(self, input_img: Tensor) -> Any:
        """The model's output."""
        return self.model(input_img)

    def __call__(self, input_img: Tensor, target_category: Any = None) -> np.ndarray:
        """float32 `(H, W, k)` for a batch of one image, otherwise `(B, H, W, k)`; target None: the predicted class."""
        gradient = _Anyway(self.model).attribute(input_img, target_category).movedim(1, -1).float().cpu().numpy()
        return gradient[0] if len(gradient) == 1 else gradient
