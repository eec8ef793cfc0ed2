"""pytorch-grad-cam's metrics: the same numbers, over networks, percentiles and forms of input."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM as TheirGradCAM
from pytorch_grad_cam.metrics import arcc as their_arcc
from pytorch_grad_cam.metrics import cam_mult_image as their_mult
from pytorch_grad_cam.metrics import perturbation_confidence as their_confidence
from pytorch_grad_cam.metrics import road as their_road
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

import fastcam
from fastcam import metrics
from fastcam.metrics import cam_mult_image, road

from models import LAYERS, build, inputs, tiny

NAMES = ["resnet18", "grey_resnet18"]
CLASSES = [3, 1, 7]


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """A network, images that are not square, maps of them, targets."""
    model, x = build(request.param), inputs(request.param)
    maps = fastcam.GradCAM(model, "layer3")(x, CLASSES)
    assert all(m.std() > 0.1 for m in maps)
    return model, x, maps, [ClassifierOutputSoftmaxTarget(c) for c in CLASSES]


def quiet(metric):
    """Their metric without noise."""
    for part in [metric, *getattr(metric, "__dict__", {}).values()]:
        if hasattr(part, "perturbation"):
            part.perturbation.imputer.noise = 0
    return metric


def close(ours, theirs, tolerance=1e-5):
    assert type(ours) is np.ndarray and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-4, "nothing to compare"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("network", ["vgg11_bn", "densenet121", "mobilenet_v3_small", "small_vit"])
def test_other_architectures(network):
    """The change of the score and ROAD, of one image each."""
    model, x = build(network), inputs(network, 1)
    maps = fastcam.GradCAM(model, LAYERS[network]["last"])(x, 3)
    targets = [ClassifierOutputTarget(3)]
    close(
        metrics.CamMultImageConfidenceChange()(x, maps, targets, model),
        their_mult.CamMultImageConfidenceChange()(x, maps, targets, model),
    )
    theirs, ours = their_road.ROADCombined([30, 70]), metrics.ROADCombined([30, 70])
    torch.manual_seed(0)
    expected = theirs(x, maps, targets, model)
    torch.manual_seed(0)
    np.testing.assert_allclose(ours(x, maps, targets, model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"])
def test_multiplied_images(case, name):
    model, x, maps, targets = case
    theirs = getattr(their_mult, name)()(x, maps, targets, model)
    ours = getattr(metrics, name)()(x, maps, targets, model)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_multiplied_images_and_scores_after(case):
    model, x, maps, targets = case
    theirs, images = their_mult.CamMultImageConfidenceChange()(x, maps, targets, model, True, False)
    ours, seen = metrics.CamMultImageConfidenceChange()(x, maps, targets, model, True, False)
    close(ours, theirs)
    torch.testing.assert_close(seen, images, rtol=0, atol=0)
    drop, seen = metrics.DropInConfidence()(x, maps, targets, model, return_visualization=True)
    assert drop.min() >= 0 and seen.shape == x.shape


@pytest.mark.parametrize("percentile", [5, 37.5, 80, 99])
@pytest.mark.parametrize("name", ["ROADMostRelevantFirst", "ROADLeastRelevantFirst"])
def test_road_at_a_percentile(case, name, percentile):
    model, x, maps, targets = case
    theirs, images = quiet(getattr(their_road, name)(percentile))(x, maps, targets, model, return_visualization=True)
    ours, seen = getattr(metrics, name)(percentile, noise=0)(x, maps, targets, model, return_visualization=True)
    assert (images != x).any()
    torch.testing.assert_close(seen, images, rtol=0, atol=5e-6)
    close(ours, theirs)


@pytest.mark.parametrize("name", ["ROADMostRelevantFirst", "ROADLeastRelevantFirst"])
def test_road_by_otsu(case, name):
    model, x, maps, targets = case
    theirs, images = quiet(getattr(their_road, name)("auto"))(x, maps, targets, model, return_visualization=True)
    metric = getattr(metrics, name)("auto", noise=0, reference_otsu=True)
    ours, seen = metric(x, maps, targets, model, return_visualization=True)
    torch.testing.assert_close(seen, images, rtol=0, atol=5e-6)
    close(ours, theirs)
    _, other = getattr(metrics, name)("auto", noise=0)(x, maps, targets, model, return_visualization=True)
    changed, otherwise = (seen != x).any(1), (other != x).any(1)
    assert not (changed & otherwise).any() and (changed | otherwise).float().mean() > 0.99
    where = torch.from_numpy(maps)
    above = where[otherwise].mean() > where[~otherwise].mean()
    assert above == (name == "ROADMostRelevantFirst")


@pytest.mark.parametrize("name", ["ROADMostRelevantFirstAverage", "ROADLeastRelevantFirstAverage", "ROADCombined"])
def test_road_over_percentiles_with_noise(case, name):
    """The noise is drawn from torch's generator in the order in which they draw it."""
    model, x, maps, targets = case
    torch.manual_seed(5)
    theirs = getattr(their_road, name)([20, 50, 90])(x, maps, targets, model)
    torch.manual_seed(5)
    close(getattr(metrics, name)([20, 50, 90])(x, maps, targets, model), theirs)


def test_default_percentiles():
    assert metrics.ROADCombined().percentiles == their_road.ROADCombined().percentiles
    assert metrics.ROADMostRelevantFirst().perturbation.percentile == 80
    assert metrics.ROADLeastRelevantFirst().perturbation.percentile == 20
    assert sorted(road.neighbors_weights) == sorted(their_road.neighbors_weights)


@pytest.mark.parametrize("cls", ["RemoveMostRelevantFirst", "RemoveLeastRelevantFirst"])
@pytest.mark.parametrize("percentile", [0, 10, 33, 62.5, 100])
def test_removed_pixels_with_ties(cls, percentile):
    torch.manual_seed(1)
    mask = torch.rand(19, 23).mul(12).round() / 12
    image = torch.randn(3, 19, 23)

    def painted(img, keep):
        return torch.where(torch.as_tensor(keep) > 0, img, 9)

    theirs = getattr(their_confidence, cls)(percentile, painted)(image, mask)
    ours = getattr(metrics, cls)(percentile, painted)(image, mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    batch = getattr(metrics, cls)(percentile, painted)(image[None], mask[None])
    torch.testing.assert_close(batch[0], theirs, rtol=0, atol=0)


def test_own_perturbations_and_imputers(case):
    model, x, maps, targets = case

    def darker(image, m):
        assert image.ndim == 3 and m.ndim == 2
        return image * (1 - m)

    theirs = their_confidence.PerturbationConfidenceMetric(darker)(x, maps, targets, model)
    close(metrics.PerturbationConfidenceMetric(darker)(x, maps, targets, model), theirs)

    def grey(module):
        def factory(percentile):
            remove = module.RemoveMostRelevantFirst(percentile, lambda img, keep: img * keep)
            return module.PerturbationConfidenceMetric(remove)

        return factory

    theirs = their_confidence.AveragerAcrossThresholds(grey(their_confidence), [30, 60])(x, maps, targets, model)
    close(metrics.AveragerAcrossThresholds(grey(metrics), [30, 60])(x, maps, targets, model), theirs)


@pytest.mark.parametrize("base", ["ours", "theirs"])
def test_arcc_and_its_parts(case, base):
    model, x, maps, targets = case
    layers = [model.layer3]
    method = fastcam.GradCAM(model, layers) if base == "ours" else TheirGradCAM(model, layers)
    theirs = their_arcc.ARCC(TheirGradCAM(model, layers), [30, 70])
    quiet(theirs.road.morf_averager), quiet(theirs.road.lerf_averager)
    torch.manual_seed(2)
    expected = theirs(x, maps, targets, model)
    torch.manual_seed(2)
    ours = metrics.ARCC(method, [30, 70])(x, maps, targets, model)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    coherency = their_arcc.Coherency()(x, maps, targets, model, TheirGradCAM(model, layers))
    assert coherency.min() > 0.05 and coherency.std() > 1e-3
    np.testing.assert_allclose(metrics.Coherency()(x, maps, targets, model, method), coherency, atol=1e-5)
    np.testing.assert_allclose(metrics.Complexity()(maps), their_arcc.Complexity()(maps), atol=1e-6)
    other = np.random.default_rng(0).random(maps.shape, dtype=np.float32)
    mixed = other + maps
    expected = their_arcc.batch_pearson_coherency(mixed, maps)
    assert expected.min() > 0.1
    np.testing.assert_allclose(metrics.batch_pearson_coherency(mixed, maps), expected, atol=1e-6)


def test_forms_of_maps_and_targets(case):
    model, x, maps, targets = case
    metric = metrics.ROADCombined([40, 80], noise=0)
    expected = metric(x, maps, targets, model)
    for form in (list(maps), torch.from_numpy(maps), list(torch.from_numpy(maps)), maps.astype(np.float64)):
        np.testing.assert_allclose(metric(x, form, targets, model), expected, atol=1e-6)
    logits = metric(x, maps, CLASSES, model)
    for given in (torch.tensor(CLASSES), [fastcam.ClassifierOutputTarget(c) for c in CLASSES]):
        np.testing.assert_allclose(metric(x, maps, given, model), logits, atol=1e-6)
    with torch.no_grad():
        predicted = model(x).argmax(1)
    np.testing.assert_allclose(metric(x, maps, None, model), metric(x, maps, predicted, model), atol=1e-6)
    alone = np.concatenate([metric(x[i : i + 1], maps[i : i + 1], CLASSES[i], model) for i in range(3)])
    np.testing.assert_allclose(alone, logits, atol=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_maps_of_integers_and_booleans(kind):
    model, x = tiny(), torch.randn(2, 3, 16, 20)
    whole = np.random.default_rng(0).integers(0, 2, (2, 16, 20)).astype(kind)
    ours = metrics.CamMultImageConfidenceChange()(x, whole, 1, model)
    theirs = metrics.CamMultImageConfidenceChange()(x, whole.astype(np.float32), 1, model)
    close(ours, theirs)
    assert np.isfinite(metrics.ROADCombined([50])(x, whole, 1, model)).all()


def test_constant_maps_leave_nothing():
    """At a percentile of a constant map every pixel is at the threshold: all go, and become 0 as theirs do."""
    model, x = tiny(), torch.randn(2, 3, 16, 20)
    maps = np.full((2, 16, 20), 0.5, np.float32)
    targets = [ClassifierOutputSoftmaxTarget(c) for c in (1, 2)]
    theirs = quiet(their_road.ROADMostRelevantFirst(50))(x, maps, targets, model)
    close(metrics.ROADMostRelevantFirst(50, noise=0)(x, maps, targets, model), theirs)
    assert (metrics.ROADCombined(noise=0)(x, maps, targets, model) == 0).all()


def test_model_and_images_stay_as_they_were(case):
    model, x, maps, targets = case
    model.train()
    before, image = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    metrics.ROADCombined([50])(x, maps, targets, model)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(x, image)
    model.eval()


@pytest.mark.parametrize("where", ["with gradients", "in inference mode", "read-only"])
def test_tensors_of_all_kinds(where):
    model, x, maps = tiny(), torch.randn(2, 3, 16, 20), np.random.default_rng(0).random((2, 16, 20))
    metric = metrics.ROADCombined([50], noise=0)
    expected = metric(x, maps, 1, model)
    maps.flags.writeable = where != "read-only"
    x.requires_grad_(where == "with gradients")
    with torch.inference_mode(where == "in inference mode"):
        np.testing.assert_allclose(metric(x.clone(), maps, 1, model), expected, atol=1e-6)
        seen = metrics.CamMultImageConfidenceChange()(x.clone(), maps, 1, model, True)[1]
    assert not seen.requires_grad and x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_generator_of_the_noise():
    model, x, maps = tiny(), torch.randn(2, 3, 16, 20), np.random.default_rng(0).random((2, 16, 20))
    state = torch.get_rng_state()

    def once(seed):
        return metrics.ROADCombined([50], noise=1.0, generator=torch.Generator().manual_seed(seed))(x, maps, 1, model)

    assert (once(0) == once(0)).all() and (once(0) != once(1)).all()
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_input():
    model, x, maps = tiny(), torch.randn(2, 3, 16, 20), np.zeros((2, 16, 20), np.float32)
    metric = metrics.ROADCombined()
    with pytest.raises(ValueError, match=r"maps must be \(B, H, W\) = \(2, 16, 20\).*\(2, 20, 16\)"):
        metric(x, maps.transpose(0, 2, 1), 1, model)
    with pytest.raises(ValueError, match=r"got \(1, 16, 20\)"):
        metric(x, maps[:1], 1, model)
    with pytest.raises(TypeError, match="maps must be an array"):
        metric(x, "maps", 1, model)
    with pytest.raises(ValueError, match="one per image"):
        metric(x, maps, torch.zeros(2, 3, dtype=torch.long), model)
    with pytest.raises(ValueError, match="out of range"):
        metric(x, maps, 99, model)
    for percentile in (101, -1, "most"):
        with pytest.raises(ValueError, match="percentile must be"):
            metrics.ROADMostRelevantFirst(percentile)


def test_half_precision():
    model, x = tiny().bfloat16(), torch.randn(2, 3, 16, 20)
    maps = np.random.default_rng(0).random((2, 16, 20)).astype(np.float16)
    ours = metrics.ROADCombined([50], noise=0)(x.bfloat16(), maps, 1, model)
    wide = metrics.ROADCombined([50], noise=0)(x, maps, 1, model.float())
    np.testing.assert_allclose(ours, wide, atol=0.05)
    assert ours.dtype == np.float32


def test_multiply_is_a_product():
    x, m = torch.randn(3, 4, 5), torch.rand(4, 5)
    torch.testing.assert_close(cam_mult_image.multiply_tensor_with_cam(x, m), x * m)
