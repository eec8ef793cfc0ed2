"""Insertion, deletion, average drop, increase and gain, ADCC: against naive loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastcam
from fastcam import metrics
from fastcam.metrics.curves import blurred

from models import build, inputs, tiny

CLASSES = [3, 1, 7]


@pytest.fixture(scope="module", params=["resnet18", "grey_resnet18"])
def case(request):
    model, x = build(request.param), inputs(request.param)
    return model, x, fastcam.GradCAM(model, "layer3")(x, CLASSES)


def probability(model, image, c, softmax=True):
    with torch.no_grad():
        logits = model(image[None])[0]
    return (logits.softmax(0) if softmax else logits)[c]


def curve(model, image, m, c, steps, other, inserted, softmax=True):
    """An image at a time; the pixels in the order of a stable sort."""
    order = np.argsort(-m.ravel(), kind="stable")
    points = []
    for s in range(steps + 1):
        first = torch.zeros(m.size, dtype=torch.bool)
        first[order[: round(s * m.size / steps)].copy()] = True
        first = first.view(m.shape)
        mixed = torch.where(first, image, other) if inserted else torch.where(first, other, image)
        points.append(probability(model, mixed, c, softmax))
    return torch.stack(points)


@pytest.mark.parametrize("softmax", [True, False])
def test_curves(case, softmax):
    model, x, maps = case
    blur = blurred(x)
    inserted = metrics.insertion_curve(model, x, maps, CLASSES, steps=7, probability=softmax)
    deleted = metrics.deletion_curve(model, x, torch.from_numpy(maps), CLASSES, steps=7, probability=softmax)
    assert inserted.shape == (3, 8)
    for i, c in enumerate(CLASSES):
        expected = curve(model, x[i], maps[i], c, 7, blur[i], True, softmax)
        torch.testing.assert_close(inserted[i], expected, rtol=0, atol=1e-5)
        assert expected.std() > 1e-4
        expected = curve(model, x[i], maps[i], c, 7, torch.zeros(1), False, softmax)
        torch.testing.assert_close(deleted[i], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(inserted[:, -1], deleted[:, 0], rtol=0, atol=1e-5)
    area = ((inserted[:, 1:] + inserted[:, :-1]) / 2).mean(1)
    auc = metrics.insertion_auc(model, x, maps, CLASSES, steps=7, probability=softmax, batch_size=5)
    torch.testing.assert_close(auc, area, rtol=0, atol=1e-5)
    auc = metrics.deletion_auc(model, x, maps, CLASSES, steps=7, probability=softmax)
    torch.testing.assert_close(auc, metrics.area_under(deleted), rtol=0, atol=1e-5)


def test_baselines_and_ties(case):
    model, x, _ = case
    maps = torch.rand(len(x), *x.shape[2:]).mul(4).round() / 4
    mean = x.mean((0, 2, 3), keepdim=True)
    deleted = metrics.deletion_curve(model, x, maps, CLASSES, steps=4, baseline=mean)
    inserted = metrics.insertion_curve(model, x, maps, CLASSES, steps=4, baseline=0.5)
    for i, c in enumerate(CLASSES):
        m = maps[i].numpy()
        expected = curve(model, x[i], m, c, 4, mean[0], False)
        torch.testing.assert_close(deleted[i], expected, rtol=0, atol=1e-5)
        expected = curve(model, x[i], m, c, 4, torch.full((1,), 0.5), True)
        torch.testing.assert_close(inserted[i], expected, rtol=0, atol=1e-5)


def test_the_predicted_class_is_that_of_the_image(case):
    model, x, maps = case
    with torch.no_grad():
        predicted = model(x).argmax(1)
    ours = metrics.deletion_curve(model, x, maps, steps=3)
    torch.testing.assert_close(ours, metrics.deletion_curve(model, x, maps, predicted, steps=3), rtol=0, atol=1e-6)
    softmax = [lambda y, c=c: y.softmax(0)[c] for c in predicted.tolist()]
    torch.testing.assert_close(ours, metrics.deletion_curve(model, x, maps, softmax, steps=3), rtol=0, atol=1e-6)


def test_a_good_map_beats_its_opposite():
    """Class 1 is the brightness of a corner."""
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0, 0, 0, 0], [5.0, 0, 0, 0]]))
        model[2].bias.zero_()
    x, good = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8)
    good[:, :4, :4] = 1
    for name, sign in (("insertion_auc", 1), ("deletion_auc", -1)):
        auc = [getattr(metrics, name)(model, x, m, 1, steps=8, baseline=0.0).item() for m in (good, 1 - good)]
        assert sign * (auc[0] - auc[1]) > 0.3


def test_blur():
    x = torch.randn(2, 3, 20, 17)
    g = torch.exp(-(torch.arange(-5, 6.0) ** 2) / (2 * 5**2))
    kernel = torch.outer(g, g) / torch.outer(g, g).sum()
    padded = F.pad(x, (5, 5, 5, 5), mode="replicate")
    expected = F.conv2d(padded, kernel.expand(3, 1, 11, 11), groups=3)
    torch.testing.assert_close(blurred(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(blurred(torch.full((1, 1, 9, 9), 3.0)), torch.full((1, 1, 9, 9), 3.0))


def test_drop_increase_gain(case):
    model, x, maps = case
    drop = metrics.average_drop(model, x, maps, CLASSES)
    increase = metrics.average_increase(model, x, maps, CLASSES)
    gain = metrics.average_gain(model, x, maps, CLASSES)
    for i, c in enumerate(CLASSES):
        Y, O = probability(model, x[i], c), probability(model, x[i] * torch.from_numpy(maps[i]), c)  # noqa: E741
        assert abs(Y - O) > 1e-4
        torch.testing.assert_close(drop[i], (Y - O).clamp(min=0) / Y, rtol=0, atol=1e-5)
        torch.testing.assert_close(gain[i], (O - Y).clamp(min=0) / (1 - Y), rtol=0, atol=1e-5)
        assert increase[i] == (O > Y)
    assert (drop + gain > 0).all()


def test_drop_with_a_baseline(case):
    model, x, maps = case
    m = torch.from_numpy(maps).unsqueeze(1)
    logits = torch.tensor([probability(model, (x * m + 0.7 * (1 - m))[i], c, False) for i, c in enumerate(CLASSES)])
    before = torch.tensor([probability(model, x[i], c, False) for i, c in enumerate(CLASSES)])
    expected = ((before - logits).clamp(min=0) / before.abs()).clamp(max=1)
    for baseline in (0.7, torch.full((1, x.shape[1], 1, 1), 0.7)):
        ours = metrics.average_drop(model, x, maps, CLASSES, baseline=baseline, probability=False)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)  # a quotient of logits, some near 0


@pytest.mark.parametrize(
    "before, after, drop",
    [(2, 1, 0.5), (-1, -1.5, 0.5), (-1, -3, 1), (0, 0, 0), (0, -1, 1), (1, -5, 1), (-1, 2, 0)],
)
def test_drop_of_negative_and_zero_scores(before, after, drop):
    class Given(torch.nn.Module):
        def forward(self, x):
            return torch.where(x.flatten(1).sum(1, keepdim=True) > 0, float(before), float(after)).expand(-1, 2)

    x, maps = torch.ones(1, 1, 4, 4), torch.zeros(1, 4, 4)
    ours = metrics.average_drop(Given(), x, maps, 0, probability=False)
    torch.testing.assert_close(ours, torch.tensor([float(drop)]))


def test_gain_needs_probabilities():
    x, maps = torch.randn(2, 3, 16, 20), torch.rand(2, 16, 20)
    with pytest.raises(ValueError, match=r"needs scores in \[0, 1\]"):
        metrics.average_gain(tiny(), x, maps, lambda y: y[0] * 100)
    certain = lambda y: torch.ones(())  # noqa: E731
    assert (metrics.average_gain(tiny(), x, maps, certain) == 0).all()


def test_adcc(case):
    model, x, maps = case
    cam = fastcam.GradCAM(model, "layer3")
    ours = metrics.adcc(model, x, maps, cam, CLASSES)
    again = cam(x * torch.from_numpy(maps).unsqueeze(1), CLASSES)
    drop = metrics.average_drop(model, x, maps, CLASSES)
    for i in range(3):
        coherency = (np.corrcoef(maps[i].ravel(), again[i].ravel())[0, 1] + 1) / 2
        expected = 3 / (1 / coherency + 1 / (1 - maps[i].mean()) + 1 / (1 - drop[i].item()))
        assert abs(ours[i].item() - expected) < 1e-5
    assert ours.std() > 1e-4
    by_function = metrics.adcc(model, x, maps, lambda images, targets: cam.attribute(images, targets), CLASSES)
    torch.testing.assert_close(by_function, ours, rtol=0, atol=1e-5)


def test_adcc_explains_the_class_predicted_for_the_image():
    model, x, maps = tiny(), torch.randn(2, 3, 16, 20), torch.rand(2, 16, 20)
    asked = []

    def explain(images, targets):
        asked.extend(t.category for t in targets)
        return torch.rand(2, 16, 20)

    metrics.adcc(model, x, maps, explain)
    assert asked == model(x).argmax(1).tolist()


def test_adcc_of_extreme_maps():
    model, x = tiny(), torch.randn(2, 3, 16, 20)
    for value in (0.0, 1.0):
        ours = metrics.adcc(model, x, torch.full((2, 16, 20), value), lambda images, _: images[:, 0], 1)
        assert ours.isfinite().all() and (ours >= 0).all() and (ours <= 1).all()
        assert value == 0 or (ours == 0).all()


def test_pearson_and_spearman():
    scipy = pytest.importorskip("scipy.stats")
    a, b = torch.rand(3, 9, 11), torch.rand(3, 9, 11).mul(5).round()
    b = b + 3 * a.round()
    for i in range(3):
        u, v = a[i].flatten().numpy(), b[i].flatten().numpy()
        assert abs(metrics.pearson(a, b)[i].item() - scipy.pearsonr(u, v)[0]) < 1e-6
        assert abs(metrics.spearman(a, b)[i].item() - scipy.spearmanr(u, v)[0]) < 1e-6
    constant = torch.full_like(a, 0.1)
    torch.testing.assert_close(metrics.pearson(1e-25 * a, b), metrics.pearson(a, b))
    assert (metrics.pearson(a, constant) == 0).all() and (metrics.spearman(constant, b) == 0).all()
    torch.testing.assert_close(metrics.spearman(a, a.exp()), torch.ones(3))


def test_wrong_input():
    model, x, maps = tiny(), torch.randn(2, 3, 16, 20), torch.rand(2, 16, 20)
    for function in (metrics.insertion_curve, metrics.deletion_auc, metrics.average_drop, metrics.average_gain):
        with pytest.raises(ValueError, match=r"maps must be \(B, H, W\) = \(2, 16, 20\)"):
            function(model, x, maps[:, :8], 1)
        with pytest.raises(ValueError, match="targets must be"):
            function(model, x, maps, [1, 2, 3])
        with pytest.raises(TypeError, match="input_tensor"):
            function(model, x.numpy(), maps, 1)
    with pytest.raises(ValueError, match="steps"):
        metrics.insertion_curve(model, x, maps, steps=0)
    with pytest.raises(ValueError, match="baseline"):
        metrics.insertion_curve(model, x, maps, baseline="black")
    with pytest.raises(ValueError, match="batch_size"):
        metrics.insertion_curve(model, x, maps, batch_size=0)
