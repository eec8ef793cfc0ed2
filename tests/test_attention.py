"""Methods on attention maps, against a small transformer whose attention is written out, and across its spellings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcam import AttentionRollout, GradientRollout, LeGrad

from models import build, inputs, photographs, tiny

timm = pytest.importorskip("timm")
METHODS = (LeGrad, GradientRollout, AttentionRollout)
X = photographs(2, 12, 20)


class Attention(nn.Module):
    """Self-attention of two heads, spelt in one of several ways."""

    def __init__(self, spelling):
        super().__init__()
        self.spelling, self.qkv, self.proj = spelling, nn.Linear(12, 36), nn.Linear(12, 12)
        self.maps = None

    def forward(self, t):
        if self.spelling == "multihead":
            weights = self.qkv.weight, self.qkv.bias, None, None, False, 0.0, self.proj.weight, self.proj.bias, False
            t = t.transpose(0, 1)
            return F.multi_head_attention_forward(t, t, t, 12, 2, *weights, need_weights=False)[0].transpose(0, 1)
        q, k, v = self.qkv(t).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        if self.spelling == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            logits = q @ k.mT / 6**0.5
            A = logits.softmax(-1) if self.spelling == "method" else F.softmax(logits, dim=-1)
            if self.spelling == "oracle":
                A = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
                self.maps = A
            out = A @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(12), Attention(spelling), nn.Linear(12, 12)

    def forward(self, t):
        t = t + self.attention(self.norm(t))
        return t + self.mlp(t).relu()


class Net(nn.Module):
    """Three blocks on 2 extra tokens and 3 x 5 patches, a head on the first token or on the mean of all."""

    def __init__(self, spelling, pooling="first"):
        super().__init__()
        self.patches, self.extra, self.pooling = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 2, 12)), pooling
        self.blocks = nn.ModuleList(Block(spelling) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        t = torch.cat([self.extra.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        for block in self.blocks:
            t = block(t)
        return self.head(t[:, 0] if self.pooling == "first" else t.mean(1))


def net(spelling, pooling="first"):
    torch.manual_seed(4)
    model = Net(spelling, pooling).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(3)
    return model


def naive(method, model, x, target):
    """The equations, an image and a head at a time, on a model that keeps its maps."""
    found = []
    for image in x:
        y = model(image[None])[0, target]
        maps = [block.attention.maps for block in model.blocks]
        grads = torch.autograd.grad(y, maps)
        N = maps[0].shape[-1]
        total, R = torch.zeros(N), torch.eye(N)
        for A, G in zip(maps, grads, strict=True):
            total += sum(G[0, h].clamp(min=0).mean(0) for h in range(2)) / 2
            mean = sum(A[0, h] for h in range(2)) / 2
            weighted = sum((A[0, h] * G[0, h]).clamp(min=0) for h in range(2)) / 2
            R = (torch.eye(N) + weighted) @ R if method is GradientRollout else (torch.eye(N) + mean) / 2 @ R
        row = R[0] if model.pooling == "first" else R.mean(0)
        found.append((total if method is LeGrad else row)[2:].view(3, 5).detach())
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("spelling", ["sdpa", "softmax", "method", "multihead"])
@pytest.mark.parametrize("method", METHODS)
def test_the_equations_in_every_spelling(method, spelling, pooling):
    oracle, model = net("oracle", pooling), net(spelling, pooling)
    expected = naive(method, oracle, X, 1)
    ours = method(model).attribute(X, 1, normalize=False, size=None)
    assert expected.std((1, 2)).min() > 1e-3 * expected.max()
    torch.testing.assert_close(ours, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-4)
    maps = method(model)(X, 1)
    assert maps.shape == (2, 12, 20) and maps.min() == 0 and maps.max() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_and_frozen_models(method):
    model = net("sdpa").requires_grad_(False).train()
    many = method(model).attribute(X, torch.tensor([[0, 2], [3, 1]]), normalize=False, size=None)
    assert many.shape == (2, 2, 3, 5)
    for i, t in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        target = [[0, 2], [3, 1]][i][t]
        torch.testing.assert_close(
            many[i, t], naive(method, net("oracle"), X[i : i + 1], target)[0], atol=1e-6, rtol=1e-3
        )
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_timm_fused_or_not(method):
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=5, embed_dim=24, depth=3, num_heads=3, img_size=(48, 80)
    ).eval()
    x, maps = photographs(2, 48, 80), []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        maps.append(method(model).attribute(x, 1, size=None))
    assert maps[0].shape == (2, 3, 5) and maps[0][0].std() > 0.01
    torch.testing.assert_close(*maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_torchvisions_vit(method):
    model, x = build("small_vit"), inputs("small_vit", 2)
    maps = method(model).attribute(x, 3, normalize=False, size=None)
    assert maps.shape == (2, 4, 4) and maps[0].std() > 0
    one = method(model).attribute(x[1:], 3, normalize=False, size=None)
    torch.testing.assert_close(maps[1:], one, atol=1e-5 * float(one.max()), rtol=1e-4)
    with torch.no_grad():
        expected = model(x)
    cam = method(model)
    cam(x, 3)
    torch.testing.assert_close(cam.outputs, expected, atol=1e-5, rtol=1e-4)
    explicit = method(model, None, lambda t: t[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1))
    np.testing.assert_array_equal(explicit(x, 3), method(model)(x, 3))


def test_sequence_first_encoders_and_masks():
    class Encoder(Net):
        def __init__(self):
            super().__init__("sdpa")
            block = nn.TransformerEncoderLayer(12, 2, 24)
            self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

        def forward(self, x):
            t = torch.cat([self.extra.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
            hidden = torch.zeros(17, 17, dtype=torch.bool).index_fill(1, torch.tensor(4), True)  # patch 2 is not seen
            return self.head(self.blocks(t.transpose(0, 1), hidden)[0])

    maps = LeGrad(Encoder().eval(), "blocks.layers[0]").attribute(X, 1, normalize=False, size=None)
    assert maps.shape == (2, 3, 5)
    rollout = AttentionRollout(Encoder().eval(), "blocks.layers[0]").attribute(X, 1, normalize=False, size=None)
    assert (rollout[:, 0, 2] == 0).all() and (rollout.flatten(1) > 0).sum() == 28


def test_errors():
    with pytest.raises(ValueError, match="no attention was met in TinyNet: LeGrad needs a transformer"):
        LeGrad(tiny())(torch.randn(1, 3, 20, 24))
    with pytest.raises(ValueError, match="eigen_smooth does not apply"):
        LeGrad(net("sdpa"))(X, eigen_smooth=True)
    with pytest.raises(ValueError, match=r"over 17 tokens, the output of target layer 'patches' is \(2, 12, 3, 5\)"):
        GradientRollout(net("sdpa"), "patches")(X)
    swin = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, embed_dim=12, depths=(1, 1),
                             num_heads=(1, 2), img_size=64, window_size=4).eval()  # fmt: skip
    with pytest.raises(ValueError, match=r"needs attention over the same tokens of an image.*\(16, 1, 16, 16\)"):
        LeGrad(swin)(photographs(2, 64, 64)[:1])
