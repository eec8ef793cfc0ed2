"""A run of a model as a differentiable function of its input: only as far as it is needed, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcam.inputs import Inputs
from fastcam.intercept import intercepted
from fastcam.record import (
    Stop,
    all_modules,
    call,
    check_ran,
    evaluation,
    first_tensor,
    hooked,
    made_in_inference,
    owned,
    unwrap,
)


class Seen(NamedTuple):
    """What a run gave, in the graph of its input.

    activations   of each layer its first call's output
    output        what the model returned; None if the run was stopped at the last layer
    """

    activations: Mapping[nn.Module, Tensor]
    output: Any


@contextmanager
def differentiable(
    model: nn.Module, layers: Sequence[nn.Module], *, complete: bool = False
) -> Iterator[Callable[[Tensor | Inputs], Seen]]:
    """A function of the input, for the block: the activations at `layers` in a graph for `torch.autograd.grad`.

    The model is in evaluation mode, gradients are on, no parameter's gradient is asked for. A run ends at the last of
    the layers, unless `complete` or there is none. Raises as `record` does.
    """
    net = unwrap(model)
    if made_in_inference(net):
        raise RuntimeError(
            f"{type(net).__name__} was created or loaded inside torch.inference_mode(), its parameters give no "
            "gradient: create it outside"
        )
    wanted = set(layers)
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, output: Any) -> Any:
        if module in seen:  # called twice: its first call counts
            return None
        tensor, put_back = first_tensor(module, output)
        seen[module] = tensor
        if not complete and len(seen) == len(wanted):
            raise Stop
        return put_back(tensor.clone())  # what is written into it behind the layer is not the layer's

    def run(x: Tensor | Inputs) -> Seen:
        seen.clear()
        inputs = owned(net, x if isinstance(x, Inputs) else Inputs(x))
        try:
            output = call(net, inputs.clone())  # a model may begin with an operation in place
        except Stop:
            output = None
        check_ran(net, layers, seen)
        return Seen(dict(seen), output)

    with evaluation(net), ExitStack() as stack:
        # Compiled parts call no hooks and no mode sees into them.
        compiled = [m for m in all_modules(net) if m is not net and getattr(m, "_compiled_call_impl", None)]
        stack.enter_context(intercepted(compiled, lambda _, forward, args, kwargs: forward(*args, **kwargs)))
        stack.enter_context(hooked(wanted, keep))
        stack.enter_context(torch.enable_grad())
        yield run
