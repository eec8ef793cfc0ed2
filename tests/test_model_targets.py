"""Targets by their formulas, beside grad-cam's, and all of a batch at once beside one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from pytorch_grad_cam.utils import model_targets as theirs

import fastcam
from fastcam import (
    AblationCAM,
    BinaryClassifierOutputTarget,
    ClassifierOutputReST,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
    FasterRCNNBoxScoreTarget,
    FinerWeightedTarget,
    GradCAM,
    HiResCAM,
    RawScoresOutputTarget,
    RegressionTarget,
    SemanticSegmentationTarget,
    SimilarityToConceptTarget,
    SoftmaxOutputTarget,
)
from fastcam.model_targets import box_iou

from models import TinyNet, tiny

MASKS = [torch.rand(10, 12) > 0.5 for _ in range(3)]
CONCEPTS = torch.randn(3, 5)


@pytest.fixture
def x():
    return torch.randn(3, 3, 20, 24)


class Segmenter(TinyNet):
    """Logits `(B, 16, 10, 12)`."""

    def forward(self, x):
        return self.tail(self.relu(self.body(self.stem(x))))


TARGETS = {  # three targets each, of one class
    "softmax": [ClassifierOutputSoftmaxTarget(c) for c in (1, 0, 4)],
    "rest": [ClassifierOutputReST(c) for c in (1, 0, -1)],
    "finer": [
        FinerWeightedTarget(1, [2, 3], 0.7),
        FinerWeightedTarget(0, [4], 1),
        FinerWeightedTarget(4, [0, 1, 2], 0),
    ],
    "similarity": [SimilarityToConceptTarget(f) for f in CONCEPTS],
    "regression": [RegressionTarget(o) for o in (0, 3, 2)],
    "segmentation": [SemanticSegmentationTarget(c, m) for c, m in zip((3, 0, 15), MASKS, strict=True)],
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_batch_at_once_is_a_loop(kind, x, monkeypatch):
    """Also in a list of lists, T targets an image, and as rows of an ablation."""
    net, targets = tiny(Segmenter if kind == "segmentation" else TinyNet).double(), TARGETS[kind]
    cam, x = HiResCAM(net, "body"), x.double()
    loop = [lambda row, t=t: t(row) for t in targets]
    low = {"normalize": False, "size": None}
    expected = cam.attribute(x, loop, **low)
    many = [[targets[0], targets[1]], [targets[1], targets[2]], [targets[2], targets[0]]]
    others = cam.attribute(x, [loop[1], loop[2], loop[0]], **low)
    ablated = AblationCAM(net, "tail" if kind != "segmentation" else "body").attribute(x, loop, **low)

    calls = []
    monkeypatch.setattr(type(targets[0]), "__call__", lambda *_: calls.append(1))
    torch.testing.assert_close(cam.attribute(x, targets, **low), expected)
    both = cam.attribute(x, many, **low)
    torch.testing.assert_close(both, torch.stack([expected, others], 1))
    rows = AblationCAM(net, "tail" if kind != "segmentation" else "body").attribute(x, targets, **low)
    torch.testing.assert_close(rows, ablated)
    assert not calls and expected.std() > 0 and ablated.std() > 0
    assert not torch.allclose(expected, others)


def test_a_subclass_is_asked_itself(x):
    class Doubled(ClassifierOutputSoftmaxTarget):
        def __call__(self, model_output):
            return 2 * super().__call__(model_output)

    maps = HiResCAM(tiny(), "body").attribute(x, Doubled(1), normalize=False)
    plain = HiResCAM(tiny(), "body").attribute(x, ClassifierOutputSoftmaxTarget(1), normalize=False)
    torch.testing.assert_close(maps, 2 * plain)


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("SoftmaxOutputTarget", (), (5,)),
        ("RawScoresOutputTarget", (), (5,)),
        ("FinerWeightedTarget", (1, [0, 3], 0.6), (5,)),
        ("FinerWeightedTarget", (1, [0, 3], 0.6), (4, 5)),
        ("SoftmaxOutputTarget", (), (4, 5)),
        ("SemanticSegmentationTarget", (2, np.float32(MASKS[0].numpy())), (5, 10, 12)),
        ("SemanticSegmentationTarget", (2, MASKS[0].numpy()), (5, 10, 12)),
        ("ClassifierOutputReST", (2,), (4, 5)),
    ],
)
def test_same_value_as_grad_cam(name, arguments, shape):
    y = torch.randn(shape)
    expected = getattr(theirs, name)(*arguments)(y)
    torch.testing.assert_close(getattr(fastcam, name)(*arguments)(y), expected)
    assert expected.abs().max() > 0


def test_segmentation_by_its_formula(x):
    net, mask = tiny(Segmenter).double(), MASKS[0]
    target = SemanticSegmentationTarget(3, mask.numpy())
    y = net(x.double()).detach()[0]
    value = sum(y[3, i, j] for i in range(10) for j in range(12) if mask[i, j])
    torch.testing.assert_close(target(y), value)
    expected = pytorch_grad_cam.GradCAM(net, [net.stem])(
        x.double(), [theirs.SemanticSegmentationTarget(3, mask.numpy())] * 3
    )
    np.testing.assert_allclose(GradCAM(net, "stem")(x.double(), target), expected, atol=1e-5)
    np.testing.assert_allclose(GradCAM(net, "stem")(x.double(), [target] * 3), expected, atol=1e-5)
    assert np.ptp(expected) > 0.5
    half = SemanticSegmentationTarget(0, torch.ones(200, 200))(torch.full((1, 200, 200), 8.0).half())
    assert half == 320000, "beyond the range of fp16"
    with pytest.raises(ValueError, match=r"mask must be \(h, w\) = \(10, 12\) as the output, got \(12, 10\)"):
        GradCAM(net, "body")(x.double(), SemanticSegmentationTarget(3, mask.T))


def detections(count, seed=0):
    torch.manual_seed(seed)
    corner, size = torch.rand(count, 2) * 60, torch.rand(count, 2) * 40 + 2
    boxes = torch.cat([corner, corner + size], 1)
    return {"boxes": boxes, "labels": torch.randint(1, 3, (count,)), "scores": torch.rand(count)}


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_boxes_as_in_grad_cam(threshold):
    given, values = detections(6), set()
    for seed in range(8):
        found = detections(9, seed)
        found["boxes"][:4] = given["boxes"][:4] + torch.randn(4, 4)
        arguments = given["labels"].tolist(), given["boxes"].numpy(), threshold
        expected = theirs.FasterRCNNBoxScoreTarget(*arguments)(found)
        actual = FasterRCNNBoxScoreTarget(*arguments)(found)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            FasterRCNNBoxScoreTarget(given["labels"], given["boxes"], threshold)(found), expected
        )
        values.add(round(expected.item(), 4))
    assert len(values) > 4
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    assert torch.equal(FasterRCNNBoxScoreTarget([1], [given["boxes"][0]])(nothing), torch.zeros(1))
    with pytest.raises(ValueError, match="of one length, got 2 and 1"):
        FasterRCNNBoxScoreTarget([1, 2], given["boxes"][:1])


def test_intersection_over_union_as_in_torchvision():
    a, b = detections(7)["boxes"], detections(9, 1)["boxes"]
    expected = torchvision.ops.box_iou(a, b)
    torch.testing.assert_close(box_iou(a, b), expected)
    assert expected.max() > 0.1 and expected.min() == 0


def test_a_detector_is_explained(x):
    class Detector(TinyNet):
        def forward(self, x):
            rows = super().forward(x).sigmoid()
            return [{"boxes": BOXES + row.sum(), "labels": torch.tensor([1, 2]), "scores": row[:2]} for row in rows]

    target = FasterRCNNBoxScoreTarget([1, 2], BOXES.numpy())
    maps = GradCAM(tiny(Detector), "body")(x, target)
    net = tiny(Detector)
    expected = pytorch_grad_cam.GradCAM(net, [net.stem])(
        x, [theirs.FasterRCNNBoxScoreTarget([1, 2], BOXES.numpy())] * 3
    )
    np.testing.assert_allclose(GradCAM(net, "stem")(x, target), expected, rtol=0, atol=1e-5)
    assert maps.shape == (3, 20, 24) and np.ptp(expected) > 0.5
    elsewhere = FasterRCNNBoxScoreTarget([1], [BOXES[0] + 500])
    with pytest.warns(UserWarning, match="zero everywhere"):
        assert GradCAM(net, "stem")(x, elsewhere).max() == 0


BOXES = torch.tensor([[2.0, 3, 60, 50], [70, 10, 120, 90]])


def test_similarity_and_regression_by_their_formulas(x):
    y = torch.randn(4, 5)
    cosine = (y @ CONCEPTS[0]) / y.norm(dim=1) / CONCEPTS[0].norm()
    target = SimilarityToConceptTarget(CONCEPTS[0].numpy())
    torch.testing.assert_close(target(y), cosine)
    torch.testing.assert_close(target(y[1]), cosine[1])
    torch.testing.assert_close(RegressionTarget(2)(y), y[:, 2])
    assert RegressionTarget()(torch.tensor(3.0)) == 3

    class Scalar(TinyNet):
        def forward(self, x):
            return super().forward(x)[:, 1]

    expected = GradCAM(tiny(), "body")(x, 1)
    np.testing.assert_allclose(GradCAM(tiny(), "body")(x, RegressionTarget(1)), expected, atol=1e-6)
    np.testing.assert_allclose(GradCAM(tiny(Scalar), "body")(x, RegressionTarget()), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"features must be an embedding \(D,\), got \(3, 5\)"):
        SimilarityToConceptTarget(CONCEPTS)


@pytest.mark.parametrize(
    ("target", "instead"),
    [(SoftmaxOutputTarget(), "ClassifierOutputSoftmaxTarget"), (RawScoresOutputTarget(), "SimilarityToConceptTarget")],
)
def test_vectors_are_no_target_of_a_map(target, instead, x):
    name = type(target).__name__
    with pytest.raises(ValueError, match=rf"target {name} must .* got \(5,\); for a map take .*{instead}"):
        GradCAM(tiny(), "body")(x, target)


def test_one_output_is_no_vector(x):
    net = tiny(classes=1)
    expected = GradCAM(net, "body")(x, 0)
    for target in (RawScoresOutputTarget(), BinaryClassifierOutputTarget(1), [[RawScoresOutputTarget()]] * 3):
        np.testing.assert_allclose(GradCAM(net, "body")(x, target).reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize(
    "targets",
    [
        ClassifierOutputSoftmaxTarget(5),
        [ClassifierOutputReST(-6)] * 3,
        FinerWeightedTarget(1, [5], 1),
        FinerWeightedTarget(7, [1], 1),
        [[ClassifierOutputTarget(0), ClassifierOutputTarget(9)]] * 3,
    ],
)
def test_classes_out_of_range(targets, x):
    with pytest.raises(ValueError, match=r"target -?\d is out of range: the model has 5 classes"):
        GradCAM(tiny(), "body")(x, targets)


def test_lists_of_lists(x):
    cam = GradCAM(tiny(), "body")
    given = [[lambda row, c=c: row[c] for c in pair] for pair in [(0, 1), (2, 3), (4, 4)]]
    expected = cam(x, torch.tensor([[0, 1], [2, 3], [4, 4]]))
    np.testing.assert_allclose(cam(x, given), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        cam(x, [[ClassifierOutputTarget(2), lambda row: row[1]]]), cam(x, torch.tensor([[2, 1]]))
    )
    with pytest.raises(ValueError, match=r"as many for each image, got \[1, 2, 1\]"):
        cam(x, [[given[0][0]], given[1], [given[0][0]]])
    with pytest.raises(ValueError, match="one or 3 for 3 images, got 2"):
        cam(x, given[:2])
    with pytest.raises(ValueError, match="at least one class to compare with"):
        FinerWeightedTarget(1, [], 1)


def test_old_import_paths():
    from fastcam import targets

    for name in ("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"):
        assert getattr(targets, name) is getattr(fastcam, name)
    assert targets.BinaryClassifierOutputTarget is BinaryClassifierOutputTarget
