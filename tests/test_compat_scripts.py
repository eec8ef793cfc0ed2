"""Scripts written for pytorch-grad-cam, run unchanged with it and with fastcam: the same arrays."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "tests" / "compat").glob("*.py"))
ILL_CONDITIONED = {"xgradcam", "ablation", "scorecam"}  # divisions by sums and scores near 0, a softmax of scores

# The package grad-cam and what it brings are not there; at the end, what was imported is written down.
HIDDEN = """
import atexit, os, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytorch_grad_cam", "ttach"):
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_a_script_gives_the_same_arrays(script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    theirs = arrays([script], tmp_path / "theirs.npz")
    ours = arrays(
        ["-m", "fastcam.compat", script],
        tmp_path / "ours.npz",
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
        IMPORTED=str(tmp_path / "imported"),
    )
    imported = (tmp_path / "imported").read_text()
    assert f"{os.sep}fastcam{os.sep}compat{os.sep}" in imported
    for package in ("pytorch_grad_cam", "ttach", "cv2", "sklearn"):
        assert f"{os.sep}{package}{os.sep}" not in imported
    assert ours.keys() == theirs.keys() and len(ours) > 2
    for name, expected in theirs.items():
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
