"""Gradients of the input: guided backpropagation, the deconvnet, and guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from fastcam.inputs import inputs_of
from fastcam.intercept import intercepted
from fastcam.layers import image_channel_dim
from fastcam.methods import GradCAM
from fastcam.record import call, check_not_scripted, evaluation, owned, unwrap
from fastcam.targets import Targets, find_logits, per_image, scores
from fastcam.visualize.rectifiers import Rectifiers, missed


class _RectifierGradient:
    """The gradient of the target's score with respect to the input, by another rule at every rectifier.

    After a call `outputs` holds the logits, detached, and `rectifiers` how many rectifiers the forward pass met.
    """

    rule = ""

    def __init__(self, model: nn.Module) -> None:
        """Bind the method to a model, which is left exactly as it was. TypeError for what is no torch.nn.Module."""
        unwrap(model)
        self.model = model
        self.outputs: Tensor | None = None
        self.rectifiers = 0

    def __call__(
        self, input_tensor: Any, targets: Targets = None, *, forward_kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Signed gradients `(B, k, *S)` on the model's device, `(B, T, k, *S)` for targets `(B, T)`.

        input_tensor   `(B, k, *S)`, as the model takes it; its `requires_grad` and `.grad` stay as they are. Several
                       inputs as for `GradCAM`: the gradient is that of the image
        targets, forward_kwargs   as for `GradCAM`
        Raises ValueError if the model met no rectifier, where this would be the plain gradient, and as `GradCAM` does;
        RuntimeError if no gradient can flow from the output to the input.
        """
        inputs = inputs_of(input_tensor, forward_kwargs)
        net = unwrap(self.model)
        with evaluation(net), ExitStack() as stack:
            compiled = [m for m in net.modules() if m is not net and getattr(m, "_compiled_call_impl", None)]
            stack.enter_context(intercepted(compiled, lambda _, forward, args, kwargs: forward(*args, **kwargs)))
            inputs = owned(net, inputs)
            x = inputs.image.detach().requires_grad_()
            with torch.enable_grad():
                with Rectifiers(self.rule) as rectifiers:
                    # A model may begin with an operation in place.
                    output = call(net, inputs.map(torch.Tensor.detach).with_image(x).clone())
                columns = scores(output, targets, len(x)).view(len(x), -1).unbind(1)
            logits = find_logits(output)
            self.outputs = None if logits is None else logits.detach()
            self.rectifiers = rectifiers.met
            self._check(net, columns[0])
            gradients = [self._gradient(c, x, keep=n < len(columns)) for n, c in enumerate(columns, 1)]
        return gradients[0] if per_image(targets) is None else torch.stack(gradients, 1)

    def __enter__(self) -> _RectifierGradient:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo."""

    def _check(self, net: nn.Module, score: Tensor) -> None:
        if not score.requires_grad:
            raise self._cut_off()
        if not self.rectifiers:
            check_not_scripted(net, "its ReLUs")
            raise ValueError(
                f"{type(net).__name__} met no ReLU in its forward pass: {type(self).__name__} would be the plain "
                "gradient (GELU, SiLU and leaky rectifiers are left alone)"
            )
        if (name := missed(score)) is not None:
            raise RuntimeError(
                f"{type(net).__name__} rectifies out of reach of another backward rule ({name}): compiled or scripted "
                "code, say; use the plain modules"
            )

    def _gradient(self, score: Tensor, x: Tensor, keep: bool) -> Tensor:
        try:
            gradient = torch.autograd.grad(score, x, torch.ones_like(score), retain_graph=keep, allow_unused=True)[0]
        except CheckpointError as error:
            raise RuntimeError(
                f"{type(unwrap(self.model)).__name__} checkpoints activations, which are computed again out of "
                "reach of another backward rule: switch that off"
            ) from error
        if gradient is None:
            raise self._cut_off()
        return gradient

    def _cut_off(self) -> RuntimeError:
        return RuntimeError(
            f"the output of {type(unwrap(self.model)).__name__} carries no gradient back to the input: its forward "
            "detaches it or switches gradients off"
        )


class GuidedBackprop(_RectifierGradient):
    """Guided backpropagation (Springenberg et al. 2014, arXiv:1412.6806).

    dy / dx with max(g, 0) [z > 0] instead of g [z > 0] at every rectifier, z its input and g the gradient of its output

    It shows details, but hardly depends on the class or on the weights of late layers (Adebayo et al., NeurIPS 2018).

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> GuidedBackprop(model)(torch.rand(2, 1, 8, 8), targets=1).shape
    torch.Size([2, 1, 8, 8])
    """

    rule = "guided"


class DeconvNet(_RectifierGradient):
    """Deconvnet (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901).

    dy / dx with max(g, 0) instead of g [z > 0] at every rectifier, z its input and g the gradient of its output
    """

    rule = "deconvolve"


class GuidedBackpropReLUModel:
    """Guided backpropagation as pytorch-grad-cam calls it, for batches too; see `GuidedBackprop`."""

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        """The device is the model's own; the argument is there for its name, and moves the model if it is given."""
        self.model = model if device is None else model.to(device)

    def __call__(self, input_img: Tensor, target_category: Any = None) -> np.ndarray:
        """float32 `(H, W, k)` for a batch of one image, otherwise `(B, H, W, k)`; target None: the predicted class."""
        gradient = GuidedBackprop(self.model)(input_img, target_category).movedim(1, -1).float().cpu().numpy()
        return gradient[0] if len(gradient) == 1 else gradient


class GuidedGradCAM:
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
        self.cam = GradCAM(model, target_layers, reshape_transform)
        self.guided = GuidedBackprop(model)

    @property
    def outputs(self) -> Tensor | None:
        """The logits of the last call, detached."""
        return self.guided.outputs

    @property
    def target_layers(self) -> list[nn.Module] | None:
        """Those of Grad-CAM; None for the last convolutional stage."""
        return self.cam.target_layers

    def __call__(
        self, input_tensor: Any, targets: Targets = None, *, forward_kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Signed, `(B, k, H, W)` on the model's device, `(B, T, k, H, W)` for targets `(B, T)`; errors of both."""
        gradient = self.guided(input_tensor, targets, forward_kwargs=forward_kwargs)
        maps = self.cam.attribute(input_tensor, targets, forward_kwargs=forward_kwargs)
        image = inputs_of(input_tensor).image
        channel = image_channel_dim(unwrap(self.guided.model), image)
        return gradient * maps.unsqueeze(channel - image.ndim).to(gradient.dtype)

    def __enter__(self) -> GuidedGradCAM:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo."""
