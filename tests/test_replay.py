"""What follows a layer, run alone, against the full model with that layer's first output replaced."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from fastcam.replay import recorded
from fastcam.rows import Rows

from models import small_headed_vgg11_bn, small_vit, tiny


def change(output):
    """Damps half the channels of the first tensor in a layer's output, in place."""
    t = next(t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor))
    dim = 1 if t.ndim == 4 else -1
    t.narrow(dim, 0, (t.shape[dim] + 1) // 2).mul_(-0.5)
    return output


def full(net, layer, x):
    """The model with the output of the layer's first call changed in a copy, or in place if nothing uses the copy."""
    calls = []

    def hook(module, inputs, output):
        calls.append(module)
        return change(pytree.tree_map_only(torch.Tensor, torch.clone, output)) if len(calls) == 1 else None

    handle = layer.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return net(x.clone())
    finally:
        handle.remove()


def rows_of(batch):
    """All images in order, three times the last one, and an odd mixture."""
    one = torch.full((3,), batch - 1)
    mixed = torch.tensor([batch - 1, 0, 0, batch - 1, batch // 2])
    return {"all": Rows(torch.arange(batch)), "one": Rows(one, batch - 1), "mixed": Rows(mixed)}


KINDS = ("all", "one", "mixed")


def check(net, layer, x, kinds=KINDS, oracle=full, tolerance=1e-6):
    """Replays with a changed activation are the full model's; to the last bit where all images are in order."""
    image, results = x.clone(), {}
    original = unchanged(net, x)
    with recorded(net, [layer], x) as run:
        tail = run.tails[layer]
        with tail.replaying() as replay:
            for kind in kinds:
                rows = rows_of(len(x))[kind]
                results[kind] = rows.images, replay(rows, change(tail.rows(rows)))
    assert torch.equal(x, image)
    assert_close(run.output, original, 0)
    for kind, (images, result) in results.items():
        wanted = oracle(net, layer, x[images])
        assert not close(wanted, unchanged(net, x[images]), 1e-3), "the layer makes no difference"
        assert_close(result, wanted, 0 if kind == "all" else tolerance)


def unchanged(net, x):
    with torch.no_grad():
        return net(x.clone())


def leaves(output):
    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def close(output, wanted, tolerance):
    return all(
        (a - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(leaves(output), leaves(wanted), strict=True)
    )


def assert_close(output, wanted, tolerance):
    assert pytree.tree_structure(output) == pytree.tree_structure(wanted)
    assert [t.shape for t in leaves(output)] == [t.shape for t in leaves(wanted)]
    if tolerance:
        assert close(output, wanted, tolerance)
    else:
        assert all(map(torch.equal, leaves(output), leaves(wanted)))


def small_convnext():
    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, 48, 2), CNBlockConfig(48, None, 2)], num_classes=10)


def small_swin():
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10)


def small_googlenet():
    return torchvision.models.GoogLeNet(num_classes=10, aux_logits=False, transform_input=True, init_weights=False)


NETWORKS = {
    "resnet18": (torchvision.models.resnet18, 64),
    "vgg11_bn": (small_headed_vgg11_bn, 64),
    "densenet121": (torchvision.models.densenet121, 64),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 64),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 64),
    "googlenet": (small_googlenet, 64),
    "convnext": (small_convnext, 64),
    "swin": (small_swin, 32),
    "vit": (small_vit, 64),
}
LAYERS = {
    "resnet18": ["layer4", "layer2.1", "layer3.1.relu", "layer3.0.conv2", "layer3.0.downsample.1", "conv1", "fc"],
    "vgg11_bn": ["features.27", "features.13", "features.11", "classifier.1"],
    "densenet121": [
        "features.norm5",
        "features.denseblock3",
        "features.denseblock3.denselayer2.relu1",
        "features.denseblock4.denselayer3.conv1",
    ],
    "efficientnet_b0": ["features.8", "features.4.1", "features.5.1.block.2.scale_activation", "features.6.0.block.1"],
    "mobilenet_v3_small": ["features.12", "features.4", "features.5.block.2.fc1", "features.8.block.0.2"],
    "googlenet": ["inception5b", "inception4b", "inception4c.branch3.0.conv", "inception4d.branch4.0"],
    "convnext": ["features.5", "features.3.1", "features.5.0.block.3", "features.4"],
    "swin": ["features.3.1.norm1", "features.1.1.attn", "features.3.0.mlp.1", "features.2.reduction", "norm"],
    "vit": [
        "encoder.layers.encoder_layer_2.ln_1",
        "encoder.layers.encoder_layer_1.self_attention",
        "encoder.layers.encoder_layer_1.mlp.0",
        "conv_proj",
    ],
}


@functools.cache
def network(name, dtype=torch.float32):
    """The network in evaluation mode, and images; batch norm has seen them, no head is zero."""
    if dtype == torch.float64:
        net, x = network(name)
        return copy.deepcopy(net).double(), x[:2].double()
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    net, x = build().train(), torch.randn(3, 3, size, size)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight)
    unchanged(net, x)
    return net.eval(), x


@pytest.mark.parametrize("name, layer", [(name, layer) for name in LAYERS for layer in LAYERS[name]])
def test_networks(name, layer):
    """The same batch to the last bit; other batches in double precision, where rounding hides nothing."""
    net, x = network(name)
    check(net, net.get_submodule(layer), x, ["all"])
    net, x = network(name, torch.float64)
    check(net, net.get_submodule(layer), x, ["one", "mixed"], tolerance=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_networks_recorded_with_one_image(name):
    net, x = network(name, torch.float64)
    check(net, net.get_submodule(LAYERS[name][1]), x[:1], tolerance=1e-10)


class Net(nn.Module):
    """A stem, a block to put something around, a tail; convolutions keep the shape `(B, 6, 8, 8)`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1) for _ in "abc")
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(6)
        self.widen = nn.Conv2d(3, 6, 1)
        self.flatten = nn.Flatten()
        self.twin = Twin()
        self.maybe = Maybe()
        self.out_of_sight = Boxed()
        self.head = nn.Linear(6 * 64, 5)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x, *, scale=1.0):
        return {"y": self.conv(x) * scale, "rest": [None, (x, 3)]}


class Maybe(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(6, 6, 1)

    def forward(self, x, want=False):
        return (self.seen(x), None) if want else None


class Box:
    def __init__(self, t):
        self.t = t


class Boxed(nn.Module):
    """Returns what is no structure of tensors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return Box(self.conv(x).relu_())


class CalledTwice(Net):
    """One module before and behind the layer; the layer twice."""

    def features(self, x):
        x = self.a(self.stem(x))
        return self.a(self.b(self.a(self.b(x))))


class DictOutput(Net):
    def forward(self, x):
        y = self.b(self.a(self.stem(x)))
        return {"logits": self.head(y.flatten(1)), "features": [y, y.mean((2, 3))]}


class RecordsInTheOutput(Net):
    def forward(self, x):
        early = self.a(self.stem(x))
        return self.head(self.b(early).flatten(1)), early


class InPlaceAdditionBeforeTheLayer(Net):
    def features(self, x):
        skip = self.stem(x)
        y = self.a(skip)
        y += skip
        return self.b(y) + y * skip


class InPlaceAdditionInTheTail(Net):
    """Into what a module before the layer returned."""

    def features(self, x):
        skip = self.stem(x)
        y = self.a(skip)
        skip += self.b(y)
        y *= 2
        return skip * y


class InPlaceIntoTheLayersOutput(Net):
    def features(self, x):
        y = self.b(self.a(self.stem(x)))
        z = y.relu()
        y += 1
        y.relu_()
        return y * z


class ReturnValueIgnored(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        self.relu(y)
        y = self.b(y)
        self.relu(y[:, :3])
        return self.c(y) + y


class RawInputInTheTail(Net):
    def features(self, x):
        return self.b(self.a(self.stem(x))) + self.widen(x) * x.mean(1, keepdim=True)


class RawInputWrittenBefore(Net):
    def features(self, x):
        x = x.clone().detach() if self.training else x
        x -= 0.5
        x[:, 0].mul_(2)
        return self.b(self.a(self.stem(x))) + self.widen(x) + x.sum(1, keepdim=True)


class RawInputWrittenInTheTail(Net):
    def features(self, x):
        y = self.b(self.a(self.stem(x)))
        x -= 0.5
        return y + self.widen(x)


class FunctionalBetween(Net):
    """Reads and writes what modules returned, views of it included."""

    def features(self, x):
        y = self.stem(x)
        corner = y[:, :2, 1:]
        corner.mul_(3)
        z = self.a(y)
        z[:, ::2] = y[:, 1::2]
        scale = F.softmax(z.mean((2, 3)), 1)[:, :, None, None]
        torch.relu_(z[0:, 3:])
        z = torch.cat([z[:, :3], torch.stack([y, z]).sum(0)[:, 3:]], 1)
        return self.c(self.b(z) + y * scale) + corner.sum() / corner.numel() * 0 + z


class ViewsSeeWhatAModuleWrites(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        view = y[:, 1:4]
        self.relu(y)
        late = y.flatten(1)
        self.relu(view.sub_(0.1))
        return self.b(y) + view.repeat(1, 2, 1, 1) * late.mean(1)[:, None, None, None]


class Keywords(Net):
    def features(self, x):
        result = self.twin(x=self.stem(x), scale=2.0)
        passed, three = result["rest"][1]
        return self.b(self.a(input=result["y"])) * three + passed


class KeywordWritten(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        self.relu(input=y)
        return self.b(y) + y


class Nothing(Net):
    def features(self, x):
        y = self.stem(x)
        assert self.maybe(y) is None
        z, nothing = self.maybe(self.a(y), want=True)
        assert nothing is None
        return self.b(z) + y


class CustomObject(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        return self.b(self.out_of_sight(y).t) + y


class ModuleReturnsAView(Net):
    """Into which the model writes."""

    def features(self, x):
        y = self.a(self.stem(x))
        self.flatten(y).relu_()
        return self.b(y) + y


class ModuleReturnsAViewWrittenByAModule(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        self.relu(self.flatten(y))
        return self.b(y) + y


TOYS = [
    CalledTwice,
    DictOutput,
    RecordsInTheOutput,
    InPlaceAdditionBeforeTheLayer,
    InPlaceAdditionInTheTail,
    InPlaceIntoTheLayersOutput,
    ReturnValueIgnored,
    RawInputInTheTail,
    RawInputWrittenBefore,
    RawInputWrittenInTheTail,
    FunctionalBetween,
    ViewsSeeWhatAModuleWrites,
    Keywords,
    KeywordWritten,
    Nothing,
    CustomObject,
    ModuleReturnsAView,
    ModuleReturnsAViewWrittenByAModule,
]


def toy(cls):
    torch.manual_seed(5)
    return cls().eval(), torch.randn(3, 3, 8, 8)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layer", ["a", "b"])
@pytest.mark.parametrize("cls", TOYS, ids=lambda c: c.__name__)
def test_forwards(cls, layer, batch):
    net, x = toy(cls)
    check(net, net.get_submodule(layer), x[:batch])
