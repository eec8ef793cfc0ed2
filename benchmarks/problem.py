"""What is explained in a case: a network, its layer, a batch of images and the class of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.models import RECIPES, images, network, predicted


@dataclass(frozen=True)
class Problem:
    """What is explained: a network, its layer or several, a batch of images and the class of each."""

    net: nn.Module
    layer: str | Sequence[str]
    x: Tensor
    targets: list[int]

    @classmethod
    def of(cls, model: str, batch: int, device: str) -> Problem:
        recipe, net = RECIPES[model], network(model, device)
        x = images(batch, recipe.size).to(device)
        return cls(net, recipe.layer, x, predicted(net, x))

    def copied(self) -> Problem:
        """The same with a network of its own: hooks and gradients that one side leaves in it touch no other."""
        return replace(self, net=copy.deepcopy(self.net))

    def cast(self, dtype: torch.dtype) -> Problem:
        """The same classes explained with network and images of another type; itself where they have that type."""
        if self.x.dtype == dtype:
            return self
        return replace(self, net=copy.deepcopy(self.net).to(dtype), x=self.x.to(dtype))


def forward(problem: Problem) -> Callable[[], Tensor]:
    """The forward pass alone, the unit of every ratio."""
    return partial(torch.no_grad()(problem.net), problem.x)
