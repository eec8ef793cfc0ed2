"""fastcam under pytorch-grad-cam's name: every import path, every step, and what is better than there."""

from __future__ import annotations

import copy
import importlib
import inspect
import pathlib
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pytorch_grad_cam.utils.find_layers import find_layer_types_recursive as theirs_find_layer_types
from torch import nn

import fastcam
from fastcam import compat
from fastcam.compat.names import MODULES

from reference import NAME, REAL, close, hidden, swapped, theirs

NOT_YET: set[str] = set()
BEYOND = {("metrics", "ARCC")}  # which the reference's documentation imports, in vain
DEAD = {  # methods that nothing calls in the reference, or only the loops that fastcam does without
    *(("GuidedBackpropReLUModel", f"recursive_replace_{n}") for n in ("relu_with_guidedrelu", "guidedrelu_with_relu")),
    *(("AblationCAM", n) for n in ("save_activation", "assemble_ablation_scores")),
    ("FullGrad", "get_bias_data"),
}
GRADIENT = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise", "EigenGradCAM"]
NAMES = sorted({c.__name__ for c in theirs.base_cam.BaseCAM.__subclasses__()})


@pytest.fixture(scope="module")
def ours():
    with swapped() as package:
        yield package


@pytest.fixture
def net():
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, 10, 3, 2), nn.Sigmoid(), nn.AdaptiveAvgPool2d(2)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(40, 7), nn.Tanh(), nn.Linear(7, 7))
    model = nn.Sequential(*features, head).eval()
    with torch.no_grad():
        for n in (0, 2):
            model[n].weight *= 4  # activations that spread
    return model


@pytest.fixture
def x():
    return torch.randn(3, 3, 40, 44, generator=torch.Generator().manual_seed(1))


def module_of(path):
    return importlib.import_module(f"{NAME}.{path}" if path else NAME)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def defined(module):
    """The public classes and functions that a module of the reference defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type | types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def test_the_table_has_every_module_and_name_of_the_reference():
    assert set(MODULES) == set(REAL) and len(REAL) > 30
    for path, module in REAL.items():
        missing = set(defined(module)) - set(MODULES[path].split())
        assert not missing, f"{path}: {missing}"
        unknown = {n for n in MODULES[path].split() if not hasattr(module, n) and (path, n) not in BEYOND}
        assert not unknown, f"{path}: {unknown}"
    public = {n for n, v in vars(theirs).items() if not n.startswith("_") and not isinstance(v, types.ModuleType)}
    assert public == set(MODULES[""].split())


def test_every_name_is_fastcams(ours):
    for path, names in MODULES.items():
        module = module_of(path)
        for name in set(names.split()) - NOT_YET:
            value = getattr(module, name)
            home = getattr(value, "__module__", "fastcam")
            assert home.split(".")[0] == "fastcam", f"{path}.{name} is from {home}"
        assert set(names.split()) <= set(dir(module))


def test_one_object_whatever_the_path(ours):
    found = {}
    for path, names in MODULES.items():
        for name in set(names.split()) - NOT_YET:
            found.setdefault(name, set()).add(id(getattr(module_of(path), name)))
    assert len(found) > 70 and all(len(ids) == 1 for ids in found.values())
    attributes = {"metrics.road": ours.metrics.road, "utils.image": ours.utils.image, "base_cam": ours.base_cam}
    assert all(module is module_of(path) for path, module in attributes.items())


def parameters(function):
    names = [n for n in inspect.signature(function).parameters if n not in ("args", "kwargs")]
    if function.__name__ in ("get_cam_weights", "get_cam_image", "compute_cam_per_layer"):  # names vary even there
        return [str(n) for n in range(len(names))]
    return names


def test_parameters_have_the_references_names_and_order(ours):
    for path, module in REAL.items():
        for name in defined(module):
            if path == "ablation_cam_multilayer":  # which cannot be called there
                continue
            value, reference = getattr(module_of(path), name), getattr(module, name)
            pairs = [("", value, reference)]
            if isinstance(reference, type):
                methods = [n for n, f in vars(reference).items() if inspect.isfunction(f) and not n.startswith("__")]
                methods += [n for n in ("__init__", "__call__") if n in vars(reference)]
                pairs = [(n, getattr(value, n, None), getattr(reference, n)) for n in methods if (name, n) not in DEAD]
            for method, a, b in pairs:
                assert a is not None, f"{path}.{name}.{method} is missing"
                if method == "__call__" and "args" in inspect.signature(b).parameters:
                    continue
                given, expected = map(parameters, (a, b))
                assert given[: len(expected)] == expected, f"{path}.{name}.{method}: {given} for {expected}"


def test_subclasses_of_base_cam_are_the_references(ours):
    by_name = {c.__name__: c for c in ours.base_cam.BaseCAM.__subclasses__() if c.__module__.startswith("fastcam.")}
    assert sorted(by_name) == NAMES
    assert all(by_name[name] is getattr(ours, name) for name in NAMES)


def test_install_and_uninstall():
    before = sys.modules[NAME]
    with hidden():
        compat.install()
        compat.install()
        package = sys.modules[NAME]
        assert package.GradCAM is importlib.import_module(f"{NAME}.grad_cam").GradCAM
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            package.Nothing  # noqa: B018
        compat.uninstall()
        assert NAME not in sys.modules
        compat.uninstall()
        with pytest.raises(ZeroDivisionError), compat.installed():
            assert NAME in sys.modules
            raise ZeroDivisionError
        assert NAME not in sys.modules
    assert importlib.import_module(NAME) is before


def test_install_refuses_beside_the_real_package():
    with hidden():
        sys.modules[NAME] = theirs
        with pytest.raises(RuntimeError, match="already imported, from .*pytorch_grad_cam"):
            compat.install()
        assert importlib.import_module(NAME) is theirs


def test_nothing_is_installed_unasked():
    code = (
        "import sys, fastcam, fastcam.cli, fastcam.compat, fastcam.compat.cam\n"
        "[getattr(fastcam, n) for n in fastcam.__all__]\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'pytorch_grad_cam']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scripts_and_modules_run(tmp_path):
    (tmp_path / "helper.py").write_text("VALUE = 7\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, helper, pytorch_grad_cam\n"
        "assert __name__ == '__main__'\n"
        "print(pytorch_grad_cam.GradCAM.__module__, helper.VALUE, *sys.argv)\n"
    )
    for command in (["script.py", "--a", "b"], ["-m", "script", "--a", "b"]):
        run = subprocess.run(
            [sys.executable, "-m", "fastcam.compat", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split()[:2] == ["fastcam.compat.cams", "7"] and run.stdout.split()[3:] == ["--a", "b"]
    for command, message in (([], "usage"), (["nothing.py"], "no script 'nothing.py'"), (["-m"], "usage")):
        run = subprocess.run([sys.executable, "-m", "fastcam.compat", *command], capture_output=True, text=True)
        assert run.returncode == 1 and message in run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_calls_give_the_references_maps(ours, net, x, name):
    layers = [net[1]] if name == "ShapleyCAM" else [net[1], net[3]]  # which fails there with two, Q21
    targets = [theirs.utils.model_targets.ClassifierOutputSoftmaxTarget(c) for c in (1, 4, 2)]
    atol = 1e-4 if name in ("AblationCAM", "KPCA_CAM") else 1e-5  # small differences of scores; of kernel values
    for options in ({}, {"aug_smooth": True}, {"targets": None}):
        maps = []
        for package in (ours, theirs):
            np.random.seed(0)
            arguments = {"targets": targets, **options}
            with getattr(package, name)(net, [] if name == "FullGrad" else layers) as cam:
                cam.batch_size = 8
                maps.append(cam(x, **arguments))
        close(*maps, atol)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("FullGrad", "RandomCAM")])
def test_steps_give_what_the_native_method_gives(ours, net, x, name):
    options = [1, 2, 3]
    layer = net[3]
    native = getattr(ours, name)(net, [layer])
    expected = native(x, options)
    assert native._recorder is None, "the native method records nothing"
    steps = getattr(ours, name)(net, [layer])
    steps.aggregate_multi_layers = steps.aggregate_multi_layers  # asks for the steps
    close(steps(x, options), expected, 1e-4 if name in ("AblationCAM", "KPCA_CAM") else 1e-5)
    assert torch.equal(steps.outputs, native.outputs) and not steps.outputs.requires_grad
    assert hooks(net) == 0


@pytest.mark.parametrize("eigen_smooth", [False, True])
@pytest.mark.parametrize("name", GRADIENT)
def test_steps_called_by_hand_give_the_references_numbers(ours, net, x, name, eigen_smooth):
    rng = np.random.default_rng(0)
    A, G = (rng.normal(size=(3, 6, 5, 7)).astype(np.float32) for _ in range(2))
    A = np.abs(A)  # XGradCAM divides by its sum
    a, b = (getattr(package, name)(net, [net[1]]) for package in (ours, theirs))
    kept = A.copy(), G.copy()
    image = a.get_cam_image(x, net[1], None, A, G, eigen_smooth)
    np.testing.assert_allclose(image, b.get_cam_image(x, net[1], None, A, G, eigen_smooth), rtol=1e-4, atol=1e-5)
    tensors = torch.from_numpy(A), torch.from_numpy(G)
    np.testing.assert_array_equal(image, a.get_cam_image(x, net[1], None, *tensors, eigen_smooth))
    np.testing.assert_array_equal((A, G), kept)
    if not hasattr(type(b), "get_cam_weights") or type(b).get_cam_weights is theirs.base_cam.BaseCAM.get_cam_weights:
        with pytest.raises(NotImplementedError):
            a.get_cam_weights(x, net[1], None, A, G)
    else:
        given, expected = (cam.get_cam_weights(x, [net[1]], None, A, G) for cam in (a, b))
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-7)
    close(a.aggregate_multi_layers([image[:, None], A[:, :1]]), b.aggregate_multi_layers([image[:, None], A[:, :1]]))
    b.activations_and_grads.release()


@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM"])
def test_steps_take_volumes(ours, net, x, name):
    A, G = (np.abs(np.random.default_rng(s).normal(size=(2, 4, 3, 5, 6))).astype(np.float32) for s in (0, 1))
    images = [getattr(p, name)(net, [net[1]]).get_cam_image(x, net[1], None, A, G, False) for p in (ours, theirs)]
    np.testing.assert_allclose(*images, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        ours.GradCAM(net, [net[1]]).get_cam_image(x, net[1], None, A[0, 0], G[0, 0], False)


def test_volumes_are_the_references(ours):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv3d(1, 6, 3, 2), nn.Sigmoid(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(48, 4))
    with torch.no_grad():
        model[0].weight *= 4
    x = torch.randn(2, 1, 9, 13, 16)
    targets = [theirs.utils.model_targets.ClassifierOutputSoftmaxTarget(c) for c in (1, 2)]
    for name in ("GradCAM", "LayerCAM", "EigenCAM"):
        cams = [getattr(p, name)(model, [model[1]]) for p in (ours, theirs)]
        assert cams[0].get_target_width_height(x) == cams[1].get_target_width_height(x) == (16, 13, 9)
        expected = cams[1](x, targets)
        close(cams[0](x, targets), expected)
        cams[0].aggregate_multi_layers = cams[0].aggregate_multi_layers  # asks for the steps
        close(cams[0](x, targets), expected)


def test_compute_cam_per_layer_by_hand(ours, net, x):
    made = []
    for package in (ours, theirs):
        cam = package.GradCAMPlusPlus(net, [net[1], net[3]])
        outputs = cam.activations_and_grads(x)
        outputs[:, 2].sum().backward()
        made.append(cam.compute_cam_per_layer(x, None, False))
        cam.activations_and_grads.release()
        net.zero_grad()
    for a, b in zip(*made, strict=True):
        close(a, b)
    assert hooks(net) == 0


def test_scaling_is_the_references(ours):
    rng = np.random.default_rng(0)
    a, b = ours.utils.image, theirs.utils.image
    for shape in ((3, 7, 9), (1, 1, 5), (2, 6, 1)):
        maps = rng.normal(size=shape).astype(np.float32)
        for size in (None, (18, 14), (5, 3), (31, 20)):
            np.testing.assert_allclose(a.scale_cam_image(maps, size), b.scale_cam_image(maps, size), atol=1e-5)
    np.testing.assert_array_equal(a.scale_cam_image(maps * 0), maps * 0)  # not NaN
    for size in (1e-9, 1e-15, 1e-20):  # vanishing gradients, which the second pass blows up again
        maps = (rng.random((1, 4, 4)) * size).astype(np.float32)
        twice = [m.scale_cam_image(m.scale_cam_image(maps)) for m in (a, b)]
        np.testing.assert_allclose(*twice, rtol=1e-4)
    flat = rng.random((6, 8)).astype(np.float32)
    close(a.scale_cam_image(flat), b.scale_cam_image(flat))  # Q29: each line by itself
    assert np.allclose(a.scale_cam_image(flat).max(1), 1)
    volumes = rng.random((2, 5, 6, 7)).astype(np.float32)
    close(a.scale_cam_image(volumes, (14, 9, 11)), b.scale_cam_image(volumes, (14, 9, 11)))
    channels = rng.random((2, 3, 5, 6)).astype(np.float32)
    close(*(m.scale_accross_batch_and_channels(channels, (12, 9)) for m in (a, b)))


def test_projections_are_the_references(ours):
    A = np.random.default_rng(0).normal(size=(4, 6, 5, 7)).astype(np.float32)
    A[0, 0, 0, 0] = np.nan
    kept = A.copy()
    a, b = ours.utils.svd_on_activations, theirs.utils.svd_on_activations
    close(a.get_2d_projection(A), b.get_2d_projection(A), 1e-4)  # values up to 5
    close(a.get_2d_projection_with_sign_correction(A), b.get_2d_projection_with_sign_correction(A), 1e-4)
    for options in ({}, {"kernel": "rbf"}, {"kernel": "sigmoid", "gamma": 0.1}):
        close(a.get_2d_projection_kernel(A, **options), b.get_2d_projection_kernel(A, **options), 1e-4)
    np.testing.assert_array_equal(A, kept)


class Nested(nn.Module):
    """Children that are None, as GoogLeNet has without its auxiliary classifiers, and a layer that is there twice."""

    def __init__(self):
        super().__init__()
        self.register_module("aux", None)
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU6(), self.relu)

    def forward(self, x):
        return self.block(self.relu(self.conv(x)))


def test_layers_are_found_and_replaced_beside_none(ours):
    find = ours.utils.find_layers
    model = Nested()
    assert "aux" in model._modules
    assert find.find_layer_types_recursive(model, [nn.ReLU]) == [model.relu, model.relu]
    assert find.find_layer_types_recursive(model, [nn.BatchNorm2d, nn.ReLU6]) == list(model.block[:2])
    assert find.find_layer_predicate_recursive(model, lambda m: isinstance(m, nn.Sequential)) == [model.block]
    plain = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    assert find.find_layer_types_recursive(plain, [nn.ReLU]) == theirs_find_layer_types(plain, [nn.ReLU])
    assert find.replace_layer_recursive(model, model.relu, nn.GELU())
    assert type(model.relu) is nn.GELU and type(model.block[2]) is nn.ReLU  # the first only
    assert not find.replace_layer_recursive(model, nn.ReLU(), nn.GELU())
    find.replace_all_layer_type_recursive(model, nn.ReLU, nn.Tanh())
    assert type(model.block[2]) is nn.Tanh and type(model.block[1]) is nn.ReLU6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reference
def test_meta_methods_run_beside_none_children(ours):
    torch.manual_seed(0)
    model = nn.Sequential(Nested(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(1, 3, 12, 12)
    for name in ("AblationCAM", "FullGrad"):
        assert np.ptp(getattr(ours, name)(model, [model[0].conv])(x, [1])) > 0
    assert np.ptp(ours.GuidedBackpropReLUModel(model)(x)) > 0
    for name in ("AblationCAM", "FullGrad"):
        with pytest.raises(AttributeError, match="_modules"):
            getattr(theirs, name)(model, [model[0].conv])(x, [lambda y: y[1]])


def test_a_call_without_targets_explains_the_predicted_class(ours, net, x):
    cam = ours.GradCAM(net, [net[3]])
    np.testing.assert_array_equal(cam(x), cam(x, None))
    close(cam(x), theirs.GradCAM(net, [net[3]])(x, None))
    with pytest.raises(TypeError):
        theirs.GradCAM(net, [net[3]])(x)


def test_the_native_way_leaves_the_model_alone(ours, net, x):
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in net.parameters()]
    cams = [getattr(ours, name)(net, [net[1]]) for name in NAMES]
    assert hooks(net) == 0
    for cam in cams:
        cam(x, [0, 1, 2])
        assert cam._recorder is None and hooks(net) == 0
    net(x).sum()  # an ordinary call of the model is nobody's business
    assert all(cam._recorder is None for cam in cams)
    assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before, strict=True))
    recorder = cams[0].activations_and_grads
    assert hooks(net) == 2 and recorder is cams[0].activations_and_grads
    recorder.release()
    assert hooks(net) == 0
    clone = copy.deepcopy(net)  # Q45: nothing of ours in it
    assert hooks(clone) == 0 and pickle.loads(pickle.dumps(net)) is not None


def test_steps_keep_the_users_gradients(ours, net, x):
    class Mine(ours.GradCAM):
        def get_cam_weights(self, *arguments):
            return np.abs(super().get_cam_weights(*arguments))

    first = net[0].weight
    first.grad = torch.ones_like(first)
    cam = Mine(net, [net[3]])
    maps = cam(x, [0, 1, 2])
    assert np.ptp(maps) > 0 and torch.equal(first.grad, torch.ones_like(first)) and net[2].weight.grad is None
    assert not cam.outputs.requires_grad and cam.outputs.grad_fn is None
    assert hooks(net) == 0 and cam._recorder is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_frozen_models_and_ambient_no_grad(ours, net, x):
    class Mine(ours.GradCAM):
        def get_cam_weights(self, *arguments):
            return super().get_cam_weights(*arguments)

    for cls in (ours.GradCAM, Mine, ours.GradCAMPlusPlus):
        expected = cls(net, [net[1]])(x, [0, 1, 2])
        net.requires_grad_(False)
        close(cls(net, [net[1]])(x, [0, 1, 2]), expected)
        with torch.no_grad():
            close(cls(net, [net[1]])(x, [0, 1, 2]), expected)
        net[5].requires_grad_(True)  # a trainable head behind frozen layers
        close(cls(net, [net[1]])(x, [0, 1, 2]), expected)
        net.requires_grad_(True)
    net.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        theirs.GradCAM(net, [net[1]])(x, None)


def test_what_follows_in_place_does_not_change_what_was_recorded(ours, x):
    torch.manual_seed(0)
    inplace, plain = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=flag), nn.Flatten(), nn.LazyLinear(4)).eval()
        for flag in (True, False)
    )
    inplace(x), plain(x)
    plain.load_state_dict(inplace.state_dict())
    for name in ("GradCAM", "LayerCAM", "EigenCAM"):
        expected = getattr(ours, name)(plain, [plain[0]])(x, [0, 1, 2])
        close(getattr(ours, name)(inplace, [inplace[0]])(x, [0, 1, 2]), expected)
        steps = getattr(ours, name)(inplace, [inplace[0]])
        steps.aggregate_multi_layers = steps.aggregate_multi_layers
        close(steps(x, [0, 1, 2]), expected)
    assert (
        np.abs(theirs.GradCAM(inplace, [inplace[0]])(x, None) - theirs.GradCAM(plain, [plain[0]])(x, None)).max() > 0.1
    )


class Twice(nn.Module):
    """A layer that runs twice, and one that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.ReLU()
        self.pair = Pair()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        first = self.relu(self.a(x))
        return self.head(self.relu(self.b(self.pair(first)[0])).tanh().mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, "other"


def test_layers_in_any_order_run_twice_or_with_tuples(ours, x):
    torch.manual_seed(0)
    model = Twice().eval()
    forwards, backwards = ([*layers] for layers in ((model.a, model.b), (model.b, model.a)))
    for name in ("GradCAM", "AblationCAM", "EigenCAM"):  # Q10
        cls = getattr(ours, name)
        close(cls(model, backwards)(x, [0, 1, 2]), cls(model, forwards)(x, [0, 1, 2]), 1e-4)
    once = ours.GradCAM(model, [model.relu, model.b])(x, [0, 1, 2])  # Q9
    assert once.shape == (3, 40, 44) and np.ptp(once) > 0

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    expected = ours.GradCAM(model, [model.relu])(x, [0, 1, 2])
    assert np.ptp(ours.GradCAM(model, [model.pair])(x, [0, 1, 2])) > 0 and expected is not None
    steps = ours.GradCAM(model, [model.pair], first)  # Q23
    native = steps(x, [0, 1, 2])
    steps.aggregate_multi_layers = steps.aggregate_multi_layers
    close(steps(x, [0, 1, 2]), native)


class Wrapped(nn.Module):
    def __init__(self, net, key):
        super().__init__()
        self.net, self.key = net, key

    def forward(self, x):
        return {self.key: self.net(x)}


def test_outputs_in_dictionaries(ours, net, x):
    expected = ours.GradCAM(net, [net[3]])(x)
    for key in ("logits", "out"):
        cam = ours.GradCAM(Wrapped(net, key), [net[3]])
        close(cam(x), expected)  # Q12
        assert set(cam.outputs) == {key} and not cam.outputs[key].requires_grad


class Aside(nn.Module):
    """Gives a tuple, and takes its image in a dictionary too."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x["image"] if isinstance(x, dict) else x), None


def test_outputs_in_tuples_and_inputs_in_dictionaries(ours, net, x):
    class Mine(ours.GradCAM):
        def get_cam_weights(self, *arguments):
            return super().get_cam_weights(*arguments)

    model, expected = Aside(net), ours.GradCAM(net, [net[3]])(x)
    for cls in (ours.GradCAM, Mine):
        close(cls(model, [net[3]])(x), expected)
    close(ours.GradCAM(model, [net[3]])({"image": x}), expected)  # Q20
    whole = [lambda logits: logits[0, 1] + logits[1, 4] + logits[2, 2]]  # Q12: a tuple's parts, as there
    each = theirs.GradCAM(model, [net[3]])(x, whole)
    for cls in (ours.GradCAM, Mine):
        close(cls(model, [net[3]])(x, whole), each)
    with pytest.raises(TypeError, match="targets must be given for a model that returns list"):
        Mine(nn.Sequential(net, Listed()), [net[3]])(x)


class Listed(nn.Module):
    def forward(self, y):
        return [{"score": row.sum()} for row in y]


def test_parallel_compiled_and_scripted_models(ours, net, x):
    class Mine(ours.GradCAM):
        def get_cam_weights(self, *arguments):
            return super().get_cam_weights(*arguments)

    expected = ours.GradCAM(net, [net[3]])(x, [0, 1, 2])
    compiled = torch.compile(net, backend="eager")
    compiled(x)  # compiled before there are hooks
    for model in (nn.DataParallel(net), compiled):  # Q39, Q41
        for cls in (ours.GradCAM, Mine):
            close(cls(model, [net[3]])(x, [0, 1, 2]), expected)
    traced = torch.jit.trace(net, x)
    for cls in (ours.GradCAM, Mine):  # Q40
        with pytest.raises((RuntimeError, ValueError), match="is scripted or traced|did not run"):
            cls(traced, [getattr(traced, "3")])(x, [0, 1, 2])


def test_targets_of_the_wrong_kind_or_number(ours, net, x):
    vector = ours.utils.model_targets.RawScoresOutputTarget()
    with pytest.raises(ValueError, match="scalar"):
        ours.GradCAM(net, [net[3]])(x, [vector] * 3)  # Q13
    one = ours.GradCAM(net, [net[3]])(x, [lambda y: y[1]])  # Q14: one target serves all images
    close(one, ours.GradCAM(net, [net[3]])(x, [1, 1, 1]))
    assert (theirs.GradCAM(net, [net[3]])(x, [lambda y: y[1]])[1:] == 0).all()
    with pytest.raises(ValueError, match="targets"):
        ours.ScoreCAM(net, [net[3]])(x, [lambda y: y[1]] * 2)


def test_errors_inside_with_are_not_swallowed(ours, net, x, capsys):
    for cam in (ours.GradCAM(net, [net[3]]), ours.FinerCAM(net, [net[3]]), ours.RefineCAM(net, [net[3]])):
        with pytest.raises(IndexError, match="mine"), cam:
            raise IndexError("mine")
    with pytest.raises(np.exceptions.AxisError), ours.GradCAM(net, [net[3]]):
        np.sum(np.zeros(3), axis=4)
    assert capsys.readouterr().out == ""
    with theirs.GradCAM(net, [net[3]]):
        raise IndexError("swallowed")


def test_nothing_is_said_when_the_constructor_fails(ours, net):
    unraisable = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        for arguments in ((None, []), (net,)):
            with pytest.raises((TypeError, AttributeError)):
                ours.GradCAM(*arguments)
        cam = ours.ShapleyCAM(net, [net[1]])
        cam.activations_and_grads.activations = [torch.ones(2, requires_grad=True).view(1, 2)[0]]
        cam.__del__()  # Q17: views cannot be detached in place
    finally:
        sys.unraisablehook = hook
    assert not unraisable


def test_outputs_after_augmentations_are_those_of_the_image(ours, net, x):
    cam = ours.GradCAM(net, [net[3]])
    cam(x, [0, 1, 2], aug_smooth=True)
    torch.testing.assert_close(cam.outputs, net(x))  # Q18
    assert len(list(cam.tta_transforms)) == 6
    cam.tta_transforms = cam.tta_transforms[1:2]
    close(cam(x, [0, 1, 2], aug_smooth=True), cam(x, [0, 1, 2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(ours, net, x, dtype):
    names = ("GradCAM", "EigenCAM", "ScoreCAM", "LayerCAM")
    expected = {name: getattr(ours, name)(net, [net[3]])(x, [0, 1, 2]) for name in names}
    net.to(dtype)
    for name in names:
        maps = getattr(ours, name)(net, [net[3]])(x.to(dtype), [0, 1, 2])
        steps = getattr(ours, name)(net, [net[3]])
        steps.aggregate_multi_layers = steps.aggregate_multi_layers
        for given in (maps, steps(x.to(dtype), [0, 1, 2])):  # Q19
            assert given.dtype == np.float32 and np.isfinite(given).all()
            like = np.corrcoef(given.ravel(), expected[name].ravel())[0, 1]
            assert like > 0.9 or name == "EigenCAM" and np.ptp(given) > 0.9  # whose sign a rounding may turn
    with pytest.raises((TypeError, RuntimeError)):
        theirs.EigenCAM(net, [net[3]])(x.to(dtype), None)


def test_autocast_does_not_round_the_maps(ours, net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = ours.GradCAM(net, [net[1]])(x, [0, 1, 2])
    positive = torch.from_numpy(maps[maps > 0])
    assert len(positive) > 100 and (positive.bfloat16() != positive).float().mean() > 0.9


def test_shapley_of_several_layers_and_of_tokens(ours, net, x):
    assert np.ptp(ours.ShapleyCAM(net, [net[1], net[3]])(x, [lambda y: y.softmax(0)[1]])) > 0  # Q21

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.head(self.block(self.patches(x).flatten(2).mT).mean(1))

    torch.manual_seed(0)
    model = Tokens().eval()
    cam = ours.ShapleyCAM(model, [model.block.norm1], lambda t: t.mT.unflatten(2, (10, 11)))
    assert np.ptp(cam(x, [lambda y: y.softmax(0)[1]])) > 0


def test_ablation_leaves_nothing_behind(ours, net, x):
    def fails(output):
        raise ZeroDivisionError

    modules = list(net.modules())
    cam = ours.AblationCAM(net, [net[3]])
    with pytest.raises(ZeroDivisionError):
        cam(x, [fails] * 3)
    assert list(net.modules()) == modules  # Q27
    multilayer = ours.ablation_cam_multilayer.AblationCAM(net, [net[1], net[3]])  # Q31
    assert np.ptp(multilayer(x, [0, 1, 2])) > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reference
def test_models_without_parameters(ours, x):
    model = nn.Sequential(nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    cam = ours.GradCAM(model, [model[0]])
    assert cam.device == torch.device("cpu") and np.ptp(cam(x, [0, 1, 2])) > 0  # Q42
    with pytest.raises(StopIteration):
        theirs.GradCAM(model, [model[0]])


def test_attributes_are_plain(ours, net):
    cam = ours.GradCAM(model=net, target_layers=[net[3]], reshape_transform=None)
    assert cam.model is net and cam.target_layers == [net[3]] and cam.reshape_transform is None
    assert cam.device == torch.device("cpu") and cam.uses_gradients and cam.detach and not cam.compute_input_gradient
    assert ours.ShapleyCAM(net, [net[3]]).detach is False and ours.ScoreCAM(net, [net[3]]).uses_gradients is False
    assert ours.AblationCAM(net, [net[3]]).batch_size == 32 and ours.FEM(net, [net[3]], k=1).k == 1


def test_another_model_may_be_assigned(ours, net, x):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[5][1].weight.neg_()
    cam = ours.GradCAM(net, [net[3]])
    before = cam(x, [0, 1, 2])
    cam.model, cam.target_layers = other, [other[3]]
    close(cam(x, [0, 1, 2]), ours.GradCAM(other, [other[3]])(x, [0, 1, 2]))
    assert np.abs(cam(x, [0, 1, 2]) - before).max() > 0.1


def test_quiet(ours, net, x, capsys):
    ours.HiResCAM(net, [net[3]])(x, [0, 1, 2], eigen_smooth=True)
    ours.AblationCAM(net, [net[3]])(x, [0, 1, 2])
    ours.ScoreCAM(net, [net[3]])(x, [0, 1, 2])
    assert capsys.readouterr() == ("", "")  # Q43
    assert fastcam.__version__


def test_guided_backpropagation_is_the_references(ours, x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten())
    model.append(nn.LazyLinear(4)).eval()(x)
    relus, image = [model[1], model[3]], x[:1].clone()
    guided = ours.GuidedBackpropReLUModel(model=model, device="cpu")
    first = guided(image, target_category=1)
    kept = first.copy()
    second = guided(image, target_category=1)
    np.testing.assert_array_equal(second, kept)  # Q34: neither doubled
    np.testing.assert_array_equal(first, kept)  # nor written into
    assert [model[1], model[3]] == relus and model[1].inplace and not image.requires_grad and image.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert guided(x).shape == (3, 40, 44, 3)
    close(first, theirs.GuidedBackpropReLUModel(model, "cpu")(image, target_category=1))


def test_the_command_has_the_references_flags_and_files(ours, tmp_path, monkeypatch, capsys):
    from fastcam.compat.cam import main

    rows, columns = np.mgrid[:48, :60]
    picture = np.stack([rows * 5, columns * 4, 128 + 127 * np.sin(rows / 9)], 2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    tests = str(pathlib.Path(__file__).parent)
    monkeypatch.syspath_prepend(tests)
    where = ["--image-path", str(tmp_path / "image.png"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    flags = ["--aug-smooth", "--eigen-smooth", "--model", "models:tiny", "--layer", "body"]
    for method in ("gradcam", "gradcam++", "finercam", "scorecam", "fullgrad", "sess"):
        assert main([*where, "--method", method, *flags]) == 0
        for name in ("cam", "gb", "cam_gb"):
            with Image.open(tmp_path / "out" / f"{method}_{name}.jpg") as file:
                assert file.size == (60, 48) and np.asarray(file).std() > 2
    assert main([*where[2:], "--image-path", "nowhere.png", *flags]) == 2
    assert "nowhere.png" in capsys.readouterr().err
    state = tmp_path / "resnet50.pt"
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    torch.save(model.state_dict(), state)
    assert main([*where, "--weights", str(state)]) == 0
    x = ours.utils.image.preprocess_image(picture / np.float32(255), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    mask = theirs.GradCAM(model, [model.layer4])(x, None)[0]
    shown = theirs.utils.image.show_cam_on_image(picture / np.float32(255), mask, use_rgb=True)
    with Image.open(tmp_path / "out" / "gradcam_cam.jpg") as file:
        assert np.abs(np.asarray(file).astype(float) - shown).mean() < 3  # JPEG
