"""What a transformer attends to: methods on its attention maps A `(B, heads, N, N)`, a row a query, a column a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.attention import AttentionMaps
from fastcam.inputs import Inputs
from fastcam.layers import layer_name
from fastcam.methods.base import BaseCAM
from fastcam.record import Run, call, check_ran, evaluation, first_tensor, hooked, owned, unwrap
from fastcam.targets import Targets, scores
from fastcam.tokens import Layout


class AttentionRun(Run):
    """A run with its attention maps, each with its place in the graph of the output."""

    maps: list[Tensor]


class AttentionCAM(BaseCAM):
    """A map over the patches from the attention maps of all blocks and the gradients of the target in them.

    The target layer only says how the tokens lie in space: one whose output holds as many tokens as the attention,
    None for the usual one. Attention within windows, and between numbers of tokens that change, is an error.
    `eigen_smooth` does not apply.
    """

    looks_inside = True

    @contextmanager
    def recorded(self, x: Inputs, layers: Sequence[nn.Module], complete: bool) -> Iterator[AttentionRun]:
        net = unwrap(self.model)
        activations: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, output: Any) -> None:
            activations.setdefault(module, first_tensor(module, output)[0].detach())

        with evaluation(net):
            x = owned(net, x)
            with torch.no_grad(), AttentionMaps() as attention, hooked(layers, keep):
                output = call(net, x.clone())  # which the model may write into
            check_ran(net, layers, activations)
            run = AttentionRun(layers, x, activations, output)
            run.maps = attention.maps
            yield run

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        assert isinstance(run, AttentionRun)
        if eigen_smooth:
            raise ValueError(f"{type(self).__name__}'s map is no sum of channels: eigen_smooth does not apply")
        B = len(run.input)
        maps = self._checked(run.maps, B)
        with torch.enable_grad():
            columns = scores(run.output, targets, B).view(B, -1).unbind(1)
            if not columns[0].requires_grad:
                raise RuntimeError(
                    f"the output of {type(unwrap(self.model)).__name__} carries no gradient of attention"
                )
        A = [self._by_heads(m, B) for m in maps]
        relevance = []
        for t, column in enumerate(columns, 1):
            found = torch.autograd.grad(
                *(column, maps, torch.ones_like(column)),
                retain_graph=t < len(columns),
                allow_unused=True,
                materialize_grads=True,
            )
            relevance.append(self.relevance(A, [self._by_heads(g, B) for g in found]))  # (B, N)
        tokens = torch.stack(relevance, 1).flatten(0, 1)  # (B * T, N)
        return [self._laid_out(run, layer, tokens) for layer in run.layers]

    def relevance(self, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """The relevance of each token, `(B, N)`, from the maps of all blocks and the gradients in them."""
        raise NotImplementedError(f"{type(self).__name__} defines no relevance")

    def _checked(self, maps: Sequence[Tensor], images: int) -> list[Tensor]:
        if not maps:
            raise ValueError(
                f"no attention was met in {type(unwrap(self.model)).__name__}: {type(self).__name__} needs a "
                "transformer whose attention is nn.MultiheadAttention, F.scaled_dot_product_attention or a softmax"
            )
        shapes = {tuple(m.shape) for m in maps}
        if len({s[-1] for s in shapes}) > 1 or any(s[0] % images or len(s) > 3 and s[0] != images for s in shapes):
            raise ValueError(
                f"{type(self).__name__} needs attention over the same tokens of an image in all blocks, the model's "
                f"maps are {', '.join(map(str, sorted(shapes)))} for {images} images"
            )
        return list(maps)

    def _by_heads(self, t: Tensor, images: int) -> Tensor:
        return ops.wide(t.detach()).reshape(images, -1, *t.shape[-2:])

    def _laid_out(self, run: AttentionRun, layer: nn.Module, tokens: Tensor) -> Tensor:
        """`(B * T, N)` as `(B * T, 1, *S)`, by the layout of the layer's output."""
        shape, N = run.attached(layer).shape, tokens.shape[1]
        transform = self.transform(run, layer, shape)
        if isinstance(transform, Layout):
            space = shape[1:-1] if transform.last else shape[2:]
            if transform.order is None and space.numel() == N:
                return tokens.unflatten(1, space).unsqueeze(1)
            if transform.count != N:
                raise ValueError(
                    f"the attention is over {N} tokens, the output of target layer {layer_name(self.model, layer)!r} "
                    f"is {tuple(shape)}: choose a layer that gives as many tokens"
                )
            return transform(tokens.unsqueeze(2).movedim(0, transform.batch))
        return transform(tokens.unsqueeze(2))


class LeGrad(AttentionCAM):
    """LeGrad (Bousselham et al., ICCV 2025, arXiv:2404.03214).

    r_j = sum_l mean_hi relu(dy / dA_l)_hij,  h the heads, i the queries, j the keys

    The paper reads the target's score y off each block's own tokens; here it is the model's output for all of them,
    which needs to know nothing of the model.
    """

    def relevance(self, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        return torch.stack([g.relu().mean((1, 2)) for g in gradients]).sum(0)


class GradientRollout(AttentionCAM):
    """Gradient-weighted attention rollout (Chefer et al., ICCV 2021, arXiv:2103.15679).

    R = prod_l (1 + mean_h relu(dy / dA_l * A_l)),  r_j = mean_i R_ij

    i are the tokens that the score is read from, the class token or all: those whose query in the last block has a
    gradient.
    """

    def relevance(self, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        steps = [(A * G).relu().mean(1) for A, G in zip(maps, gradients, strict=True)]
        return _rows(_product([step + torch.eye(step.shape[-1]).to(step) for step in steps]), gradients[-1])


class AttentionRollout(AttentionCAM):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv:2005.00928).

    R = prod_l (1 + mean_h A_l) / 2,  r_j = mean_i R_ij

    i as in `GradientRollout`: the target matters for nothing else.
    """

    class_discriminative = False

    def relevance(self, maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        steps = [A.mean(1) for A in maps]
        return _rows(_product([(step + torch.eye(step.shape[-1]).to(step)) / 2 for step in steps]), gradients[-1])


def _product(steps: Sequence[Tensor]) -> Tensor:
    """What all blocks together take from each token, `(B, N, N)`, the first block rightmost."""
    R = steps[0]
    for step in steps[1:]:
        with ops.not_autocast(R):
            R = step @ R
    return R


def _rows(R: Tensor, last: Tensor) -> Tensor:
    """The mean `(B, N)` of the rows of R whose query has a gradient in the last block; of all where none has."""
    read = last.ne(0).any(3).any(1).to(R)  # (B, N)
    read = torch.where(read.any(1, keepdim=True), read, 1)
    return (read.unsqueeze(2) * R).sum(1) / read.sum(1, keepdim=True)
