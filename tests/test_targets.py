"""What is explained, in each of its spellings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcam import (
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    HiResCAM,
)

from models import TinyNet, tiny


@pytest.fixture
def x():
    return torch.randn(3, 3, 20, 24)


def test_targets_as_nested_lists(x):
    nested = [[0, 1], [2, 3], [4, 4]]
    torch.testing.assert_close(maps(x, nested), maps(x, torch.tensor(nested)))
    torch.testing.assert_close(maps(x, [torch.tensor(row) for row in nested]), maps(x, torch.tensor(nested)))


def test_callables_on_a_tuple_output(x):
    class Pair(TinyNet):
        def forward(self, x):
            return super().forward(x), x

    for batch in (1, 2, 3):
        cam = HiResCAM(tiny(Pair), "body")
        given = cam.attribute(x[:batch], lambda row: row[2], normalize=False, size=None)
        torch.testing.assert_close(given, maps(x[:batch], 2))


def maps(x, targets, **options):
    return HiResCAM(tiny(), "body").attribute(x, targets, normalize=False, size=None, **options)


@pytest.mark.parametrize(
    "targets",
    [
        [2, 2, 2],
        (2, 2, 2),
        np.int64(2),
        torch.tensor(2),
        torch.tensor([2]),
        torch.tensor([2, 2, 2], dtype=torch.int32),
        np.array([2, 2, 2]),
        [torch.tensor(2)] * 3,
        ClassifierOutputTarget(2),
        [ClassifierOutputTarget(2)],
        [ClassifierOutputTarget(2)] * 3,
        lambda row: row[2],
        [lambda row: row[2]] * 3,
    ],
)
def test_spellings_of_one_class(x, targets):
    torch.testing.assert_close(maps(x, targets), maps(x, 2), rtol=1e-6, atol=1e-8)


def test_a_target_per_image(x):
    given = maps(x, [4, 0, 2])
    for n, c in enumerate([4, 0, 2]):
        torch.testing.assert_close(given[n], maps(x, c)[n])
    assert not torch.allclose(given[0], maps(x, 0)[0])


def test_none_is_the_predicted_class(x):
    torch.testing.assert_close(maps(x, None), maps(x, tiny()(x).argmax(1)))


def test_many_targets_from_one_forward_pass(x):
    class Counting(TinyNet):
        runs = 0

        def forward(self, x):
            Counting.runs += 1
            return super().forward(x)

    targets = torch.tensor([[0, 1], [2, 3], [4, 4]])
    cam = HiResCAM(tiny(Counting), ["body", "tail"])
    many = cam(x, targets)
    assert many.shape == (3, 2, 20, 24) and Counting.runs == 1
    for t in range(2):
        np.testing.assert_allclose(many[:, t], HiResCAM(tiny(), ["body", "tail"])(x, targets[:, t]), atol=1e-6)
    np.testing.assert_array_equal(many[2, 0], many[2, 1])
    assert maps(x, targets).shape == (3, 2, 10, 12)
    torch.testing.assert_close(maps(x, targets[:1]), maps(x, targets[:1].expand(3, 2)))


@pytest.mark.parametrize(
    ("target", "formula"),
    [
        (ClassifierOutputTarget(1), lambda y: y[:, 1]),
        (ClassifierOutputSoftmaxTarget(1), lambda y: y.exp()[:, 1] / y.exp().sum(1)),
        (ClassifierOutputReST(1), lambda y: y[:, 1] + y[:, 1] - y.exp().sum(1).log()),
        (BinaryClassifierOutputTarget(1), lambda y: y),
        (BinaryClassifierOutputTarget(0), lambda y: -y),
    ],
)
def test_classifier_targets_by_their_formulas(target, formula):
    y = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(target(y), formula(y))
    torch.testing.assert_close(target(y[0]), formula(y)[0])


def test_a_callable_may_take_any_output_per_image(x):
    class Detector(TinyNet):
        def forward(self, x):
            return [{"scores": row} for row in super().forward(x)]

    cam = HiResCAM(tiny(Detector), "body")
    torch.testing.assert_close(
        cam.attribute(x, lambda row: row["scores"][2], normalize=False, size=None), maps(x, 2), rtol=1e-5, atol=1e-8
    )
    assert cam.outputs is None
    with pytest.raises(TypeError, match="no logits were found"):
        cam(x, 2)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (5, ValueError, "target 5 is out of range: the model has 5 classes"),
        ([0, -1, 1], ValueError, "target -1 is out of range"),
        ([0, 1], ValueError, r"one or \(3,\) or \(3, T\) for 3 images, got shape \(2,\)"),
        (torch.zeros(2, 3, dtype=torch.long), ValueError, r"got shape \(2, 3\)"),
        (torch.zeros(3, 0, dtype=torch.long), ValueError, r"got shape \(3, 0\)"),
        ([], ValueError, r"got shape \(0,\)"),
        ([lambda row: row[0]] * 2, ValueError, "one or 3 for 3 images, got 2"),
        (0.5, TypeError, "class indices or callables, got .*0.5"),
        ("cat", TypeError, "class indices or callables, got .*cat"),
        (torch.tensor([True, False, True]), TypeError, "class indices or callables"),
        ([0, lambda row: row[0], 1], TypeError, "not both"),
        (lambda row: row, ValueError, r"scalar tensor per image, got \(5,\)"),
        (lambda row: 1.0, ValueError, "scalar tensor per image, got float"),
    ],
)
def test_targets_that_cannot_be(x, targets, error, message):
    with pytest.raises(error, match=message):
        HiResCAM(tiny(), "body")(x, targets)


def test_logits_that_are_not_one_row_per_image(x):
    class Segmenter(TinyNet):
        def forward(self, x):
            return self.stem(x)

    class Pairs(TinyNet):
        def forward(self, x):
            return super().forward(x)[:2]

    with pytest.raises(ValueError, match=r"need logits \(B, classes\), got \(3, 8, 10, 12\)"):
        HiResCAM(tiny(Segmenter), "stem")(x)
    with pytest.raises(ValueError, match="2 outputs for 3 images"):
        HiResCAM(tiny(Pairs), "body")(x, 1)
