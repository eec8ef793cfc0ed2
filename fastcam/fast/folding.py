"""Batch norms that can go into the convolution before them, found by watching a run of the model."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastcam.fast.copying import HOOKS
from fastcam.inputs import Inputs
from fastcam.record import call

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # and no subclass, whose forward may be its own
_NORMS = {
    *("torch.BatchNorm1d", "torch.BatchNorm2d", "torch.BatchNorm3d", "torch.SyncBatchNorm"),
    *("torchvision.FrozenBatchNorm2d", "timm.FrozenBatchNorm2d"),
    *("timm.BatchNormAct2d", "timm.FrozenBatchNormAct2d"),
}
_NO_USE = {  # of a tensor's values
    *(Tensor.size, Tensor.dim, Tensor.stride, Tensor.is_floating_point, Tensor.__len__),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")),
}


class Pair(NamedTuple):
    """The names of a convolution and of the batch norm that alone reads what it gives."""

    convolution: str
    norm: str


class Folded(nn.Module):
    """In the place of a batch norm: what else its module did, an activation say, under the names it had."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("drop", "act"):  # timm's, in their order
            if isinstance(part := getattr(norm, name, None), nn.Module):
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self._modules.values():
            assert part is not None
            x = part(x)
        return x


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm that uses fixed statistics in evaluation mode."""
    name = f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}"
    return name in _NORMS and isinstance(getattr(module, "running_var", None), Tensor)


def is_convolution(module: nn.Module) -> bool:
    return type(module) in _CONVOLUTIONS


def foldable(net: nn.Module, x: Inputs, layers: Container[nn.Module], biased: bool) -> tuple[list[Pair], Any]:
    """Pairs that can be folded with all that is seen of the model staying as it is; and its output.

    net      in evaluation mode and nobody else's: it is run once, on x
    layers   at which the activation is recorded
    biased   whether convolutions that have a bias of their own may be folded
    """
    watch = _Watch(layers)
    handles = [h for m in net.modules() if not isinstance(m, torch.jit.ScriptModule) for h in watch.on(m)]
    try:
        with watch:
            output = call(net, x.clone())
    finally:
        for handle in handles:
            handle.remove()
    watch.read_by_caller(output)
    names = {module: name for name, module in net.named_modules()}
    pairs = [Pair(names[c], names[n]) for c, n in watch.pairs() if biased or c.bias is None]
    return pairs, output


class _Watch(TorchFunctionMode):
    """Who reads what a convolution gives."""

    def __init__(self, layers: Container[nn.Module]) -> None:
        super().__init__()
        self._layers = layers
        self._made: dict[int, tuple[Tensor, nn.Module]] = {}  # by the tensor's id; held, so that it stays its own
        self._norm_of: dict[nn.Module, nn.Module] = {}
        self._convolution_of: dict[nn.Module, nn.Module] = {}
        self._spoiled: set[nn.Module] = set()
        self._inside = 0  # of batch norms

    def on(self, module: nn.Module) -> Iterator[Any]:
        """Handles of hooks; those that the module had are a reason to leave it as it is."""
        seen = any(getattr(module, name, None) for name in HOOKS) or module in self._layers
        if is_convolution(module):
            yield module.register_forward_hook(lambda m, _, output: self._ran(m, output))
            self._spoiled |= {module} if seen else set()
        elif is_norm(module):
            if seen or any(part in self._layers for part in module.modules()):
                self._spoiled.add(module)
            yield module.register_forward_pre_hook(self._enter)
            yield module.register_forward_hook(self._leave)
        elif seen:
            yield module.register_forward_pre_hook(lambda _, args: self.read_by_caller(args))
            yield module.register_forward_hook(lambda _, __, output: self.read_by_caller(output))

    def pairs(self) -> Iterator[tuple[Any, nn.Module]]:
        for convolution, norm in self._norm_of.items():
            if self._convolution_of.get(norm) is convolution and not {convolution, norm} & self._spoiled:
                yield convolution, norm

    def read_by_caller(self, output: Any) -> None:
        """What convolutions gave is part of what somebody gets to see."""
        waiting, seen = [output], set()
        while waiting:
            item = waiting.pop()
            if id(item) in seen or isinstance(item, type | nn.Module):
                continue
            seen.add(id(item))
            if isinstance(item, Tensor):
                self._spoil(item)
            elif isinstance(item, Mapping):
                waiting.extend(item.values())
            elif isinstance(item, tuple | list):
                waiting.extend(item)
            elif hasattr(item, "__dict__"):
                waiting.extend(vars(item).values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside and func not in _NO_USE:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._spoil(leaf)
        return func(*args, **kwargs)

    def _spoil(self, tensor: Tensor) -> None:
        if (known := self._made.get(id(tensor))) is not None:
            self._spoiled.add(known[1])

    def _ran(self, convolution: nn.Module, output: Tensor) -> None:
        self._made[id(output)] = output, convolution
        self._norm_of.setdefault(convolution, convolution)  # no norm yet

    def _enter(self, norm: nn.Module, args: Any) -> None:
        self._inside += 1
        _, convolution = self._made.get(id(args[0]) if args else 0, (None, None))
        if convolution is None or self._norm_of[convolution] not in (convolution, norm):
            self._spoiled |= {norm} if convolution is None else {norm, convolution}
            return
        if self._convolution_of.setdefault(norm, convolution) is not convolution:
            self._spoiled |= {norm, convolution, self._convolution_of[norm]}
        self._norm_of[convolution] = norm

    def _leave(self, *_: Any) -> None:
        self._inside -= 1


@torch.no_grad()
def folded_weights(convolution: nn.Module, norm: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of the convolution that does both, in its own type."""
    c: Any = convolution
    n: Any = norm
    bias = None if c.bias is None else _wide(c.bias)
    statistics = _wide(n.running_mean), _wide(n.running_var), n.eps
    scale = None if n.weight is None else _wide(n.weight), None if n.bias is None else _wide(n.bias)
    weight, bias = fuse_conv_bn_weights(_wide(c.weight), bias, *statistics, *scale)
    return tuple(nn.Parameter(t.to(c.weight.dtype), requires_grad=False) for t in (weight, bias))  # type: ignore[return-value]


def _wide(t: Tensor) -> Tensor:
    return t.detach().double() if t.device.type != "mps" else t.detach().float()


def put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that is registered."""
    for owner in list(net.modules()):
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = new
