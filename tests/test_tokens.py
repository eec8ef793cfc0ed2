"""How tokens and channels-last outputs lie in space: found without being told, and equal to what a user would pass."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from pytorch_grad_cam.utils import reshape_transforms as theirs
from torch import nn

from fastcam import AblationCAM, EigenCAM, FasterScoreCAM, GradCAM, HiResCAM, LayerCAM, ReciproCAM, ViTReciproCAM
from fastcam.inputs import Inputs
from fastcam.layers import default_layer, find_layers, layer_name
from fastcam.methods import METHODS
from fastcam.reshape_transforms import fasterrcnn_reshape_transform, swinT_reshape_transform, vit_reshape_transform
from fastcam.tokens import layout_of

from models import build, inputs, photographs, tiny, tokens_to_map

timm = pytest.importorskip("timm")


def laid_out(prefix, h, w):
    """The transform a user would pass."""
    return lambda t: t[:, prefix : prefix + h * w].reshape(len(t), h, w, -1).permute(0, 3, 1, 2)


def assert_same(model, layer, transform, x, methods=(HiResCAM, EigenCAM)):
    """The low maps without a transform are those with it, and no constants."""
    for method in methods:
        ours = method(model, layer).attribute(x, 1, normalize=False, size=None)
        expected = method(model, layer, transform).attribute(x, 1, normalize=False, size=None)
        assert torch.equal(ours, expected) and ours[0].std() > 0, method.__name__


class Transformer(nn.Module):
    """Patches, tokens in an order and layout to choose, `nn.TransformerEncoder`, a head on the mean."""

    def __init__(self, norm_first=True, batch_first=True, order=None, extra="first"):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, 2, 12))
        self.extra, self.batch_first, self.order = extra, batch_first, order
        block = nn.TransformerEncoderLayer(12, 2, 24, batch_first=batch_first, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        t = self.patches(x).flatten(2).mT
        t = t if self.order is None else t[:, self.order]
        extra = t.mean(1, keepdim=True) if self.extra == "mean" else self.tokens.expand(len(t), -1, -1)
        t = torch.cat([t, extra] if self.extra == "last" else [extra, t], 1)
        t = self.blocks(t if self.batch_first else t.transpose(0, 1))
        return self.head(t.mean(1 if self.batch_first else 0))


X = photographs(2, 12, 20)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "method", [*(m for name, m in METHODS.items() if name not in ("cam", "randomcam")), ViTReciproCAM]
)
def test_every_method_on_a_vit_equals_the_explicit_transform(method, batch):
    model, x = build("small_vit"), inputs("small_vit", batch)
    for layer in ("encoder.layers[-1].ln_1", "encoder.layers[1]"):
        torch.manual_seed(0)
        ours = method(model, layer).attribute(x, 3)
        torch.manual_seed(0)
        expected = method(model, layer, tokens_to_map).attribute(x, 3)
        torch.manual_seed(0)
        auto = method(model, layer, "auto").attribute(x, 3)
        assert torch.equal(ours, expected) and torch.equal(auto, expected) and ours[0].std() > 0


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM", "LayerCAM", "XGradCAM", "GradCAMPlusPlus", "AblationCAM"])
def test_a_vit_equals_the_reference_with_its_transform(name):
    model, x = build("small_vit"), inputs("small_vit", 2)
    layers = find_layers(model, "encoder.layers[-1].ln_1")
    more = {}
    if name == "AblationCAM":
        from pytorch_grad_cam.ablation_layer import AblationLayerVit

        more = {"ablation_layer": AblationLayerVit()}
    reference = getattr(pytorch_grad_cam, name)(model, layers, lambda t: theirs.vit_reshape_transform(t, 4, 4), **more)
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(2)] * 2
    expected = reference(x, targets)
    reference.activations_and_grads.release()
    options = {"reference_batching": True} if name == "AblationCAM" else {}
    ours = getattr(__import__("fastcam"), name)(model, layers, **options)(x, 2)
    assert np.ptp(expected[0]) > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4 if name == "AblationCAM" else 1e-5)


SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": (48, 80)}
VITS = {
    "vit_tiny_patch16_224": (SMALL, 1),
    "deit_tiny_distilled_patch16_224": (SMALL, 2),
    "vit_medium_patch16_reg4_gap_256": (SMALL, 4),
    "vit_small_patch14_reg4_dinov2": ({**SMALL, "patch_size": 16}, 5),
    "vit_base_patch16_siglip_224": (SMALL, 0),
    "beit_base_patch16_224": (SMALL, 1),
    "eva02_tiny_patch14_224": ({**SMALL, "patch_size": 16}, 1),
    "cait_xxs24_224": (SMALL, 0),
}


@pytest.mark.parametrize("name", VITS)
def test_timm_vits(name):
    more, prefix = VITS[name]
    model = timm.create_model(name, pretrained=False, num_classes=5, **more).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # layer scales of 1e-5 would hide every block
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = photographs(2, 48, 80)
    for layer in ("blocks[1]", "blocks[-1].norm1"):
        assert_same(model, layer, laid_out(prefix, 3, 5), x)
    chosen = layer_name(model, default_layer(model, x))
    assert chosen == ("blocks_token_only.1.norm1" if "cait" in name else "blocks.2.norm1")
    assert_same(model, None, laid_out(1 if "cait" in name else prefix, 3, 5), x)


def test_one_model_at_several_resolutions():
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=5, dynamic_img_size=True, **{**SMALL, "img_size": 64}
    ).eval()
    for h, w in [(3, 4), (4, 3), (2, 6), (3, 4)]:  # 13 tokens each
        assert_same(model, "blocks[-1].norm1", laid_out(1, h, w), photographs(2, 16 * h, 16 * w))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("extra", ["first", "last", "mean"])
@pytest.mark.parametrize("batch", [1, 2])
def test_batch_first_and_sequence_first(norm_first, extra, batch):
    first, second = (Transformer(norm_first, b, None, extra).eval() for b in (True, False))
    second.load_state_dict(first.state_dict())
    transform = laid_out({"first": 2, "last": 0, "mean": 1}[extra], 3, 5)
    for layer in ("blocks.layers[1]", "blocks.layers[1].norm1", "blocks.layers[2].norm2"):
        assert_same(first, layer, transform, X[:batch])
        for method in (HiResCAM, AblationCAM, ReciproCAM):
            ours, expected = (method(m, layer).attribute(X[:batch], 1, size=None) for m in (second, first))
            # Other matrix products, and min-max of small differences of scores; AblationCAM's channels lie at -1e7.
            torch.testing.assert_close(ours, expected, atol=1e-3 if method is AblationCAM else 1e-4, rtol=0)
    assert layer_name(second, default_layer(second, X)) == layer_name(first, default_layer(first, X))


def test_tokens_in_another_order():
    order = torch.randperm(15)
    net = Transformer(order=order).eval()

    def transform(t):
        return t[:, 2:][:, order.argsort()].reshape(len(t), 3, 5, -1).permute(0, 3, 1, 2)

    assert_same(net, "blocks.layers[1]", transform, X, (HiResCAM, EigenCAM, AblationCAM, ViTReciproCAM))


def test_patches_made_without_a_convolution():
    class Linear(Transformer):
        def __init__(self):
            super().__init__()
            self.patches = nn.Linear(48, 12)

        def forward(self, x):
            B, k, H, W = x.shape
            patches = x.view(B, k, H // 4, 4, W // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(B, -1, 48)
            t = torch.cat([self.tokens.expand(B, -1, -1), self.patches(patches)], 1)
            return self.head(self.blocks(t)[:, 0])

    assert_same(Linear().eval(), "blocks.layers[1]", laid_out(2, 3, 5), X)


class Merging(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim)

    def forward(self, t, h, w):
        t = t.view(len(t), h, w, -1)
        t = torch.cat([t[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(t.flatten(1, 2)))


class OldSwin(nn.Module):
    """Tokens `(B, N, C)` in every stage, merged between them."""

    def __init__(self):
        super().__init__()
        self.patches, self.merging = nn.Conv2d(3, 8, 4, 4), Merging(8)
        self.stages = nn.ModuleList(
            nn.TransformerEncoderLayer(d, 2, 16, batch_first=True, norm_first=True) for d in (8, 16)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        t = self.patches(x)
        h, w = t.shape[2:]
        t = self.merging(self.stages[0](t.flatten(2).mT), h, w)
        return self.head(self.stages[1](t).mean(1))


def test_tokens_that_are_merged():
    net, x = OldSwin().eval(), photographs(2, 32, 48)
    assert_same(net, "stages[0]", laid_out(0, 8, 12), x)
    for layer in ("merging", "merging.norm", "stages[1]", "stages[1].norm1"):
        assert_same(net, layer, laid_out(0, 4, 6), x)


def test_swin_in_both_libraries():
    x = photographs(2, 64, 96)
    ours = torchvision.models.SwinTransformer([4, 4], 12, [1, 2], [2, 4], [4, 4], num_classes=5).eval()
    for layer in ("features", "features[1][0]", "features[2]", "features[-1][-1].norm1", "features[-1][0].mlp", "norm"):
        assert_same(ours, layer, lambda t: t.movedim(-1, 1), x)
    assert_same(ours, "permute", lambda t: t, x)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=5, embed_dim=12, depths=(1, 2), num_heads=(1, 2),
        img_size=(64, 96), window_size=4,
    ).eval()  # fmt: skip
    for layer in ("layers", "layers[0].blocks[0]", "layers[1].downsample", "layers[-1].blocks[-1].norm1", "norm"):
        assert_same(model, layer, lambda t: t.movedim(-1, 1), x)
    assert_same(model, "layers[-1].blocks[0].mlp", laid_out(0, 8, 12), x)
    assert layer_name(model, default_layer(model, x)) == "layers.1.blocks.1.norm1"
    for method in (AblationCAM, ReciproCAM):
        expected = method(model, "layers[1]", lambda t: t.movedim(-1, 1))(x, 1)
        np.testing.assert_array_equal(method(model, "layers[1]")(x, 1), expected)
    with pytest.raises(ValueError, match=r"layers\.1\.blocks\.0\.attn\.proj.*has 6 rows for 1 images.*pass a resh"):
        GradCAM(model, "layers[1].blocks[0].attn.proj")(x)


def test_convnext_inside_a_block():
    x = photographs(2, 64, 128)
    theirs = torchvision.models.convnext_tiny(num_classes=5).eval()
    timms = timm.create_model(
        "convnext_tiny", pretrained=False, num_classes=5, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)
    )
    block = "features[-1][-1].block"
    for model, first, last in [
        (theirs, [f"{block}[0]", "features[-1][-1]", "features"], [f"{block}[{i}]" for i in range(1, 6)]),
        (timms.eval(), ["stages", "stages[-1].blocks[0].conv_dw"], ["stages[-1].blocks[0].mlp.act"]),
    ]:
        for layer in first:
            assert_same(model, layer, lambda t: t, x)
        for layer in last:
            assert_same(model, layer, lambda t: t.movedim(-1, 1), x)
    with pytest.raises(ValueError, match="channels are first or last can't be told, pass reshape_transform=lambda"):
        EigenCAM(theirs, f"{block}[6]")(x)  # the block adds what it permuted back
    assert EigenCAM(theirs, f"{block}[6]", lambda t: t)(x).any()


def test_a_width_that_equals_the_channels_is_decided_by_the_norm():
    """At 8 x 8 positions and 8 channels sizes say nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), Permute(0, 2, 3, 1), nn.LayerNorm(8), Permute(0, 3, 1, 2), nn.BatchNorm2d(8)
    )
    net, x = nn.Sequential(net, nn.Flatten(), nn.Linear(512, 3)).eval(), photographs(2, 8, 8)
    for layer, transform in [("0[1]", True), ("0[2]", True), ("0[0]", False), ("0[3]", False), ("0[4]", False)]:
        assert_same(net, layer, (lambda t: t.movedim(-1, 1)) if transform else (lambda t: t), x)


class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(self.dims)


@pytest.mark.parametrize(
    ("name", "more", "size", "layers"),
    [
        ("mixer_s16_224", {"img_size": 64}, (4, 4), ["blocks[1]", "blocks[-1].norm1"]),
        ("levit_128s", {}, (4, 4), ["stages[-1]"]),  # tokens that are left out
        ("pvt_v2_b0", {}, (7, 7), ["stages[-1].blocks[-1].norm1"]),
    ],
)
def test_other_families(name, more, size, layers):
    model = timm.create_model(name, pretrained=False, num_classes=5, **more).eval()
    side = more.get("img_size", 224)
    for layer in layers:
        assert_same(model, layer, laid_out(0, *size), photographs(1, side, side), (EigenCAM,))


def test_tuples_signals_and_volumes():
    class Tuple(nn.Module):
        def forward(self, t):
            return t * 2, t.mean()

    class Net(Transformer):
        def __init__(self):
            super().__init__()
            self.both = Tuple()

        def forward(self, x):
            t = self.blocks.layers[0](self.patches(x).flatten(2).mT)
            return self.head(self.both(t)[0].mean(1))

    assert_same(Net().eval(), "both", laid_out(0, 3, 5), X)
    signals = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(112, 3))
    assert_same(signals, "0", lambda t: t, torch.rand(2, 2, 30))
    assert_same(signals, "1", lambda t: t, torch.rand(2, 2, 30))

    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv3d(1, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(self.patches(x).flatten(2).mT)[:, 5])

    def transform(t):
        return t.reshape(len(t), 2, 3, 4, -1).movedim(-1, 1)

    assert_same(Volumes().eval(), "norm", transform, torch.rand(2, 1, 8, 12, 16), (EigenCAM,))


def test_what_cannot_be_found_is_an_error():
    class Mixed(Transformer):
        def forward(self, x):
            t = self.patches(x).flatten(2).mT
            return self.head(self.blocks(torch.softmax(t @ t.mT, -1) @ t).mean(1))

    with pytest.raises(ValueError, match=r"how its 15 tokens lie in space can't be found, pass a reshape_transform"):
        GradCAM(Mixed().eval(), "blocks.layers[1]")(X)
    model = timm.create_model("cait_xxs24_224", pretrained=False, num_classes=5, **SMALL).eval()
    with pytest.raises(ValueError, match="how its 1 tokens lie in space"):
        GradCAM(model, "blocks_token_only[0]")(photographs(1, 48, 80))
    with pytest.raises(TypeError, match='reshape_transform must be callable, "auto" or None, got 14'):
        GradCAM(tiny(), "body", 14)


def test_an_unpatched_mixing_network_is_no_grid_of_heads():
    class Heads(Transformer):
        def forward(self, x):
            t = self.patches(x)
            t = self.blocks.layers[0].norm1(t.flatten(2).mT.unflatten(2, (1, 12))).transpose(1, 2)
            t = torch.softmax(t @ t.mT, -1) @ t
            return self.head(self.blocks(t.flatten(0, 1)).mean(1))

    with pytest.raises(ValueError, match="how its 15 tokens lie in space can't be found"):
        EigenCAM(Heads().eval(), "blocks.layers[1]")(X)


def test_it_costs_a_few_runs_once_and_leaves_nothing():
    class Counting(Transformer):
        runs = 0

        def forward(self, x):
            Counting.runs += 1
            return super().forward(x)

    net = Counting()
    net.train().requires_grad_(False)
    state = torch.get_rng_state()
    cam = GradCAM(net, "blocks.layers[1]")
    with torch.inference_mode():
        expected = cam(X)
    assert Counting.runs <= 4
    Counting.runs = 0
    np.testing.assert_array_equal(GradCAM(net, "blocks.layers[1]")(X), expected)
    assert Counting.runs == 1 and torch.equal(torch.get_rng_state(), state)
    assert net.training and all(m.training and not m._forward_hooks for m in net.modules())
    assert all("_compiled_call_impl" not in vars(m) for m in net.modules())
    net.patches = nn.Conv2d(3, 12, 2, 4)  # a model that changes is looked at again
    net.tokens = nn.Parameter(torch.randn(1, 3, 12))
    assert_same(net, "blocks.layers[1]", laid_out(3, 3, 5), X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    model = build("small_vit").to(dtype)
    assert_same(model, "encoder.layers[1].ln_1", tokens_to_map, inputs("small_vit", 2).to(dtype))


def test_layouts_are_the_same_for_any_number_of_images():
    model = build("small_vit")
    (layer,) = find_layers(model, "encoder.layers[1]")
    for n in (3, 1, 2):
        layout = layout_of(model, layer, Inputs(inputs("small_vit", n)), (n, 17, 48))
        assert (layout.batch, layout.last, layout.count) == (0, True, 17)
        assert torch.equal(layout.order, torch.arange(1, 17).view(4, 4))


def test_several_layers_of_different_kinds():
    model, x = build("small_vit"), inputs("small_vit", 2)
    ours = LayerCAM(model, ["conv_proj", "encoder.layers[0]"]).attribute(x, 1, size=None)
    model_again = build("small_vit")
    (patches,) = [LayerCAM(model_again, "conv_proj").attribute(x, 1, size=None)]
    tokens = LayerCAM(model_again, "encoder.layers[0]", tokens_to_map).attribute(x, 1, size=None)
    torch.testing.assert_close(ours, (patches + tokens) / 2 if isinstance(ours, torch.Tensor) else [patches, tokens])


def test_the_references_transforms():
    t = torch.rand(2, 1 + 14 * 14, 5)
    assert torch.equal(vit_reshape_transform(t), theirs.vit_reshape_transform(t))
    t = torch.rand(2, 7, 5)
    assert torch.equal(vit_reshape_transform(t, 2, 3), theirs.vit_reshape_transform(t, 2, 3))
    t = torch.rand(2, 12, 5)
    assert torch.equal(swinT_reshape_transform(t, 3, 4), theirs.swinT_reshape_transform(t, 3, 4))
    assert swinT_reshape_transform(torch.rand(2, 7, 7, 5)).shape == (2, 5, 7, 7)
    levels = {"0": torch.randn(2, 3, 8, 8), "1": torch.randn(2, 3, 4, 4), "pool": torch.randn(2, 3, 2, 2)}
    assert torch.equal(fasterrcnn_reshape_transform(levels), theirs.fasterrcnn_reshape_transform(levels))


class Lstm(nn.Module):
    """A convolution and an LSTM on signals."""

    def __init__(self):
        super().__init__()
        self.stem, self.lstm, self.head = nn.Conv1d(2, 16, 3, padding=1), nn.LSTM(16, 24, batch_first=True), None
        self.drop, self.head = nn.Dropout(), nn.Linear(24, 3)

    def forward(self, x):
        h, _ = self.lstm(self.stem(x).transpose(1, 2))
        return self.head(self.drop(h * 1).mean(1))


def test_features_of_an_lstm_are_last():
    net, x = Lstm().eval(), torch.randn(2, 2, 100)
    right = GradCAM(net, "lstm", lambda t: t.movedim(-1, 1)).attribute(x, 1, normalize=False, size=None)
    assert right.shape == (2, 100)
    assert torch.equal(GradCAM(net, "lstm").attribute(x, 1, normalize=False, size=None), right)
    with pytest.raises(ValueError, match="channels are first or last can't be told, pass reshape_transform"):
        GradCAM(net, "drop")(x, 1)


def test_a_convolution_and_a_permutation_in_one_module():
    class Patches(nn.Sequential):
        def forward(self, x):
            return super().forward(x).permute(0, 2, 3, 1)

    net = nn.Sequential(
        Patches(nn.Conv2d(3, 10, 4, 4)), Permute(0, 3, 1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(480, 3)
    )
    x = torch.randn(2, 3, 24, 32)
    assert GradCAM(net, "0").attribute(x, 1, size=None).shape == (2, 6, 8)


def test_signals_with_the_sequence_first_are_an_error_whatever_their_length():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv1d(2, 16, 4, 4), nn.Linear(16, 3)
            self.block = nn.TransformerEncoderLayer(16, 2, 32)

        def forward(self, x):
            return self.head(self.block(self.stem(x).permute(2, 0, 1)).mean(0))

    for batch in (2, 8):  # of 8 tokens
        with pytest.raises(ValueError, match="the batch is not its first dimension"):
            GradCAM(Sequence().eval(), "block")(torch.randn(batch, 2, 32), 1)


def test_positions_that_are_no_grid_of_the_image_are_an_error():
    model = timm.create_model("nest_tiny", pretrained=False, num_classes=5, img_size=112).eval()
    with pytest.raises(ValueError, match="positions are no grid of an image 112 x 112, pass reshape_transform"):
        GradCAM(model, "levels.1.transformer_encoder")(torch.randn(1, 3, 112, 112), 1)
    model = timm.create_model("mobilevitv2_050", pretrained=False, num_classes=5).eval()
    with pytest.raises(ValueError, match="4 x 64 positions are no grid of an image 128 x 128"):  # patches unfolded
        EigenCAM(model, "stages.2.1.transformer.0")(torch.randn(1, 3, 128, 128))


def test_a_convolutional_stage_in_front_of_an_lstm_may_have_any_grid():
    """As text readers have it: 16 times coarser in height than in width."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, (8, 2), 1), nn.ReLU(), nn.MaxPool2d((2, 1)))
            self.lstm, self.head = nn.LSTM(16, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            return self.head(self.lstm(self.stage(x).flatten(1, 2).transpose(1, 2))[0].mean(1))

    x = torch.randn(2, 3, 32, 64)
    for layer in ("stage", "stage.1"):
        assert EigenCAM(Reader().eval(), layer).attribute(x, size=None).shape[::2] == (2, 32)


def test_the_users_transform_is_not_questioned():
    """Where channels last are no grid, AblationCAM and Recipro-CAM still find the channels."""
    model = timm.create_model("nest_tiny", pretrained=False, num_classes=5, img_size=112).eval()
    x, layer = torch.randn(1, 3, 112, 112), "levels.1.transformer_encoder"
    cam = ReciproCAM(model, layer, lambda t: t[:, :, :49].unflatten(2, (7, 7)).flatten(1, 2).movedim(-1, 1))
    assert cam.attribute(x, 1, size=None).ndim == 3


def test_what_was_found_is_not_looked_for_again():
    model, x = timm.create_model("convnext_atto", pretrained=False, num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    cam = FasterScoreCAM(model, "stages.2.blocks[0]", channels=2, batch_size=2)
    for _ in range(2):
        passes.clear()
        cam(x, 1)
    assert len(passes) == 2  # the recorded run, and two masks at once
