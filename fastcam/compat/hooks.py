"""Activations and gradients of layers by hooks that stay in the model, for code that reads them itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastcam.record import first_tensor


class ActivationsAndGradients:
    """pytorch-grad-cam's recorder. After `outputs = recorder(x)` and a backward pass,

    activations, gradients   hold a tensor `(B, C, *S)` a layer, on the CPU, in the order in which the layers ran

    The hooks stay until `release()`, so every other call of the model is recorded too. detach=False keeps the layers'
    own tensors in the graph, on their device and without reshape_transform, for second derivatives.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None,
        detach: bool = True,
    ) -> None:
        self.model = model
        self.gradients: list[Tensor] = []
        self.activations: list[Tensor] = []
        self.reshape_transform = reshape_transform
        self.detach = detach
        self.handles: list[Any] = []
        for layer in target_layers:
            self.handles.append(layer.register_forward_hook(self.save_activation))
            self.handles.append(layer.register_forward_hook(self.save_gradient))

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        """The forward hook that keeps a layer's output."""
        self.activations.append(self._copy(output) if self.detach else output)

    def save_gradient(self, module: nn.Module, input: Any, output: Any) -> None:
        """The forward hook that asks for the gradient of a layer's output, or of the first tensor in it."""
        tensor, put_back = first_tensor(module, output)
        if not tensor.requires_grad:
            return

        def keep(gradient: Tensor) -> None:  # the backward pass meets the last layer first
            kept = self._copy(put_back(gradient)) if self.detach else gradient
            self.gradients = [kept, *self.gradients]

        tensor.register_hook(keep)

    def __call__(self, x: Any) -> Any:
        """The model's output for x; what was recorded before is dropped."""
        self.gradients = []
        self.activations = []
        return self.model(x)

    def clear(self) -> None:
        """Drop what was recorded."""
        self.activations = []
        self.gradients = []

    def release(self) -> None:
        """Drop what was recorded and take the hooks out of the model."""
        self.clear()
        while self.handles:
            self.handles.pop().remove()

    def _copy(self, output: Any) -> Tensor:
        """A copy on the CPU, which what follows the layer cannot write into."""
        t = output if self.reshape_transform is None else self.reshape_transform(output)
        return t.detach().to("cpu", copy=True)


class LateRecorder(ActivationsAndGradients):
    """A recorder that is made after the call that it is asked about: `record()` runs that again, if it comes to it."""

    def __init__(self, record: Callable[[ActivationsAndGradients], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        del self.activations, self.gradients
        self._record = record

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        if "activations" not in vars(self):  # another call of the model comes first
            self.clear()
        super().save_activation(module, input, output)

    def __getattr__(self, name: str) -> Any:
        if name not in ("activations", "gradients"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.clear()
        self._record(self)
        return vars(self)[name]
