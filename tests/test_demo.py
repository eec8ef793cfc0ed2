"""The demo: its data, its network, its table and figure."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from fastcam import GradCAM
from fastcam.cli import main
from fastcam.methods import METHODS
from fastcam.metrics import box_share, pointing_game
from fastcam.scenes import load_digits, load_network, make_scenes
from fastcam.visualize import SALIENCY


def test_the_network_reads_and_grad_cam_points():
    """The goals of the demo, on scenes of digits that were not trained on: accuracy 0.92, pointing game 0.95."""
    scenes, network = make_scenes(512, "test", seed=7), load_network()
    with torch.no_grad():
        accuracy = (network(scenes.images).argmax(1) == scenes.labels).float().mean()
    assert accuracy >= 0.92
    maps = GradCAM(network, "stage3").attribute(scenes.images, scenes.labels)
    assert pointing_game(maps, scenes.boxes) >= 0.95
    assert 0.1 < box_share(scenes.boxes, 64, 64) < 0.18


def test_scenes_are_reproducible_and_their_splits_disjoint():
    first, again, other = make_scenes(4), make_scenes(4), make_scenes(4, seed=1)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.images.min() >= 0 and first.images.max() <= 1
    for top, left, bottom, right in first.boxes.tolist():
        assert 0 <= top < bottom <= 64 and 0 <= left < right <= 64
    with pytest.raises(ValueError, match="count must be 1 or more"):
        make_scenes(0)
    with pytest.raises(ValueError, match="split must be"):
        make_scenes(1, "validation")


def test_the_command(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "demo" / "table.txt").read_text()
    assert table.strip() in printed
    for method in [*METHODS, *SALIENCY]:
        (score,) = re.findall(rf"^{re.escape(method)} +(?:stage\d|-) +\d+ +\d+ +([\d.]+)$", table, re.MULTILINE)
        # A deconvnet of a network without max pooling is one picture for every image; what is random is not good.
        if method not in ("deconvnet", "randomcam"):
            assert float(score) > (0.6 if "fullgrad" in method else 0.8), method
    with Image.open(tmp_path / "demo" / "methods.png") as figure:
        assert figure.width > 1000 and len(figure.convert("RGB").getcolors(1 << 24)) > 1000


def test_pointing_game():
    maps = torch.zeros(3, 8, 10)
    maps[0, 2, 3] = maps[1, 2, 4] = maps[2, 7, 9] = 1
    boxes = torch.tensor([[2, 3, 3, 4], [2, 3, 3, 4], [0, 0, 8, 10]])
    assert pointing_game(maps, boxes) == pytest.approx(2 / 3)
    assert box_share(boxes, 8, 10) == pytest.approx((1 + 1 + 80) / 3 / 80)
    with pytest.raises(ValueError, match=r"boxes must be \(B, 4\) = \(3, 4\)"):
        pointing_game(maps, boxes[:2])


def test_digits_by_themselves():
    images, labels = load_digits("test")
    assert images.shape == (497, 1, 28, 28) and images.min() == 0 and 0.9 < images.max() <= 1
    assert labels.bincount().min() > 30
    train, _ = load_digits("train", size=8)
    assert train.shape == (1300, 1, 8, 8) and not (train[:, None] == load_digits("test", 8)[0]).flatten(2).all(2).any()
    labels.zero_()
    assert load_digits("test")[1].any(), "the shared copy is not handed out"
    with pytest.raises(ValueError, match='"train" or "test"'):
        load_digits("all")
