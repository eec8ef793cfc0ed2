"""What is installed: the public names, what an import costs, the wheel, the README's promises."""

from __future__ import annotations

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import fastcam

ROOT = pathlib.Path(__file__).parent.parent
PUBLIC = [
    *("AblationCAM", "AblationLayer", "AblationLayerFasterRCNN", "AblationLayerVit", "AttentionRollout"),
    *("BinaryClassifierOutputTarget", "CAM", "ClassifierOutputReST", "ClassifierOutputSoftmaxTarget"),
    *("ClassifierOutputTarget", "DeconvNet", "DeepFeatureFactorization", "EigenCAM", "EigenGradCAM", "FEM"),
    *("FasterRCNNBoxScoreTarget", "FasterScoreCAM", "FinerCAM", "FinerWeightedTarget", "FullGrad", "GradCAM"),
    *("GradCAMElementWise", "GradCAMPlusPlus", "GradientRollout", "GroupCAM", "GuidedBackprop"),
    *("GuidedBackpropReLUModel", "GuidedGradCAM", "HiResCAM", "ISCAM", "KPCA_CAM", "LayerCAM", "LeGrad"),
    *("RandomCAM", "RawScoresOutputTarget", "ReciproCAM", "RefineCAM", "RegressionTarget", "SESS", "SSCAM"),
    *("ScoreCAM", "SegEigenCAM", "SemanticSegmentationTarget", "ShapleyCAM", "SimilarityToConceptTarget"),
    *("SimpleFullGrad", "SmoothFullGrad", "SmoothGradCAMpp", "SoftmaxOutputTarget", "ViTReciproCAM", "XGradCAM"),
    *("TopPatches", "top_patches"),
    *("Agreement", "Optimize"),
    *("ImageFiles", "MapBatches", "Maps", "attribute_dataset", "open_maps", "write_report"),
    *("__version__", "check_contrast", "denormalize", "deprocess_image", "dff", "explain", "gradient_picture"),
    "fasterrcnn_reshape_transform",
    *("layer_table", "load_image", "overlay", "preprocess_image", "run_dff_on_image", "show_cam_on_image"),
    *("Dream", "Inversion", "deep_dream", "invert"),
    *("FeatureMaps", "feature_maps", "kernel_figure", "layer_weights", "plot_kernels"),
    *("Attribution", "Comparison", "InputXGradient", "IntegratedGradients", "Saliency", "SmoothGrad", "compare"),
    *("Maximized", "Objective", "maximize"),
    *("show_factorization_on_image", "sobel_cam", "swinT_reshape_transform", "vit_reshape_transform"),
]


def test_the_public_names():
    assert sorted(fastcam.__all__) == sorted(PUBLIC) == dir(fastcam)
    for name in PUBLIC:
        assert getattr(fastcam, name) is not None
        assert not (ROOT / "fastcam" / f"{name}.py").exists(), "a public name is no module's"
    with pytest.raises(AttributeError, match="no attribute 'NoCAM'"):
        fastcam.NoCAM  # noqa: B018


def test_public_names_are_documented():
    for name in PUBLIC:
        if name != "__version__":
            assert len(getattr(fastcam, name).__doc__ or "") > 40, name


def loaded_by(code: str) -> set[str]:
    heavy = ["matplotlib", "PIL", "triton", "torchvision", "tqdm", "sklearn"]
    code += f"\nimport sys; print(*[m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_imports_stay_light():
    assert loaded_by("import fastcam") == set()
    painted = """
import torch, fastcam, fastcam.images, fastcam.results
image = fastcam.denormalize(torch.rand(1, 3, 8, 8), 0.1, 0.5, clamp=True)
fastcam.overlay(image, torch.rand(1, 8, 8))
fastcam.images.show_cam_on_image(fastcam.results.Images(image).pictures[0], torch.rand(8, 8), use_rgb=True)
fastcam.preprocess_image(image)
"""
    assert not loaded_by(painted) & {"matplotlib", "PIL", "torchvision", "sklearn"}
    explained = """
import torch, fastcam
net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
fastcam.GradCAM(net)(torch.rand(1, 1, 8, 8))
fastcam.EigenCAM(net)(torch.rand(1, 1, 8, 8))
"""
    assert not loaded_by(explained) & {"matplotlib", "PIL", "torchvision", "sklearn"}


def test_each_heavy_package_has_one_place():
    places = {"PIL": ["images.py"], "matplotlib": [f.name for f in (ROOT / "fastcam/figures").iterdir()]}
    for file in (ROOT / "fastcam").rglob("*.py"):
        found = set(re.findall(r"^\s*(?:import|from) (\w+)", file.read_text(), re.MULTILINE))
        for package, place in places.items():
            assert package not in found or file.name in place, file
        assert "triton" not in found, f"{file}: triton belongs to kernels/"


def test_packages_are_the_folders():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"fastcam.kernels"} | {
        ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fastcam").rglob("__init__.py")
    }
    assert set(project["packages"]) == folders


def test_kernels_are_imported_by_one_name_only():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "import fastcam instead" in run.stderr
    assert importlib.import_module("fastcam.kernels").__name__ == "fastcam.kernels"


def test_the_wheel_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "fastcam", "kernels"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."]
    subprocess.run(build, check=True, cwd=_copied(source, tmp_path / "tree"), capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = (
        "demo_data/weights.pt",
        "demo_data/digits.npz",
        "compat/flashtorch/imagenet.txt",
        "report/page.html",
        "report/page.css",
        "report/grid.js",
    )
    templates = ("report/page.html", "report/page.css", "report/grid.js", "report/notebook.css")
    for needed in ("py.typed", *data, *templates):
        assert f"fastcam/{needed}" in inside
    assert {f"fastcam/kernels/{f.name}" for f in (ROOT / "kernels").glob("*.py")} <= inside
    assert not any(name.startswith(("kernels/", "tests/", "benchmarks/")) for name in inside)
    install = [*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    code = """
import fastcam, fastcam.kernels
from fastcam.scenes import load_network, make_scenes
scenes = make_scenes(2)
print(fastcam.__file__)
print(fastcam.kernels.__file__)
print(fastcam.GradCAM(load_network(), "stage3")(scenes.images).shape)
"""
    packages = os.pathsep.join(p for p in sys.path if "site-packages" in p)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{packages}"}
    python = [sys.executable, "-S"]  # without site, an editable install is not seen
    run = subprocess.run(
        [*python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    installed = [str(tmp_path / "site/fastcam" / file) for file in ("__init__.py", "kernels/__init__.py")]
    assert run.stdout.splitlines() == [*installed, "(2, 64, 64)"]
    command = [
        *python,
        tmp_path / "site/bin/fastcam",
        "layers",
        "--model",
        "fastcam.scenes:load_network",
        "--size",
        "64",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert run.stdout.splitlines()[-1] == "suggested: stage4"


def _copied(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A plain copy, so that building writes nothing into the checkout."""
    import shutil

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return target


@pytest.mark.parametrize("file", sorted((ROOT / "fastcam").rglob("*.py")), ids=lambda f: f.stem)
def test_examples_in_docstrings_run(file):
    if file.parent.name == "demo_data":
        pytest.skip("a script, run by hand")
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_the_pages_run(page, tmp_path, monkeypatch):
    text = page.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks or page.name not in ("README.md", "migrating.md")
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), shared)  # the blocks build on each other
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", prose):
        assert (page.parent / "".join(link)).exists(), link


def test_each_quirk_has_a_test_that_exists():
    text = (ROOT / "docs/quirks.md").read_text()
    rows = re.findall(r"^\| ([QF]\d+) \|.*\| (kept|fixed|both) \| (.*) \|$", text, re.MULTILINE)
    assert [q for q, *_ in rows] == [f"Q{n}" for n in range(1, 49)] + [f"F{n}" for n in range(1, 27)]
    for q, _, proof in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", proof)
        assert named, q
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), (q, file, test)


def test_the_page_of_public_names_is_up_to_date():
    made = subprocess.run(
        [sys.executable, "-c", "import make_api; print(make_api.text(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "docs",
    )
    assert (ROOT / "docs/api.md").read_text() == made.stdout, "run python docs/make_api.py"


def test_no_path_of_a_machine_is_in_the_project():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    wrong = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    for name in filter(None, files):
        if pathlib.Path(name).suffix in {".py", ".md", ".toml", ".json", ""} and (ROOT / name).is_file():
            assert not wrong.search((ROOT / name).read_text(errors="replace")), name
