"""FinerCAM, RefineCAM and SESS under pytorch-grad-cam's name, beside its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reference import close, swapped, theirs

SMALL = {"num_scales": 2, "batch_size": 5}


@pytest.fixture(scope="module")
def ours():
    with swapped() as package:
        yield package


@pytest.fixture
def net():
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, 10, 3, 2), nn.Sigmoid(), nn.AdaptiveAvgPool2d(2)]
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(40, 7)).eval()
    with torch.no_grad():
        for n in (0, 2):
            model[n].weight *= 4  # activations that spread
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 40, 44, generator=torch.Generator().manual_seed(1))


def squared(package):
    """A subclass in numpy, the same with either package."""

    class Squared(package.LayerCAM):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth=False):
            return (np.maximum(grads, 0) * activations**2).sum(axis=1)

    return Squared


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.4}, {"target_idx": 2}, {"comparison_categories": [1, 5, 99]}, {"targets": True}]
)
@pytest.mark.parametrize("base", ["LayerCAM", "GradCAMPlusPlus", squared])
def test_finer_cam(ours, net, x, base, options):
    if options.get("targets"):
        options = {"targets": [theirs.utils.model_targets.FinerWeightedTarget(c, [3, 4], 0.5) for c in (1, 2)]}
    maps = []
    for package in (ours, theirs):
        method = base(package) if callable(base) else getattr(package, base)
        with package.FinerCAM(net, [net[1], net[3]], base_method=method) as cam:
            assert cam.uses_gradients and not cam.compute_input_gradient and type(cam.base_cam) is method
            maps.append(cam(x, **options))
    close(*maps)


def test_finer_cam_is_better_than_there(ours, net, x):
    cam = ours.FinerCAM(net, [net[3]], base_method=ours.LayerCAM)
    smooth = cam(input_tensor=x, targets=None, aug_smooth=True, eigen_smooth=False)  # Q33, as cam.py calls it
    assert smooth.shape == (2, 40, 44) and np.abs(smooth - cam(x)).max() > 1e-3
    torch.testing.assert_close(cam.outputs, net(x))
    assert cam.base_cam._recorder is None and net[0].weight.grad is None
    assert ours.finer_cam.DEFAULT_COMPARISON_CATEGORIES == (1, 2, 3)
    with pytest.raises(TypeError):
        theirs.FinerCAM(net, [net[3]])(x, aug_smooth=True)


@pytest.mark.parametrize("base", ["LayerCAM", "GradCAMPlusPlus", "EigenCAM", squared])
def test_refine_cam(ours, net, x, base):
    maps = []
    for package in (ours, theirs):
        cam = package.RefineCAM(
            net, [net[1], net[3]], None, base(package) if callable(base) else getattr(package, base)
        )
        cam.batch_size = 32
        assert [c.target_layers for c in cam.base_cam_per_layer] == [[net[1]], [net[3]]]
        maps.append(cam(x, [lambda y: y.softmax(0)[1], lambda y: y.softmax(0)[4]]))
    close(*maps)


def test_refine_cam_runs_the_model_once_and_knows_eigen_smooth(ours, net, x):
    calls = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    with ours.RefineCAM(net, [net[1], net[3]], base_method=ours.LayerCAM) as cam:  # Q32
        plain = cam(x)
        assert len(calls) == 1
        smooth = cam(x, None, True)
        assert len(calls) == 2  # Q32: not the 12 runs of aug_smooth
        torch.testing.assert_close(cam.outputs, net(x))
    handle.remove()
    each = [ours.LayerCAM(net, [layer])(x, None, eigen_smooth=True) for layer in (net[1], net[3])]
    close(smooth, ours.utils.image.scale_cam_image(np.prod(each, axis=0)))
    assert np.abs(smooth - plain).max() > 1e-3
    finer = ours.RefineCAM(net, [net[1], net[3]], base_method=ours.FinerCAM)
    reference = theirs.RefineCAM(net, [net[1], net[3]], base_method=theirs.FinerCAM)
    close(finer(x), reference(x))


@pytest.mark.parametrize(
    "options", [{}, {"pool": "max"}, {"pre_filter_ratio": 0.5, "theta": 0.2}, {"scales": [40, 60]}]
)
@pytest.mark.parametrize("base", ["LayerCAM", squared])
def test_sess(ours, net, x, base, options):
    targets = [theirs.utils.model_targets.ClassifierOutputTarget(c) for c in (1, 4)]
    cams = [
        p.SESS(net, [net[3]], base_method=base(p) if callable(base) else getattr(p, base), **SMALL, **options)
        for p in (ours, theirs)
    ]
    for given in (None, targets):
        expected = cams[1](x, given)
        close(cams[0](x, given), expected)
    cams[0].get_target = cams[0].get_target  # asks for the steps
    close(cams[0](x, targets), expected)


def test_sess_by_its_steps(ours, net, x):
    a, b = (
        p.SESS(net, [net[3]], base_method=p.LayerCAM, window_size=32, step_size=20, **SMALL) for p in (ours, theirs)
    )
    assert a.get_scales(32) == b.get_scales(32) and a.model is net and a.device == torch.device("cpu")
    patches, places = a.collect_patches(x[:1], 32, 20)
    expected, expected_places = b.collect_patches(x[:1], 32, 20)
    assert list(map(tuple, places)) == list(map(tuple, expected_places)) and len(places) == 6
    torch.testing.assert_close(torch.cat(patches), torch.cat(expected), atol=1e-5, rtol=1e-5)
    target = a.get_target(x[:1])
    assert target.category == b.get_target(x[:1]).category
    close(a.get_scores(patches, target), b.get_scores(expected, target))
    cam = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    close(a.paste_cam(cam, (3, 5, 50, 45), (40, 44)), b.paste_cam(cam, (3, 5, 50, 45), (40, 44)))
    for module in (ours.sess, theirs.sess):
        assert module.window_starts(50, 20, 32) == [0, 18] and len(module.sliding_window(50, 70, 20, 32)) == 6

    class Fixed(ours.SESS):
        def get_scales(self, window_size):
            return [window_size]

    close(
        Fixed(net, [net[3]], base_method=ours.LayerCAM)(x), theirs.SESS(net, [net[3]], None, theirs.LayerCAM, [40])(x)
    )


def test_sess_refuses_what_the_reference_refuses(ours, net, x):
    for options in ({"pool": "min"}, {"pre_filter_ratio": 1.0}, {"num_scales": 0}):
        for package in (ours, theirs):
            with pytest.raises(ValueError, match=next(iter(options))):
                package.SESS(net, [net[3]], **options)
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="one target per image"):
            package.SESS(net, [net[3]], **SMALL)(x, [lambda y: y[0]] * 3)
        with pytest.raises(ValueError, match="window size"):
            package.SESS(net, [net[3]], scales=[10])(x)


def test_nothing_is_left_in_the_model(ours, net, x):
    for name in ("FinerCAM", "RefineCAM", "SESS"):  # Q8
        cam = getattr(ours, name)(net, [net[1], net[3]], **(SMALL if name == "SESS" else {}))
        cam(x)
        assert not any(m._forward_hooks for m in net.modules())
        assert all(base._recorder is None for base in cam.bases)
