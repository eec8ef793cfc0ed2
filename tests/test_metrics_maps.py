"""Localisation, sparseness, baseline maps and the randomisation of a model."""

import copy

import numpy as np
import pytest
import torch

import fastcam
from fastcam import metrics

from models import build, inputs, tiny


def test_pointing_game():
    maps = torch.zeros(2, 6, 8)
    maps[0, 2, 3] = maps[1, 5, 7] = 1
    boxes = torch.tensor([[2, 3, 4, 5], [0, 0, 5, 7]])
    assert metrics.pointing_game(maps, boxes) == 0.5
    assert metrics.box_share(boxes, 6, 8) == pytest.approx((4 + 35) / 2 / 48)


def test_energy_pointing_game():
    maps = torch.randn(3, 7, 9)
    maps[2] = -1
    boxes = torch.tensor([[1, 2, 5, 6], [0, 0, 7, 9], [0, 0, 3, 3]])
    ours = metrics.energy_pointing_game(maps, boxes)
    positive = maps[0].relu()
    torch.testing.assert_close(ours[0], positive[1:5, 2:6].sum() / positive.sum())
    torch.testing.assert_close(ours[1:], torch.tensor([1.0, 0.0]))
    masks = torch.zeros(3, 7, 9, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    torch.testing.assert_close(metrics.energy_pointing_game(maps, masks), ours)
    with pytest.raises(ValueError, match="boxes must be"):
        metrics.energy_pointing_game(maps, boxes[:2])


def test_image_grids():
    classes = torch.tensor([4, 4, 7, 1, 9, 9, 2])
    x = classes.float().view(-1, 1, 1, 1) + torch.arange(7).view(-1, 1, 1, 1) / 100 + torch.zeros(7, 2, 3, 5)
    state = torch.get_rng_state()
    grids, cells = metrics.image_grids(x, classes, n=2, count=40, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert grids.shape == (40, 2, 6, 10) and cells.shape == (40, 4)
    seen = set()
    for grid, kinds in zip(grids, cells, strict=True):
        assert len(set(kinds.tolist())) == 4
        for place, kind in enumerate(kinds.tolist()):
            row, column = divmod(place, 2)
            cell = grid[:, 3 * row : 3 * row + 3, 5 * column : 5 * column + 5]
            assert (cell == cell[0, 0, 0]).all() and int(cell[0, 0, 0]) == kind
            seen.add(round(cell[0, 0, 0].item(), 2))
    assert len(seen) == 7
    again, _ = metrics.image_grids(x, classes, n=2, count=40, seed=3)
    assert torch.equal(again, grids)
    with pytest.raises(ValueError, match="as many classes, got 5"):
        metrics.image_grids(x, classes, n=3)
    with pytest.raises(ValueError, match="classes must be"):
        metrics.image_grids(x, classes[:3], n=2)


def test_grid_pointing_game():
    maps = torch.randn(2, 4, 6, 10)
    maps[1, 3] = -1
    ours = metrics.grid_pointing_game(maps, 2)
    for g in range(2):
        for place in range(4):
            row, column = divmod(place, 2)
            positive = maps[g, place].relu()
            share = positive[3 * row : 3 * row + 3, 5 * column : 5 * column + 5].sum() / positive.sum().clamp(min=1e-9)
            torch.testing.assert_close(ours[g, place], share)
    torch.testing.assert_close(metrics.grid_pointing_game(torch.ones(1, 9, 6, 6)), torch.full((1, 9), 1 / 9))
    for wrong in (torch.ones(1, 3, 6, 6), torch.ones(1, 4, 5, 6), torch.ones(4, 6, 6)):
        with pytest.raises(ValueError, match="maps"):
            metrics.grid_pointing_game(wrong)
    with pytest.raises(ValueError, match="maps"):
        metrics.grid_pointing_game(torch.ones(1, 4, 6, 6), 3)


def test_grids_are_what_a_method_explains():
    model, x = build("resnet18"), inputs("resnet18", 4)
    grids, cells = metrics.image_grids(x, torch.tensor([3, 1, 7, 2]), n=2)
    maps = fastcam.GradCAM(model, "layer3").attribute(grids, cells, normalize=False)
    shares = metrics.grid_pointing_game(maps)
    assert shares.shape == (1, 4) and shares.std() > 0


def test_sparseness():
    maps = torch.randn(3, 5, 7)
    ours = metrics.sparseness(maps)
    for i in range(3):
        v = maps[i].abs().flatten().double()
        differences = (v[:, None] - v[None]).abs().sum()
        gini = differences / (2 * len(v) ** 2 * v.mean())
        torch.testing.assert_close(ours[i].double(), gini, rtol=0, atol=1e-6)
    one = torch.zeros(1, 5, 7)
    one[0, 2, 2] = 3
    extremes = metrics.sparseness(torch.cat([torch.ones(1, 5, 7), torch.zeros(1, 5, 7), one]))
    torch.testing.assert_close(extremes, torch.tensor([0, 0, 1 - 1 / 35]), rtol=0, atol=1e-6)


def test_baseline_maps():
    state = torch.get_rng_state()
    noise = metrics.random_maps(2, 30, 40, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert noise.shape == (2, 30, 40) and noise.min() >= 0 and noise.max() < 1
    assert torch.equal(noise, metrics.random_maps(2, 30, 40, seed=1))
    assert not torch.equal(noise, metrics.random_maps(2, 30, 40, seed=2)) and not torch.equal(noise[0], noise[1])
    centre = metrics.centre_gaussian_maps(2, 31, 40)
    assert centre.shape == (2, 31, 40) and centre.max() == 1 and centre.min() > 0
    torch.testing.assert_close(centre, centre.flip(1, 2))
    assert centre[0, 15, 19] == 1
    y, x = (4 + 0.5) / 31 - 0.5, (7 + 0.5) / 40 - 0.5
    expected = np.exp(-(y**2 + x**2) / (2 * 0.25**2)) / np.exp(-((0.5 / 40) ** 2) / (2 * 0.25**2))
    assert centre[0, 4, 7].item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="std"):
        metrics.centre_gaussian_maps(1, 3, 3, std=0)


def gradcam(x):
    return lambda net: fastcam.GradCAM(net, "body")(x, 1)


def test_randomisation_from_the_head_down():
    model, x = tiny(), torch.randn(2, 3, 16, 20)
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen = []

    def explain(net):
        seen.append({n: p.detach().clone() for n, p in net.named_parameters()})
        return fastcam.GradCAM(net, "body")(x, 1)

    stages = metrics.model_randomisation(model, explain)
    assert torch.equal(state, torch.get_rng_state()) and all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [stage.layer for stage in stages] == ["head", "tail", "body.0", "stem.0"]
    changed = [{n for n, p in now.items() if not torch.equal(p, seen[0][n])} for now in seen]
    assert changed[0] == set() and changed[1] == {"head.weight", "head.bias"}
    assert changed[2] == changed[1] | {"tail.weight", "tail.bias"}
    assert {"body.0.weight"} <= changed[3] - changed[2] and "stem.0.weight" in changed[4]
    original = gradcam(x)(model.eval())
    for stage in stages:
        assert stage.maps.shape == (2, 16, 20)
        for i in range(2):
            expected = np.corrcoef(original[i].ravel(), stage.maps[i].numpy().ravel())[0, 1]
            assert abs(stage.pearson[i].item() - np.nan_to_num(expected)) < 1e-5
        torch.testing.assert_close(stage.spearman, metrics.spearman(torch.from_numpy(original), stage.maps))
    assert stages[-1].pearson.abs().max() < 0.99
    again = metrics.model_randomisation(model, gradcam(x))
    assert all(torch.equal(a.maps, b.maps) for a, b in zip(stages, again, strict=True))
    other = metrics.model_randomisation(model, gradcam(x), seed=1)
    assert not torch.equal(stages[0].maps, other[0].maps)


def test_randomisation_of_chosen_layers_one_at_a_time():
    model, x = tiny(), torch.randn(1, 3, 16, 20)
    seen = []

    def explain(net):
        seen.append({n for n, p in net.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])})
        return x[:, 0]

    stages = metrics.model_randomisation(model, explain, ["head", model.stem], cascade=False)
    assert [stage.layer for stage in stages] == ["head", "stem"]
    assert seen[0] == set() and seen[1] == {"head.weight", "head.bias"}
    assert "stem.0.weight" in seen[2] and all(n.startswith("stem") for n in seen[2])
    assert all(stage.spearman == 1 and abs(stage.pearson - 1) < 1e-6 for stage in stages)


def test_randomisation_reaches_parameters_without_a_module_of_their_own():
    model, x = build("small_vit"), inputs("small_vit", 1)
    last = {}

    def explain(net):
        last.update((n, p.detach().clone()) for n, p in net.named_parameters())
        return net(x)

    metrics.model_randomisation(model, explain)
    learned = dict(model.named_parameters())
    kept = {n for n, p in last.items() if torch.equal(p, learned[n]) and p.numel() > 1 and p.std() > 0}
    assert kept == set()
    assert all(p.isfinite().all() for p in last.values())


def test_randomisation_wrong_input():
    model, x = tiny(), torch.randn(1, 3, 16, 20)
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        metrics.model_randomisation(model, gradcam(x), ["nowhere"])
    with pytest.raises(TypeError, match="explain must give maps"):
        metrics.model_randomisation(model, lambda net: None)
    with pytest.raises(ValueError, match="no layer with weights"):
        metrics.model_randomisation(torch.nn.ReLU(), lambda net: x[:, 0])
