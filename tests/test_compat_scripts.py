"""Scripts written for pytorch-grad-cam and FlashTorch, run unchanged with fastcam: their arrays, or the right ones."""

from __future__ import annotations

import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch

from reference import ascent, swapped, theirs

ROOT = pathlib.Path(__file__).parent.parent
FOR_FLASHTORCH = ROOT / "tests" / "compat" / "with_flashtorch"
SCRIPTS = sorted((ROOT / "tests" / "compat").glob("*.py"))
ILL_CONDITIONED = {"xgradcam", "ablation", "scorecam"}  # divisions by sums and scores near 0, a softmax of scores

# The packages and what they bring are not there; at the end, what was imported is written down.
HIDDEN = """
import atexit, os, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytorch_grad_cam", "ttach", "flashtorch", "importlib_resources"):
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Hidden())
def write():
    with open(os.environ["IMPORTED"], "w") as file:
        print(*sorted(str(getattr(m, "__file__", "")) for m in list(sys.modules.values())), sep="\\n", file=file)
atexit.register(write)
"""


def arrays(command, out, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    run = subprocess.run(
        [sys.executable, *map(str, command), str(out)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(out) as saved:
        return dict(saved)


def arrays_by_fastcam(script, tmp_path):
    """What the script writes on fastcam, with no file of the other packages imported."""
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    ours = arrays(
        ["-m", "fastcam.compat", script],
        tmp_path / "ours.npz",
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
        IMPORTED=str(tmp_path / "imported"),
        MPLBACKEND="Agg",
    )
    imported = (tmp_path / "imported").read_text()
    assert f"{os.sep}fastcam{os.sep}compat{os.sep}" in imported
    for package in ("pytorch_grad_cam", "ttach", "cv2", "sklearn", "site-packages" + os.sep + "flashtorch"):
        assert f"{os.sep}{package}{os.sep}" not in imported
    return ours


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_a_script_gives_the_same_arrays(script, tmp_path):
    reference = arrays([script], tmp_path / "theirs.npz")
    ours = arrays_by_fastcam(script, tmp_path)
    assert ours.keys() == reference.keys() and len(ours) > 2
    for name, expected in reference.items():
        given = ours[name]
        assert given.shape == expected.shape and given.dtype == expected.dtype, name
        if expected.dtype.kind in "bU" or expected.ndim == 0 and expected.dtype.kind == "i":
            np.testing.assert_array_equal(given, expected, name)
            continue
        if expected.ndim > 1 and "mask" not in name:
            assert np.ptp(expected) > 0, f"{name} is constant"
        if expected.dtype == np.uint8:  # a level where a map is at the edge of one
            off = np.abs(given.astype(int) - expected)
            assert off.max() <= 4 and (off > 0).mean() < 1e-2, name
            continue
        ill = any(part in name.lower() for part in ILL_CONDITIONED)
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 if ill else 1e-5, err_msg=name)


def network_of(script):
    """The model that the script makes, in evaluation mode."""
    with swapped():
        return runpy.run_path(str(script))["network"]().eval()


def gradient(model, x, target):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x)[:, target].sum(), x)[0]


def guided(model, x, target):
    """By pytorch-grad-cam itself, image by image `(B, k, H, W)`; the model's rectifiers are replaced for good."""
    method = theirs.GuidedBackpropReLUModel(model, "cpu")
    return np.stack([np.atleast_3d(method(row, target)).transpose(2, 0, 1) for row in x.split(1)])


def noise(seed, size, channels, count=1):
    """Where FlashTorch begins."""
    np.random.seed(seed)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    mean, std = (mean, std) if channels == 3 else (mean.mean(), std.mean())
    drawn = [np.uint8(np.random.uniform(150, 180, (size, size, channels))) for _ in range(count)]
    return [((torch.from_numpy(d) / 255 - mean) / std).movedim(-1, 0)[None] for d in drawn]


def until(model, layer):
    """The model as far as the layer's output."""
    found = []
    layer.register_forward_hook(lambda *a: found.append(a[-1].clone()))  # before an operation in place
    return lambda x: (model(x), found.pop())[1]


def close(given, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    assert given.shape == expected.shape and np.ptp(expected) > 0
    np.testing.assert_allclose(given, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def pictures(folder):
    return {p.stem.partition("_")[2] for p in folder.glob("ours_*.png") if p.stat().st_size > 2000}


def test_a_script_for_flashtorch(tmp_path):
    script = FOR_FLASHTORCH / "saliency_and_filters.py"
    given, model = arrays_by_fastcam(script, tmp_path), network_of(script)
    x, target = torch.from_numpy(given["x"]), int(given["target"])
    assert target == 167 and pictures(tmp_path) == {"saliency", "guided", "filter", "filters", "dream"}
    close(given["plain"], gradient(model, x, target)[0])
    close(given["plain_max"], gradient(model, x, target)[0].amax(0, keepdim=True))
    close(given["dalmatian"], gradient(model, x, 251)[0])
    assert given["filters"].shape == (4, 3, 72, 72) and given["seen"].shape == (96, 96, 3)
    steps = ascent(until(model.features, model.features[3].expand3x3), noise(4, 72, 3)[0], 6, 4)
    close(given["filter"], torch.cat(steps), 1e-3)
    assert given["dream"].shape == (3, 3, 64, 64)
    close(given["guided"], guided(model, x, target)[0])
    close(given["guided_max"], guided(model, x, target)[0].max(0, keepdims=True))


def test_a_script_for_both(tmp_path):
    script = FOR_FLASHTORCH / "both_packages.py"
    given, model = arrays_by_fastcam(script, tmp_path), network_of(script)
    assert pictures(tmp_path) == {"saliency", "cam", "filters"}
    sizes = [t.numel() for t in model.state_dict().values()]
    parts = torch.from_numpy(given["weights"]).split(sizes)
    state = {k: p.view(t.shape).to(t.dtype) for (k, t), p in zip(model.state_dict().items(), parts, strict=True)}
    model.load_state_dict(state)
    x = torch.from_numpy(given["x"])
    close(given["plain"], gradient(model, x[:1], 7)[0])
    with theirs.GradCAM(model, [model.layer4[-1]]) as cam:
        seven = theirs.utils.model_targets.ClassifierOutputTarget(7)
        close(given["cam"], cam(x, [seven] * 2))
    assert given["filters"].shape == (2, 1, 40, 40) and np.ptp(given["filters"]) > 1
    expected = guided(model, x, 7)
    close(given["saliency"], expected)
    close(given["guided"], expected.transpose(0, 2, 3, 1))


def test_the_tutorial(tmp_path):
    script = FOR_FLASHTORCH / "tutorial.py"
    given, model = arrays_by_fastcam(script, tmp_path), network_of(script)
    assert pictures(tmp_path) == {"kernels", "maps", "cam", "saliency", "filters"}
    x, target = torch.from_numpy(given["x"]), int(given["target"])
    close(given["feature_maps"], model.conv1(x)[0].detach())
    with theirs.GradCAM(model, [model.layer4[-1]]) as cam:
        close(given["cam"], cam(x, None))
    starts = noise(0, 56, 1, count=5)
    layer = model.layer1[0].conv1
    steps = [
        ascent(until(model, layer), start, index, 5)[-1] for index, start in zip(range(5, 10), starts, strict=True)
    ]
    close(given["filters"], torch.cat(steps), 1e-3)
    close(given["guided"], guided(model, x, target)[0])
