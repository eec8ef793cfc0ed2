"""The embedded default: every method on digit scenes with known boxes, offline, in a figure and a table."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from fastcam.figures import method_grid
from fastcam.methods import METHODS, BaseCAM
from fastcam.metrics import box_share, pointing_game
from fastcam.scenes import DigitNet, Scenes, load_network, make_scenes

SHOWN = 8


def run(out: Path, device: str = "cpu", scenes: int = 256) -> str:
    """Explain a batch of scenes by every method; write `methods.png` and `table.txt` to `out`, return the table."""
    data = make_scenes(scenes, "test")
    network = load_network().to(device)
    images, labels = data.images.to(device), data.labels.to(device)
    maps: dict[str, Tensor] = {}
    lines = [f"{'method':<20}{'layer':<8}{'images/s':>10}{'pointing game':>15}"]
    for name in METHODS:
        layer = demo_layer(name)
        maps[name], rate = _timed(METHODS[name](network, layer), images, labels)
        lines.append(f"{name:<20}{layer:<8}{rate:>10.0f}{pointing_game(maps[name], data.boxes):>15.3f}")
    lines.append(f"{'chance':<38}{box_share(data.boxes, *images.shape[2:]):>15.3f}")
    lines.append(_accuracy(network, images, labels))
    lines.append("pointing game: share of scenes in which the map's largest value lies in the digit's box;")
    lines.append("chance: the box's share of the picture; cam is only defined right before global pooling")
    table = "\n".join(lines)
    (out / "table.txt").write_text(table + "\n")
    _save_figure(data, maps, out / "methods.png")
    return f"{table}\nwrote {out / 'methods.png'} and {out / 'table.txt'}"


def demo_layer(method: str) -> str:
    """`stage3`, behind which methods differ; CAM is only defined right before global pooling."""
    return "stage4" if method == "cam" else "stage3"


def _timed(cam: BaseCAM, images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The maps on the CPU, and images per second: the median of five calls after one that warms up."""
    maps = cam.attribute(images, labels)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        maps = cam.attribute(images, labels).cpu()  # waits for the device
        rates.append(len(images) / (time.perf_counter() - start))
    return maps, statistics.median(rates)


def _title(method: str) -> str:
    return f"{method} ({demo_layer(method)})" if demo_layer(method) != "stage3" else method


def _accuracy(network: DigitNet, images: Tensor, labels: Tensor) -> str:
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean().item()
    return f"the network reads {right:.1%} of these {len(images)} scenes"


def _save_figure(data: Scenes, maps: dict[str, Tensor], path: Path) -> None:
    titles = [f"digit {label}" for label in data.labels[:SHOWN].tolist()]
    method_grid(list(data.images[:SHOWN]), {_title(m): list(v[:SHOWN]) for m, v in maps.items()}, titles).savefig(path)
