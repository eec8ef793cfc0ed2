"""docs/tutorial.md: its code as it stands, from training to pictures, offline."""

from __future__ import annotations

import pathlib
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

DOCS = pathlib.Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "tutorial.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PICTURES = re.findall(r"!\[[^]]+\]\(tutorial/(.*?)\)", TEXT)


def test_the_four_things_take_twenty_lines():
    assert len([line for block in BLOCKS for line in block.splitlines() if line.strip()]) <= 20


def test_the_pictures_are_there():
    assert sorted(PICTURES) == sorted(p.name for p in (DOCS / "tutorial").iterdir())
    for name in PICTURES:
        assert (DOCS / "tutorial" / name).stat().st_size < 300_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the blocks leave behind: their names, the folder of their pictures, and the seconds they took."""
    folder, names = tmp_path_factory.mktemp("tutorial"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        begin = time.process_time()
        for block in BLOCKS:
            exec(block, names)
    seconds = time.process_time() - begin
    plt.close("all")
    return names, folder, seconds


def test_its_code_makes_its_pictures(made):
    names, folder, seconds = made
    print(f"{seconds:.0f} s of CPU time")
    assert sorted(p.name for p in folder.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        pixels = np.asarray(Image.open(folder / name).convert("L"), np.float32)
        assert pixels.std() > 20, name
        assert Image.open(DOCS / "tutorial" / name).size == Image.open(folder / name).size, name


def test_its_network_learned(made):
    from fastcam.scenes import load_digits

    model = made[0]["model"]
    assert model.training and model.conv1.weight.shape == (64, 1, 7, 7)
    digits, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (model.eval()(digits).argmax(1) == labels).float().mean()
    assert accuracy > 0.85
