"""Names, index paths, globs and None to modules, and the table of layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import fastcam
from fastcam import EigenCAM, GradCAM
from fastcam.layers import default_layer, find_layers, layer_name, suggest

from models import TinyNet, build, inputs, small_vit, tiny, tokens_to_map


@pytest.fixture(scope="module")
def resnet():
    return build("resnet18")


def names(model, layers):
    return [layer_name(model, m) for m in find_layers(model, layers)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("layer4.1", ["layer4.1"]),
        ("layer4[-1]", ["layer4.1"]),
        ("layer4[0].conv2", ["layer4.0.conv2"]),
        ("layer4.0.downsample[1]", ["layer4.0.downsample.1"]),
        ("layer[34]", None),
        ("layer?.1.conv2", [f"layer{n}.1.conv2" for n in (1, 2, 3, 4)]),
        ("layer*", ["layer1", "layer2", "layer3", "layer4"]),
        ("layer4.*.conv*", ["layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]),
        (["layer3", "layer4[-1]"], ["layer3", "layer4.1"]),
    ],
)
def test_layers_by_name(resnet, given, expected):
    if expected is None:
        with pytest.raises(ValueError, match="no layer"):
            find_layers(resnet, given)
    else:
        assert names(resnet, given) == expected


def test_layers_by_module(resnet):
    assert find_layers(resnet, resnet.layer3) == [resnet.layer3]
    assert find_layers(resnet, [resnet.layer3, "layer4"]) == [resnet.layer3, resnet.layer4]
    compiled = torch.compile(resnet, backend="eager")
    assert find_layers(compiled, "layer4") == [resnet.layer4]
    assert find_layers(nn.DataParallel(resnet), "layer4") == [resnet.layer4]


def test_an_unknown_name_lists_the_nearest(resnet):
    with pytest.raises(ValueError, match=r"no layer 'layer4\.9' in the model ResNet; the nearest names: .*layer4\.1"):
        find_layers(resnet, "layer4.9")
    for wrong in ("layer4[7]", "nothing*", "layer4[-1", "layer4..1", ""):
        with pytest.raises(ValueError, match="no layer"):
            find_layers(resnet, wrong)


def test_what_is_no_layer_of_the_model(resnet):
    with pytest.raises(ValueError, match="Conv2d.*is not in the model ResNet"):
        GradCAM(resnet, nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="a module or a name, got int"):
        GradCAM(resnet, 4)
    with pytest.raises(ValueError, match="the list of target layers is empty"):
        GradCAM(resnet, [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "layer4"),
        ("vgg11_bn", "features"),
        ("densenet121", "features"),
        ("mobilenet_v3_small", "features"),
        ("grey_resnet18", "layer4"),
        ("small_vit", "encoder.layers.encoder_layer_2.ln_1"),
    ],
)
def test_none_is_the_last_stage_before_pooling(name, expected):
    model = build(name)
    assert layer_name(model, default_layer(model, inputs(name, 1))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("googlenet", "inception5b"), ("convnext_tiny", "features"), ("shufflenet_v2_x0_5", "conv5")],
)
def test_none_on_other_architectures(name, expected):
    keywords = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**keywords).eval()
    assert layer_name(model, default_layer(model, torch.rand(1, 3, 64, 64))) == expected


def test_none_inside_a_wrapper_and_in_one_dimension():
    wrapped = nn.Sequential(tiny(), nn.Identity())
    assert layer_name(wrapped, default_layer(wrapped, torch.rand(1, 3, 20, 24))) == "0.tail"
    signals = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    assert layer_name(signals, default_layer(signals, torch.rand(1, 2, 30))) == "0"
    assert GradCAM(signals)(torch.rand(5, 2, 30)).shape == (5, 30)


def test_none_on_a_transformer_with_its_norms_behind_the_attention():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            tokens = self.patches(x).flatten(2).mT
            return self.head(self.blocks(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))[:, 0])

    net, x = Tokens().eval(), torch.rand(2, 3, 16, 16)
    assert layer_name(net, default_layer(net, x)) == "blocks.layers.1"
    cam = GradCAM(net, None, lambda t: t[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1))
    assert cam.attribute(x, normalize=False).any()


def test_names_of_shared_and_compiled_modules():
    net = tiny()
    net.again = net.body
    assert find_layers(net, "again") == [net.body]
    net.body = torch.compile(net.body, backend="eager")
    assert find_layers(net, "body[0]") == [net.again[0]]


def test_none_costs_one_run_for_a_model_and_shape():
    class Counting(TinyNet):
        runs = 0

        def forward(self, x):
            Counting.runs += 1
            return super().forward(x)

    net, x = tiny(Counting), torch.randn(2, 3, 20, 24)
    expected = GradCAM(net, "tail")(x)
    Counting.runs = 0
    for cam in (GradCAM(net), GradCAM(net)):
        np.testing.assert_array_equal(cam(x), expected)
    assert Counting.runs == 3
    net.tail = nn.Conv2d(12, 16, 1)  # what was remembered is no longer in the model
    assert default_layer(net, x) is net.tail


def test_a_model_without_a_stage():
    with pytest.raises(ValueError, match="no convolutional stage"):
        GradCAM(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))(torch.rand(1, 3, 2, 2))


def test_a_gradient_of_zero_warns_and_names_a_better_layer():
    model, x = build("small_vit"), inputs("small_vit", 2)
    behind = GradCAM(model, "encoder.layers[-1]", tokens_to_map)
    with pytest.warns(UserWarning, match=r"zero everywhere at layer 'encoder\.layers\.encoder_layer_2'.*layer_2\.ln_1"):
        assert not behind(x).any()
    assert GradCAM(model, None, tokens_to_map)(x).max() > 0.9


def test_a_later_gradient_of_zero_warns_too_at_the_callers_line():
    net, x = tiny(), torch.randn(1, 3, 20, 24)
    with torch.no_grad():
        net.head.weight[1] = 0
    cam = GradCAM(net, "body")
    assert cam(x, 0).any()
    with pytest.warns(UserWarning, match="zero everywhere") as caught:
        cam(x, 1)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_a_gradient_that_is_zero_in_one_channel_only_does_not_warn():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        net[2].weight[:, :36] = 0  # what follows the first channel
        net[2].weight[:, 36:].abs_()
        net[0].bias.fill_(1)
    assert GradCAM(net, "0")(torch.rand(2, 1, 8, 8), 0).any()


def test_a_dead_layer_of_a_model_without_convolutions():
    net = nn.Sequential(nn.Flatten(2), nn.Linear(16, 6), nn.Flatten(), nn.Linear(18, 2))
    nn.init.zeros_(net[3].weight)
    with pytest.warns(UserWarning, match="its map is empty$"):
        GradCAM(net, "1", lambda t: t.unflatten(2, (2, 3)))(torch.rand(2, 3, 4, 4))


def test_no_warning_for_a_live_layer(recwarn):
    GradCAM(tiny(), "body")(torch.randn(1, 3, 20, 24))
    assert not recwarn.list


def test_layer_table(resnet):
    x = inputs("resnet18", 2)
    table = {row.name: row for row in fastcam.layer_table(resnet, x)}
    assert table["layer3"].shape == (2, 256, 6, 8) and table["fc"].shape == (2, 20)
    assert table["layer1"].order < table["layer2"].order
    assert list(table) == [n for n, _ in resnet.named_modules() if n]
    assert suggest(list(table.values()), 4).name == "layer4"
    unused = tiny()
    unused.spare = nn.Conv2d(1, 1, 1)
    (spare,) = (r for r in fastcam.layer_table(unused, torch.rand(1, 3, 20, 24)) if r.name == "spare")
    assert spare.shape is None and spare.order == -1


def test_channels_last_outputs_are_told_from_channels_first():
    swin = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5).eval()
    x = torch.rand(1, 3, 64, 64)
    np.testing.assert_array_equal(EigenCAM(swin)(x), EigenCAM(swin, "features", lambda t: t.movedim(-1, 1))(x))
    # A width that equals a channel count inside the layer says nothing where a convolution made the output.
    square = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))
    assert EigenCAM(nn.Sequential(square, nn.Conv2d(6, 6, 1)), "0")(torch.rand(1, 3, 4, 4)).shape == (1, 4, 4)


def test_small_vit_is_what_the_transform_says():
    assert tokens_to_map(torch.rand(2, 17, 48)).shape == (2, 48, 4, 4)
    assert sum(1 for m in small_vit().modules() if isinstance(m, nn.MultiheadAttention)) == 3
