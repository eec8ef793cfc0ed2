"""One run of a model whose backward pass gives the gradient of the input and, on its way, that of every bias' output.

A bias is seen where it is added, in the call of a convolution or a batch norm: whatever module makes the call, in
whatever order and however often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.lean import input_graph
from fastcam.record import Run, all_modules, call, check_not_scripted, evaluation, owned, unwrap

Receive = Callable[[int, Tensor, Tensor], None]  # which of the biased calls, bias (C,), gradient (B, C, *S)


class _BiasedCalls(TorchFunctionMode):
    """Inside this block, each call that adds a bias to maps `(B, C, *S)` beside an input `(B, k, *S)`.

    A backward pass then calls `receive` with the gradient of each output. Scripted code is not seen.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._batch, self._rank, self._calls = len(x), x.ndim, 0
        self.receive: Receive | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _BIAS_OF and output.requires_grad and output.ndim == self._rank and len(output) == self._batch:
            with torch.no_grad():
                bias = _BIAS_OF[func](*args, **kwargs)
            if bias is not None:
                output.register_hook(partial(self._at_output, self._calls, bias))
                self._calls += 1
        return output

    def _at_output(self, place: int, bias: Tensor, gradient: Tensor) -> None:
        if self.receive is not None:
            self.receive(place, bias, gradient)


def _of_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    return None if bias is None else bias.detach()


def _of_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """What is added to the input's multiple: b - w mean / sqrt(var + eps); b where the statistics are the input's."""
    if bias is None or training or running_mean is None or running_var is None:
        return None if bias is None else bias.detach()
    scale = (running_var + eps).rsqrt() if weight is None else weight / (running_var + eps).sqrt()
    return bias - running_mean * scale


_BIAS_OF: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _of_convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _of_convolution),
    F.batch_norm: _of_batch_norm,
}


class FullGradientRun(Run):
    """A run that was recorded from its input on; see `Run` for input and output."""

    def __init__(self, net: nn.Module, x: Inputs, leaf: Tensor, output: Any, calls: _BiasedCalls) -> None:
        super().__init__([], x, {}, output)
        self._net, self._leaf, self._calls = net, leaf, calls

    def gradient(self, scores: Tensor, receive: Receive, keep_graph: bool = False) -> Tensor:
        """d sum(scores) / d input, and `receive` for each bias in between, from the last call to the first.

        Raises RuntimeError if no gradient can flow from the scores to the input.
        """
        self._calls.receive, gradient = receive, None
        if scores.requires_grad:
            ones = torch.ones_like(scores)
            (gradient,) = torch.autograd.grad(scores, self._leaf, ones, retain_graph=keep_graph, allow_unused=True)
        if gradient is None:
            raise RuntimeError(
                f"the output of {type(self._net).__name__} carries no gradient back to the input: its forward "
                "detaches it or switches gradients off"
            )
        return gradient


@contextmanager
def full_gradients(model: nn.Module, x: Tensor | Inputs) -> Iterator[FullGradientRun]:
    """Run `model(x)` once with its graph, for `FullGradientRun.gradient`."""
    net = unwrap(model)
    check_not_scripted(net, "where biases are added")
    compiled = [m for m in all_modules(net) if m is not net and getattr(m, "_compiled_call_impl", None)]
    with evaluation(net), intercepted(compiled, lambda _, forward, args, kwargs: forward(*args, **kwargs)):
        x = owned(net, x if isinstance(x, Inputs) else Inputs(x)).map(Tensor.detach)
        leaf = x.image.clone().requires_grad_()
        with torch.enable_grad(), input_graph(net, leaf), _BiasedCalls(leaf) as calls:
            output = call(net, x.with_image(leaf).clone())  # a model may begin with an operation in place
        yield FullGradientRun(net, x, leaf, output, calls)
