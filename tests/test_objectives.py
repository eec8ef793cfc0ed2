"""What is maximised, against plain indexing of a layer's output; objectives as texts and as sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastcam import ClassifierOutputTarget, Objective, maximize
from fastcam.visualize.ascent import frame_of
from fastcam.visualize.evaluation import evaluator, look, objectives_of
from fastcam.visualize.forward import differentiable
from fastcam.visualize.objectives import listed

from models import small_vit, tiny


def values(net, given, x, variants=1):
    sites, classes, goals = objectives_of(net, frame_of(net, x.shape[2:], None, None), given, None)
    assert len(goals) == len(x)
    with differentiable(net, list(sites), complete=classes is not None) as run:
        return evaluator(goals, sites, variants, x.device)(run(x))


def body(net, x):
    return net.body(net.stem(x))


def test_each_kind_is_what_it_says():
    net = tiny().double()
    x = torch.randn(9, 3, 20, 24, dtype=torch.float64)
    v = torch.randn(12)
    given = [
        *("body:3", "body:11", "body:2@1,7", "body:5@center", "head:4", "logit:2"),
        Objective.direction("body", v),
        Objective.of(net.stem, lambda a: a.square().mean((1, 2, 3))),
        ClassifierOutputTarget(1),
    ]
    a, y = body(net, x), net(x)
    expected = [a[0, 3].mean(), a[1, 11].mean(), a[2, 2, 1, 7], a[3, 5, 5, 6], y[4, 4], y[5, 2]]
    expected += [(a[6].mean((1, 2)) * v.double()).sum() / v.double().norm(), net.stem(x)[7].square().mean(), y[8, 1]]
    torch.testing.assert_close(values(net, given, x), torch.stack(expected))


def test_sums_and_differences():
    net = tiny().double()
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    a, y, s = body(net, x), net(x), net.stem(x)
    mixed = 2 * Objective("body:3") - Objective("logit:1") / 4 + "stem:2@0,0"
    found = values(net, [mixed, -Objective("body:0")], x)
    assert found[0].item() == pytest.approx((2 * a[0, 3].mean() - y[0, 1] / 4 + s[0, 2, 0, 0]).item())
    assert found[1].item() == pytest.approx(-a[1, 0].mean().item())
    assert str(mixed) == "2 body:3 - 0.25 logit:1 + stem:2@0,0" and str(-mixed).startswith("- 2 body:3 + 0.25 logit:1")
    assert str(sum([Objective("body:3"), Objective("body:4")])) == "body:3 + body:4"
    assert str("body:1" - Objective.neuron("body", 4)) == "body:1 - body:4@center"
    with pytest.raises(TypeError, match="added to an objective or a text, got int"):
        mixed + 3
    with pytest.raises(TypeError):
        mixed * mixed


def test_diversity_is_minus_the_cosine_of_gram_matrices():
    net = tiny().double()
    x = torch.randn(6, 3, 20, 24, dtype=torch.float64)
    found = values(net, [Objective.diversity("body")] * 6, x, variants=3)
    grams = [torch.einsum("cp,dp->cd", m, m) for m in body(net, x).relu().flatten(2)]
    for n in range(6):
        others = [m for m in range(n // 3 * 3, n // 3 * 3 + 3) if m != n]
        cosines = [(grams[n] * grams[m]).sum() / grams[n].norm() / grams[m].norm() for m in others]
        assert found[n].item() == pytest.approx(-sum(cosines).item() / 2)


def test_tokens_have_channels_last():
    net = small_vit().eval()
    x = torch.randn(2, 3, 64, 64)
    tokens = {}
    handle = net.encoder.layers[1].ln_1.register_forward_hook(lambda m, i, o: tokens.update(t=o.detach()))
    with torch.no_grad():
        net(x)
    handle.remove()
    found = values(net, ["encoder.layers.encoder_layer_1.ln_1:47", "encoder.layers.encoder_layer_1.ln_1:5@16"], x)
    torch.testing.assert_close(found, torch.stack([tokens["t"][0, :, 47].mean(), tokens["t"][1, 16, 5]]))


def test_ranges():
    net = tiny()
    wide = lambda layer: {"body": 12, net.body: 12, "logit": 5}[layer]  # noqa: E731
    assert [str(o) for o in listed(["body:1-3", "logit:*"], None, wide)] == [
        *("body:1", "body:2", "body:3", "logit:0", "logit:1", "logit:2", "logit:3", "logit:4")
    ]
    assert [str(o) for o in listed("body:1-2@center", None, wide)] == ["body:1@center", "body:2@center"]
    assert len(listed("body:*", None, wide)) == 12 and len(listed(net.body, range(4), wide)) == 4
    assert [str(o) for o in listed("logit", [3, 1], wide)] == ["logit:3", "logit:1"]


def test_what_is_read_is_the_layers_own_output():
    """`body` is followed by a ReLU in place."""
    net, x = tiny(), torch.randn(1, 3, 20, 24)
    found = values(net, ["body:3@0,0"], x)
    assert found.item() == pytest.approx(body(net, x)[0, 3, 0, 0].item(), rel=1e-5)
    assert {values(net, [f"body:{k}@0,0"], x).item() < 0 for k in range(12)} == {True, False}


@pytest.mark.parametrize(
    "given, channels, message",
    [
        ("body:12", None, "no channel 12 in body: it has 12 channels, 0 to 11"),
        ("body", [3, 40], "channels must be from 0 to 11, there are 12 channels in body: got 40"),
        ("head:5", None, "no channel 5 in head: it has 5 channels"),
        ("logit:5", None, "no class 5: the model has 5 classes, 0 to 4"),
        ("boddy:1", None, "no layer 'boddy' in the model TinyNet; the nearest names: .*body"),
        ("body:2@10,0", None, "no neuron at \\(10, 0\\) in body: its map is 10 x 12"),
        ("body:2@3", None, "no neuron at \\(3,\\) in body"),
        ("head:2@0,0", None, 'head gives no map but 5 numbers: write "head:2"'),
        ("body", None, "which channels of 'body'\\? \"body:3\", or channels="),
        (nn.ReLU(), None, "which channels of the ReLU"),
        ("body:x", None, "objective 'body:x' is not understood: expected"),
        ("body:1", [2], "channels= goes with a layer"),
        ("body", [], "channels chooses none of the 12 channels in body"),
        ("logit", -6, "channels must be from 0 to 4, there are 5 classes: got -6"),
        ("body:1 - body:2", None, 'a sum, which no text is: write Objective\\("layer:1"\\) - Objective'),
        ("body:1+body:2@1,1", None, "is a sum"),
        ("0.5 * body:1", None, "is a sum"),
        ("stem.*:1", None, "of one layer, 'stem.\\*' means 3: stem.0, stem.1"),
        ([], None, "no objective"),
        (Objective.direction("body", torch.ones(3)), None, "a direction in body has 12 numbers, got shape \\(3,\\)"),
        (Objective.diversity("body"), None, "pass variants=2 or more"),
    ],
)
def test_bad_objectives(given, channels, message):
    with pytest.raises(ValueError, match=message):
        maximize(tiny(), given, channels=channels, size=(20, 24), steps=1)


def test_bad_texts():
    with pytest.raises(ValueError, match="means several channels"):
        Objective("body:0-3")
    with pytest.raises(TypeError, match="objective must be a text.*got float"):
        maximize(tiny(), 3.0, size=20, steps=1)
    assert look(tiny(), frame_of(tiny(), 20, None, None), [], True)[1] == 5


@pytest.mark.parametrize(
    "channels, meant",
    [
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
        (slice(8, None, 2), [8, 10]),
        (range(2, 4), [2, 3]),
        ((n for n in (1, 0)), [1, 0]),
        (torch.tensor([4, 2]), [4, 2]),
        ([np.int32(5), -1], [5, 11]),
    ],
)
def test_channels_are_any_whole_numbers(channels, meant):
    net = tiny()
    goals = objectives_of(net, frame_of(net, 20, None, None), net.body, channels)[2]
    assert [o.terms[0][1].given for o in goals] == meant


@pytest.mark.parametrize(
    "channels", [1.7, True, [1, 2.0], [False], "3", torch.tensor(1.0), torch.tensor([True]), [None]]
)
def test_channels_that_are_no_whole_numbers(channels):
    with pytest.raises(TypeError, match="channels must be"):
        maximize(tiny(), "body", channels=channels, size=20, steps=1)
