"""One gradient an image: saliency, guided backpropagation, the deconvnet, and guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.layers import default_layer, image_channel_dim, layer_name
from fastcam.methods import GradCAM
from fastcam.record import unwrap
from fastcam.targets import Targets, per_image
from fastcam.visualize.gradients import Found, InputGradient, Run


class Saliency(InputGradient):
    """The gradient of the class score (Simonyan et al. 2013, arXiv:1312.6034).

    g = dy / dx, of the logit y;  map = max_c |g_c|

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> result = Saliency(model)(torch.rand(2, 1, 8, 8), targets=1)
    >>> result.data.shape, result.map().shape, result.target
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 8, 8]), tensor([1, 1]))
    """


class InputXGradient(InputGradient):
    """The gradient times the input (Shrikumar et al. 2016, arXiv:1605.01713): x dy / dx, channel by channel.

    In a network of linear layers and ReLUs without biases its sum is the score itself.
    """

    def of_rows(self, run: Run, inputs: Inputs, targets: Targets) -> Found:
        found = super().of_rows(run, inputs, targets)
        return found._replace(data=found.data * inputs.image.detach().unsqueeze(1))


class GuidedBackprop(InputGradient):
    """Guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806).

    dy / dx with max(g, 0) [z > 0] instead of g [z > 0] at every rectifier, z its input and g the gradient of its output

    It shows details, but hardly depends on the class or on the weights of late layers (Adebayo et al., NeurIPS 2018).

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> GuidedBackprop(model).attribute(torch.rand(2, 1, 8, 8), targets=1).shape
    torch.Size([2, 1, 8, 8])
    """

    rule = "guided"


class DeconvNet(InputGradient):
    """Deconvnet (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901).

    dy / dx with max(g, 0) instead of g [z > 0] at every rectifier, z its input and g the gradient of its output
    """

    rule = "deconvolve"


class GuidedGradCAM(GuidedBackprop):
    """Guided Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391): guided backprop's detail where Grad-CAM looks.

    L = Grad-CAM's map in [0, 1] at the size of the input, times guided backpropagation's gradient, pixel by pixel
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any = None,
        reshape_transform: Callable[[Any], Tensor] | str | None = None,
    ) -> None:
        """Arguments as in `GradCAM`."""
        super().__init__(model)
        self.cam = GradCAM(model, target_layers, reshape_transform)

    @property
    def target_layers(self) -> list[nn.Module] | None:
        """Those of Grad-CAM; None for the last convolutional stage."""
        return self.cam.target_layers

    def _explain(self, inputs: Inputs, targets: Targets) -> Found:
        found = super()._explain(inputs, targets)
        maps = self.cam.attribute(inputs, targets)
        maps = maps.unsqueeze(1) if per_image(targets) is None else maps  # (B, T, *S)
        image = inputs.image
        channel = image_channel_dim(unwrap(self.model), image)
        return found._replace(data=found.data * maps.unsqueeze(channel - image.ndim).to(found.data.dtype))

    def _layer(self, inputs: Inputs) -> str | list[str] | None:
        layers = self.target_layers or [default_layer(self.model, inputs)]
        names = [layer_name(self.model, layer) for layer in layers]
        return names[0] if len(names) == 1 else names


class GuidedBackpropReLUModel:
    """Guided backpropagation as pytorch-grad-cam calls it, for batches too; see `GuidedBackprop`."""

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        """The device is the model's own; the argument is there for its name, and moves the model if it is given."""
        self.model = model if device is None else model.to(device)

    def __call__(self, input_img: Tensor, target_category: Any = None) -> np.ndarray:
        """float32 `(H, W, k)` for a batch of one image, otherwise `(B, H, W, k)`; target None: the predicted class."""
        gradient = GuidedBackprop(self.model).attribute(input_img, target_category)
        pixels = gradient.movedim(1, -1).float().cpu().numpy()
        return pixels[0] if len(pixels) == 1 else pixels
