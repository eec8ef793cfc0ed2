"""The embedded default: every method on digit scenes with known boxes, offline, in a figure and a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastcam.figures.grids import method_grid
from fastcam.methods import METHODS
from fastcam.methods.fullgrad import SmoothFullGrad
from fastcam.methods.masking import ISCAM, SSCAM
from fastcam.methods.perturbation import PerturbationCAM
from fastcam.methods.sess import SESS
from fastcam.metrics import box_share, pointing_game
from fastcam.scenes import DigitNet, Scenes, load_network, make_scenes
from fastcam.visualize import SALIENCY, GuidedGradCAM
from fastcam.visualize.sampled import SampledGradient

SHOWN = 4


def run(out: Path, device: str = "cpu", scenes: int = 256) -> str:
    """Explain scenes by every method; write `methods.png` and `table.txt` to `out`, return the table.

    Methods with one pass an image see all scenes, those that perturb each image again and again fewer.
    """
    data = make_scenes(scenes, "test")
    network = load_network().to(device)
    images, labels = data.images.to(device), data.labels.to(device)
    results: dict[str, Tensor] = {}
    lines = [f"{'method':<20}{'layer':<8}{'scenes':>8}{'images/s':>10}{'pointing game':>15}"]
    for name in [*METHODS, *SALIENCY]:
        layer, count = demo_layer(name), min(scenes, _scenes_for(name))
        results[name], rate = _timed(_explainer(name, network, layer), images[:count], labels[:count])
        maps = results[name] if results[name].ndim == 3 else results[name].abs().amax(1)
        score = pointing_game(maps, data.boxes[:count])
        lines.append(f"{name:<20}{layer:<8}{count:>8}{rate:>10.0f}{score:>15.3f}")
    lines.append(f"{'chance':<46}{box_share(data.boxes, *images.shape[2:]):>15.3f}")
    lines.append(_accuracy(network, images, labels))
    lines.append("pointing game: share of scenes in which the map's largest value lies in the digit's box;")
    lines.append("chance: the box's share of the picture; cam is only defined right before global pooling;")
    lines.append("randomcam has random weights;")
    lines.append("a deconvnet sees the image through max pooling alone, which this network does without")
    table = "\n".join(lines)
    (out / "table.txt").write_text(table + "\n")
    _save_figure(data, results, out / "methods.png")
    return f"{table}\nwrote {out / 'methods.png'} and {out / 'table.txt'}"


def _scenes_for(method: str) -> int:
    cls = METHODS.get(method)
    if cls in (SSCAM, ISCAM, SESS, SmoothFullGrad):
        return 8
    if cls is not None and issubclass(cls, PerturbationCAM):
        return 32
    return 32 if method in SALIENCY and issubclass(SALIENCY[method], SampledGradient) else 256


def _explainer(method: str, network: DigitNet, layer: str) -> Callable[[Tensor, Tensor], Tensor]:
    if method in METHODS:
        return METHODS[method](network, None if layer == "-" else layer).attribute
    return (GuidedGradCAM(network, layer) if method == "guidedgradcam" else SALIENCY[method](network)).attribute


def demo_layer(method: str) -> str:
    """`stage3`, behind which methods differ; CAM and Recipro-CAM are meant for the last one before global pooling."""
    if "fullgrad" in method or method in SALIENCY and method != "guidedgradcam":
        return "-"
    return "stage4" if method in ("cam", "reciprocam") else "stage3"


def _timed(explain: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The maps on the CPU, and images per second: the median of three calls after a first, or a first of over 0.2 s."""
    rates: list[float] = []
    while len(rates) < 4 and not (rates and len(images) / rates[0] > 0.2):
        start = time.perf_counter()
        maps = explain(images, labels).cpu()  # waits for the device
        rates.append(len(images) / (time.perf_counter() - start))
    return maps, statistics.median(rates[1:] or rates)


def _title(method: str) -> str:
    return f"{method} ({demo_layer(method)})" if demo_layer(method) == "stage4" else method


def _accuracy(network: DigitNet, images: Tensor, labels: Tensor) -> str:
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean().item()
    return f"the network reads {right:.1%} of these {len(images)} scenes"


def _save_figure(data: Scenes, maps: dict[str, Tensor], path: Path) -> None:
    titles = [f"digit {label}" for label in data.labels[:SHOWN].tolist()]
    method_grid(list(data.images[:SHOWN]), {_title(m): list(v[:SHOWN]) for m, v in maps.items()}, titles).savefig(path)
