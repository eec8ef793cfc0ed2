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

from fastcam.recording import recorded
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
    mixed = [batch - 1, 0, 0, batch - 1, batch // 2]
    kinds = {"all": range(batch), "one": [batch - 1] * 3, "mixed": mixed}
    return {kind: Rows.of(images, torch.device("cpu")) for kind, images in kinds.items()}


KINDS = ("all", "one", "mixed")


def check(net, layer, x, kinds=KINDS, oracle=full, tolerance=1e-6):
    """Replays with a changed activation are the full model's; to the last bit where all images are in order."""
    image, left, results = x.clone(), x.clone(), {}
    with torch.no_grad():
        original = net(left)  # a model may write into its input
    with recorded(net, [layer], x) as run:
        tail = run.tails[layer]
        with tail.replaying() as replay:
            for kind in kinds:
                rows = rows_of(len(x))[kind]
                results[kind] = rows.images, replay(rows, change(tail.rows(rows)))
    assert torch.equal(x, image) or torch.equal(x, left)
    assert_close(run.output, original, 0)
    for kind, (images, result) in results.items():
        wanted = oracle(net, layer, image[images])
        assert not close(wanted, unchanged(net, image[images]), 1e-3), "the layer makes no difference"
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
    for parameter_name, parameter in net.named_parameters():
        if parameter_name.endswith("layer_scale"):
            nn.init.ones_(parameter)
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
        return self.c(self.b(z) + y * scale) + corner.mean() + z


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
        z = self.out_of_sight(y).t
        return self.b(z) + z * y


class WrittenAsAnOutArgument(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        torch.mul(y, 2, out=y)
        return self.b(y) + y


class WrittenByANestedModule(Net):
    def __init__(self):
        super().__init__()
        self.nested = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)))

    def features(self, x):
        y = self.a(self.stem(x))
        self.nested(y)
        return self.b(y) + y


class ReturnsItsArgument(Net):
    def features(self, x):
        y = self.a(self.stem(x))
        z = self.relu(y)
        z += 1
        return self.b(z) + y


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


class DropoutIsTheLayer(Net):
    """Which returns its argument, and that is used again."""

    def __init__(self):
        super().__init__()
        self.b = nn.Dropout()

    def features(self, x):
        y = self.a(self.stem(x))
        return self.c(self.b(y)) + y


class Turned(nn.Module):
    def forward(self, x):
        return x.transpose(2, 3)


class ViewIsTheLayer(Net):
    """Whose output shares its argument's memory, as a permutation's does."""

    def __init__(self):
        super().__init__()
        self.b = Turned()

    def features(self, x):
        y = self.a(self.stem(x))
        return self.c(self.b(y).transpose(2, 3))


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
    WrittenAsAnOutArgument,
    WrittenByANestedModule,
    ReturnsItsArgument,
    DropoutIsTheLayer,
    ViewIsTheLayer,
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


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)


class Positions(nn.Module):
    """A table that no image has a part in."""

    def __init__(self, *shape):
        super().__init__()
        self.table = nn.Parameter(torch.randn(*shape, 8))

    def forward(self):
        return self.table + 0


class Tokens(nn.Module):
    """A class token, positions, a layer inside and one behind attention."""

    batch_first, shape = True, (1, 5)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = Positions(*self.shape)
        self.attend = Attention(self.batch_first)
        self.b = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions()
        tokens, nothing = self.attend(tokens)
        return self.head(tokens[:, 0] + self.b(tokens).relu_().mean(1))


class FlatPositions(Tokens):
    shape = (5,)


class PositionsWritten(Tokens):
    def forward(self, x):
        positions = self.positions()
        positions *= 2
        tokens, nothing = self.attend(self.stem(x).flatten(2).mT + positions[:, 1:])
        return self.head(self.b(tokens).mean(1) + positions[:, 0])


class SequenceFirst(Tokens):
    batch_first = False

    def forward(self, x):
        tokens = self.stem(x).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.token.expand(1, len(x), -1), tokens])
        tokens, nothing = self.attend(tokens + self.positions().transpose(0, 1))
        return self.head(tokens[0] + self.b(tokens).relu_().mean(0))


class RepeatedPositions(Tokens):
    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT
        positions = self.positions().repeat(x.shape[0], 1, 1)
        tokens, nothing = self.attend(torch.cat([self.token + positions[:, :1], tokens + positions[:, 1:]], 1))
        return self.head(self.b(tokens).relu_().mean(1))


class Windows(Net):
    """Four windows of each image, one after the other, around two of the layers."""

    def features(self, x):
        y = self.stem(x)
        B, C, H, W = y.shape
        y = y.view(B, C, 2, H // 2, 2, W // 2).permute(0, 2, 4, 1, 3, 5).reshape(B * 4, C, H // 2, W // 2)
        skip = y
        y = self.relu(self.b(self.a(y))) + skip
        y = y.view(B, 2, 2, C, H // 2, W // 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
        return self.c(y)


class Recurrent(nn.Module):
    """An LSTM, whose states have the batch second, behind the stem."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.lstm = nn.LSTM(8, 8, num_layers=3, batch_first=True)
        self.b = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y, (h, c) = self.lstm(self.stem(x).flatten(2).mT)
        return self.head(self.b(y).mean(1) + h.sum(0) * c[0])


@pytest.mark.parametrize("batch", [1, 3, 4, 5])
@pytest.mark.parametrize(
    "cls, layer",
    [
        (Tokens, "attend"),
        (Tokens, "b"),
        (FlatPositions, "b"),
        (PositionsWritten, "b"),
        (RepeatedPositions, "b"),
        (SequenceFirst, "attend"),
        (SequenceFirst, "b"),
        (Windows, "b"),
        (Windows, "relu"),
        (Windows, "c"),
        (Recurrent, "lstm"),
        (Recurrent, "b"),
    ],
)
def test_where_the_batch_lies(cls, layer, batch):
    """Five tokens: where the batch is five too, only a run with one image more can tell them apart."""
    net, _ = toy(cls)
    check(net, net.get_submodule(layer), torch.randn(batch, 3, 8, 8))


class Scale(nn.Module):
    """A factor for each channel that no image has a part in."""

    def forward(self):
        return torch.arange(1.0, 7.0).view(6, 1, 1)


class Scaled(Net):
    def __init__(self):
        super().__init__()
        self.scale = Scale()

    def features(self, x):
        return self.b(self.stem(x) * self.scale())


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_what_only_happens_to_be_as_long_as_the_batch(batch):
    net, _ = toy(Scaled)
    check(net, net.b, torch.randn(batch, 3, 8, 8))


def test_images_that_have_no_even_share_are_an_error():
    class Some(Net):
        def features(self, x):
            y = self.stem(x)
            return self.b(self.a(y[: len(x) // 2 + 1])).mean() + y

    net, x = toy(Some)
    with pytest.raises(RuntimeError, match="how 3 images lie in .* can't be told"), recorded(net, [net.b], x):
        pass


def test_several_layers_in_one_recording():
    net, x = toy(FunctionalBetween)
    layers = [net.b, net.stem, net.c, net.b]
    with recorded(net, layers, x) as run:
        assert len(run.activations) == 4 and set(run.tails) == {net.b, net.stem, net.c}
        for layer in run.tails:
            with recorded(net, [layer], x) as alone:
                assert torch.equal(alone.tails[layer].activation, run.tails[layer].activation)
            with run.tails[layer].replaying() as replay:
                for rows in rows_of(3).values():
                    result = replay(rows, change(run.tails[layer].rows(rows)))
                    assert_close(result, full(net, layer, x[rows.images]), 1e-6)


def test_a_layer_within_a_layer():
    net, x = network("resnet18")
    layers = [net.layer3, net.layer3[0].downsample, net.layer3[1].relu]
    with recorded(net, layers, x) as run:
        for layer in layers:
            with run.tails[layer].replaying() as replay:
                rows = rows_of(3)["all"]
                assert torch.equal(replay(rows, change(run.tails[layer].rows(rows))), full(net, layer, x))


def test_data_parallel():
    net, x = toy(FunctionalBetween)
    wrapped = nn.DataParallel(net)
    check(wrapped, wrapped.module.b, x)


@pytest.mark.parametrize("name, layer", [("resnet18", "layer3.1.relu"), ("mobilenet_v3_small", "features.4.block.1")])
def test_channels_last(name, layer):
    net, x = network(name)
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    check(net, net.get_submodule(layer), x, ["all"])
    with recorded(net, [net.get_submodule(layer)], x) as run:
        for rows in rows_of(3).values():
            assert run.tails[run.layers[0]].rows(rows).is_contiguous(memory_format=torch.channels_last)
    check(net.double(), net.get_submodule(layer), x.double(), ["one", "mixed"], tolerance=1e-10)


def test_the_order_of_calls_may_not_depend_on_the_images():
    class Fickle(Net):
        def features(self, x):
            y = self.stem(x)
            return self.c(self.a(y) if x.mean() > 0 else self.b(y))

    net, x = toy(Fickle)
    x[0] += 10
    x[1] -= 1
    with recorded(net, [net.c], x) as run, run.tails[net.c].replaying() as replay:
        rows = Rows.of([1, 1], torch.device("cpu"))
        with pytest.raises(RuntimeError, match="called 'b' where the recorded run called 'a'"):
            replay(rows, run.tails[net.c].rows(rows))
        rows = Rows.of([0, 0], torch.device("cpu"))
        assert replay(rows, run.tails[net.c].rows(rows)).shape == (2, 5)


def test_a_model_that_stops_before_the_layer_is_an_error():
    class Early(Net):
        def features(self, x):
            y = self.stem(x)
            return self.c(y) if x.mean() > 0 else y

        def forward(self, x):
            return self.features(x).mean((2, 3))

    net, x = toy(Early)
    x[0] += 10
    x[1] -= 1
    with recorded(net, [net.c], x) as run, run.tails[net.c].replaying() as replay:
        rows = Rows.of([1, 1], torch.device("cpu"))
        with pytest.raises(RuntimeError, match="ended where the recorded run called 'c'"):
            replay(rows, run.tails[net.c].rows(rows))


def test_a_layer_that_does_not_run_is_an_error():
    net, x = toy(FunctionalBetween)
    with pytest.raises(ValueError, match="'twin.conv' did not run"), recorded(net, [net.b, net.twin.conv], x):
        pass


def test_a_layer_called_by_a_module_that_does_not_hold_it_is_an_error():
    class Borrower(nn.Module):
        def forward(self, x, call):
            return call(x)

    class Lending(Net):
        def __init__(self):
            super().__init__()
            self.borrower = Borrower()

        def features(self, x):
            return self.c(self.borrower(self.stem(x), self.b))

    net, x = toy(Lending)
    with pytest.raises(RuntimeError, match="Conv2d is called by a module that does not hold it"):
        recorded(net, [net.b], x).__enter__()
    check(net, net.c, x)


class Counting(nn.Conv2d):
    samples = 0

    def forward(self, x):
        self.samples += len(x)
        return super().forward(x)


def test_what_precedes_the_layer_is_not_computed_again():
    net, x = toy(FunctionalBetween)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = Counting
    with recorded(net, [net.b], x) as run, run.tails[net.b].replaying() as replay:
        assert net.stem.samples == net.a.samples == net.b.samples == net.c.samples == 3
        for rows in rows_of(3).values():
            replay(rows, run.tails[net.b].rows(rows))
    assert net.stem.samples == net.a.samples == net.b.samples == 3
    assert net.c.samples == 3 + 3 + 3 + 5


@pytest.mark.parametrize("cls", TOYS, ids=lambda c: c.__name__)
def test_the_activation_is_the_layers_own(cls):
    """Whatever the model writes into it later."""
    net, x = toy(cls)
    seen = []
    handle = net.b.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    unchanged(net, x)
    handle.remove()
    with recorded(net, [net.b], x) as run:
        assert torch.equal(run.activations[0], seen[0]) and torch.equal(run.tails[net.b].activation, seen[0])
        assert torch.equal(run.tails[net.b].rows(rows_of(3)["one"]), seen[0][[2, 2, 2]])


def full_in_place(net, layer, x):
    """The model with the output of the layer's first call changed in its own memory."""
    calls = []
    handle = layer.register_forward_hook(lambda m, i, o: calls.append(m) if calls else calls.append(change(o)))
    try:
        return unchanged(net, x)
    finally:
        handle.remove()


def test_an_in_place_layer_whose_return_value_is_ignored():
    net, x = toy(ReturnValueIgnored)
    check(net, net.relu, x, oracle=full_in_place)


def test_modules_of_the_tail_are_given_plain_tensors():
    class Late(Net):
        def features(self, x):
            y = self.stem(x)
            return self.b(self.a(y)) + self.c(input=y) + self.relu(y)

    net, x = toy(Late)
    with recorded(net, [net.b], x) as run, run.tails[net.b].replaying() as replay:
        kinds = []
        for module in (net.c, net.relu):
            module.register_forward_pre_hook(lambda m, i, k: kinds.append(type((*i, *k.values())[0])), with_kwargs=True)
        replay(rows_of(3)["one"], run.tails[net.b].rows(rows_of(3)["one"]))
    assert kinds == [torch.Tensor] * 2


@pytest.mark.parametrize("cls", TOYS, ids=lambda c: c.__name__)
def test_records_survive_replays(cls):
    net, x = toy(cls)
    with recorded(net, [net.b], x) as run:
        tail, results = run.tails[net.b], []
        activation = tail.activation.clone()
        for _ in range(2):
            with tail.replaying() as replay:
                for rows in rows_of(3).values():
                    results += [replay(rows, change(tail.rows(rows))) for _ in range(2)]
        assert torch.equal(tail.activation, activation)
    for n in range(3):
        for other in (2 * n + 1, 2 * n + 6, 2 * n + 7):
            assert_close(results[other], results[2 * n], 0)


def test_hooks_of_the_user():
    net, x = toy(FunctionalBetween)
    fired = []
    for name in ("stem", "a", "b", "c"):
        net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: fired.append(name))
        net.get_submodule(name).register_forward_pre_hook(lambda m, i, name=name: fired.append(name))
    with recorded(net, [net.b], x) as run, run.tails[net.b].replaying() as replay:
        assert fired == [name for name in ["stem", "a", "b", "c"] for _ in range(2)]
        fired.clear()
        rows = rows_of(3)["all"]
        assert torch.equal(replay(rows, run.tails[net.b].rows(rows)), run.output)
        assert fired == ["c", "c"]


def test_outputs_that_the_users_hooks_changed():
    net, x = toy(FunctionalBetween)
    for layer in (net.a, net.b, net.c):
        layer.register_forward_hook(lambda m, i, o: o.tanh() + 1)
    check(net, net.b, x)


def test_gradients_stay_off_and_the_model_in_evaluation_mode():
    net = tiny().train()
    x = torch.randn(2, 3, 20, 24, requires_grad=True)
    with recorded(net, [net.body], x) as run, run.tails[net.body].replaying() as replay:
        rows = rows_of(2)["mixed"]
        assert not replay(rows, run.tails[net.body].rows(rows)).requires_grad and not net.training
    assert net.training
