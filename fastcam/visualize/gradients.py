"""The gradient of a score with respect to the image: what the methods of saliency share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from fastcam.images import check_contrast
from fastcam.inputs import Inputs, inputs_of
from fastcam.layers import image_channel_dim
from fastcam.record import check_not_scripted, owned, unwrap
from fastcam.targets import Targets, are_callables, class_indices, find_logits, logits_of, per_image, scores
from fastcam.visualize.attribution import Attribution
from fastcam.visualize.forward import Seen, differentiable
from fastcam.visualize.rectifiers import Rectifiers, missed

Run = Callable[[Inputs], Seen]


class Found(NamedTuple):
    """The attributions of N images, or rows made from them.

    data     `(N, T, k, *S)`, for T targets a row
    score    `(N, T)`, detached
    output   what the model returned for them
    """

    data: Tensor
    score: Tensor
    output: Any


class InputGradient:
    """A method that takes the gradient of the target's score with respect to the image, bound to a model.

    After a call `outputs` holds the logits, detached, and `rectifiers` how many ReLUs got another backward rule.
    """

    rule: str | None = None  # at every ReLU, see `Rectifiers`; None for the plain gradient

    def __init__(self, model: nn.Module) -> None:
        """Bind the method to a model, which is left exactly as it was. TypeError for what is no torch.nn.Module."""
        unwrap(model)
        self.model = model
        self.outputs: Tensor | None = None
        self.rectifiers = 0

    def __call__(
        self, input_tensor: Any, targets: Targets = None, *, forward_kwargs: Mapping[str, Any] | None = None
    ) -> Attribution:
        """The attributions with what is explained, its score and a figure; `.data` is what `attribute` gives.

        Arguments and errors as in `attribute`; images of nearly no contrast are warned of.
        """
        inputs = inputs_of(input_tensor, forward_kwargs)
        check_contrast(inputs.image, name="input_tensor", stacklevel=3)
        found = self._explain(inputs, targets)
        single = per_image(targets) is None
        x = inputs.image
        return Attribution(
            found.data.squeeze(1) if single else found.data,
            image=x.detach(),
            channel=image_channel_dim(unwrap(self.model), x),
            outputs=self.outputs,
            target=None if are_callables(targets) else class_indices(targets, logits_of(found.output)),
            score=found.score.squeeze(1) if single else found.score,
            layer=self._layer(inputs),
            settings={"method": type(self).__name__, **self._settings()},
        )

    def attribute(
        self, input_tensor: Any, targets: Targets = None, *, forward_kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Signed attributions `(B, k, *S)` on the model's device, `(B, T, k, *S)` for targets `(B, T)`.

        input_tensor   `(B, k, *S)`, as the model takes it; its `requires_grad` and `.grad` stay as they are. Several
                       inputs as for `GradCAM`: the gradient is that of the image
        targets, forward_kwargs   as for `GradCAM`; a class index means the logit
        Raises what `GradCAM` raises; RuntimeError if no gradient can flow from the output to the input; with another
        rule at ReLUs ValueError if the model met none, where this would be the plain gradient.
        """
        found = self._explain(inputs_of(input_tensor, forward_kwargs), targets)
        return found.data.squeeze(1) if per_image(targets) is None else found.data

    def __enter__(self) -> InputGradient:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(unwrap(self.model)).__name__})"

    def _explain(self, inputs: Inputs, targets: Targets) -> Found:
        with differentiable(self.model, []) as run:
            found = self._found(run, owned(unwrap(self.model), inputs), targets)
        logits = find_logits(found.output)
        self.outputs = None if logits is None else logits.detach()
        return found

    def _found(self, run: Run, inputs: Inputs, targets: Targets) -> Found:
        """The attributions of a batch on the model's device."""
        return self.of_rows(run, inputs, targets)

    def of_rows(self, run: Run, inputs: Inputs, targets: Targets) -> Found:
        """The attributions of rows that are run at once: here the gradient itself."""
        x = inputs.image.detach().requires_grad_()
        with Rectifiers(self.rule) if self.rule else nullcontext() as rectifiers:
            output = run(inputs.map(Tensor.detach).with_image(x)).output
        columns = scores(output, targets, len(x)).view(len(x), -1)
        if not columns.requires_grad:
            raise self._cut_off()
        if rectifiers is not None:
            self.rectifiers = rectifiers.met
            self._check_rectifiers(unwrap(self.model), columns)
        T = columns.shape[1]
        gradients = [self._gradient(columns[:, t], x, keep=t < T - 1) for t in range(T)]
        data = gradients[0].unsqueeze(1) if T == 1 else torch.stack(gradients, 1)
        return Found(data, columns.detach(), output)

    def _settings(self) -> dict[str, Any]:
        """What the last call was made with."""
        return {"rectifiers": self.rectifiers} if self.rule else {}

    def _layer(self, inputs: Inputs) -> str | list[str] | None:
        return None

    def _check_rectifiers(self, net: nn.Module, score: Tensor) -> None:
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
            if self.rule is None:
                raise
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
