"""Whether the outputs that a case times are right: each side's beside fastcam's, scaled alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import definitions, plain, rewritten
from benchmarks.own_ways import OWN_WAYS, way
from benchmarks.peers import reshape_of
from benchmarks.problem import Problem
from benchmarks.report.figures import ON_DEVICE
from fastcam import ops
from fastcam.layers import find_layers
from fastcam.methods import ATTENTION, METHODS
from fastcam.visualize import SALIENCY

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # of finished maps in [0, 1], of gradients over their largest; TF32 is off
# Where rounding is amplified. FEM counts positions above a threshold: one within rounding of it moves its channel's
# weight by 1 / (h w). Two methods divide by a sum that may come near 0, XGrad-CAM by that of tokens behind a norm.
WIDER = {"fem": 1e-2, "smoothgradcam++": 1e-2, "xgradcam of tokens": 1e-2}
SIGNLESS = ("eigencam", "eigengradcam")  # a principal component has no sign of its own
FEW = 4  # images that are compared with a formula, or by their ranks
LEAST = 0.3  # rank correlation: what correlates less is not the same map at all

Pair = tuple[np.ndarray, np.ndarray]  # what a side gave, and what it should have


def check(
    problem: Problem, method: str, outputs: Mapping[str, Any], tolerance: float, single: Any = None
) -> dict[str, Any]:
    """How far each side's output is from what it should be, as entries of a row; AssertionError if it is too far.

    problem   in fp32, whatever the outputs are in
    single    for outputs in bf16, what fastcam gives in fp32
    In fp32 the others' outputs are compared with fastcam's; where none of them does the same thing, fastcam's with what
    `independent` gives, and where fastcam's is missing, those of the others. In bf16 each one is compared with what it
    is in fp32, and fastcam's fails where not even its ranks are alike: rounding at ReLUs moves gradients far.
    `checked_against` has what fastcam's was compared with.
    """
    given = {side: as_numpy(value) for side, value in outputs.items() if side != "forward"}
    row: dict[str, Any] = {}
    if not given:
        return {"difference": None}
    if single is not None:
        ours, row["checked_against"] = as_numpy(single), "fastcam in fp32"
    elif "fastcam" in given:
        ours = given.pop("fastcam")
    else:
        ours, row["checked_against"] = independent(problem, method)
    if method not in SALIENCY and not (ours.max(axis=(1, 2)) > 0.5).mean() >= 0.5:
        raise AssertionError("most of the maps are empty: comparing them says nothing")
    pairs = {side: pair(problem, method, side, value, ours) for side, value in given.items()}
    alike = [side for side, (_, expected) in pairs.items() if expected is ours and side != ON_DEVICE]
    if not row and not alike:
        expected, row["checked_against"] = independent(problem, method, ours)
        pairs["fastcam"] = (ours[: len(expected)], expected)
    elif not row:
        row["checked_against"] = ", ".join(alike)
    row["differences"] = {side: difference(method, *p) for side, p in pairs.items()}
    row["difference"] = max(row["differences"].values())
    if notes := {side: OWN_WAYS[side, method][1] for side in given if (side, method) in OWN_WAYS}:
        row["notes"] = notes
    if single is not None:
        row["rank_correlation"] = {side: rank_correlation(*p) for side, p in pairs.items()}
        if "fastcam" in pairs and unlike(*pairs["fastcam"]) and unlike(*in_bf16(problem, method, pairs["fastcam"])):
            raise AssertionError(f"{method} ranks otherwise than in fp32: {row['rank_correlation']}")
        return row
    of_tokens = " of tokens" if method == "xgradcam" and reshape_of(problem) is not None else ""
    row["tolerance"] = WIDER.get(method + of_tokens, tolerance)
    if not row["difference"] <= row["tolerance"]:
        raise AssertionError(f"{method} differs by {row['differences']}, more than {row['tolerance']:.0e}")
    return row


def pair(problem: Problem, method: str, side: str, given: np.ndarray, ours: np.ndarray) -> Pair:
    """What a side gave and what it should have, in the same scale and size."""
    if own := way(side, method):
        return given, own(problem)
    if side == "grad-cam" and method in SIGNLESS:
        return given, nearest_sign(problem, method, given)
    if side in ("torch-cam", "captum") and method not in SALIENCY:  # low maps
        given = finished(given, problem.x.shape[2:])
    return given[: len(ours)], ours


def independent(problem: Problem, method: str, ours: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """What a method should give, and by what: a gradient of the network rewritten by hand; maps of the first images by
    their plain formula, or, where it is not written down, by fastcam itself in fp64. Rounding decides on the sign of a
    principal component of tokens behind a norm, whose mean over channels is 0: there it is that of `ours`."""
    if method not in SALIENCY:
        copied = problem.copied()
        if _written_down(problem, method):
            return plain_maps(copied, method, FEW), "its formula"
        first = replace(copied, net=copied.net.double(), x=copied.x[:FEW].double(), targets=copied.targets[:FEW])
        if method in ATTENTION and reshape_of(problem) is not None:
            return as_numpy(definitions.of_attention(first, method)), "its formula"
        if method in SIGNLESS and ours is not None:
            return nearest_sign(first, method, ours[:FEW]), "fastcam in fp64, up to its sign"
        return as_numpy(METHODS[method](first.net, first.layer).attribute(first.x, first.targets)), "fastcam in fp64"
    gradient = rewritten.gradient(problem, SALIENCY[method].rule)
    if method == "inputxgradient":
        gradient *= as_numpy(problem.x)
    if method == "guidedgradcam":
        gradient *= METHODS["gradcam"](problem.net, problem.layer)(problem.x, problem.targets)[:, None]
    return gradient, "a network rewritten by hand"


def _written_down(problem: Problem, method: str) -> bool:
    return method in plain.METHODS and isinstance(problem.layer, str) and reshape_of(problem) is None


def plain_maps(problem: Problem, method: str, count: int) -> np.ndarray:
    """The maps `(B, H, W)` of the first images by the plain formula."""
    layers, images = find_layers(problem.net, problem.layer), range(min(count, len(problem.x)))
    return as_numpy(plain.plain_maps(problem.net, layers, problem.x, problem.targets, method, images))


def finished(low: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Low maps `(B, h, w)` or `(B, 1, h, w)` as a call of fastcam finishes them."""
    return as_numpy(ops.finish([torch.from_numpy(low).view(len(low), 1, *low.shape[-2:])], size))


def signed(problem: Problem, method: str) -> Pair:
    """The finished maps of fastcam's principal component, and of its opposite."""
    cam = METHODS[method](problem.net, problem.layer)
    low = cam.attribute(problem.x, problem.targets, normalize=False, size=None).cpu().unsqueeze(1)  # (B, 1, h, w)
    same, opposite = (as_numpy(ops.finish([m], problem.x.shape[2:])) for m in (low, -low))
    return same, opposite


def nearest_sign(problem: Problem, method: str, reference: np.ndarray) -> np.ndarray:
    """For each image the one of `signed` that the reference is nearer to."""
    both = np.stack(signed(problem, method))  # (2, B, H, W)
    distance = np.abs(both - reference).max(axis=(2, 3))
    return both[distance.argmin(axis=0), np.arange(len(reference))]


def difference(method: str, got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; of gradients, which have a unit of their own, over the largest value."""
    apart = float(np.abs(got - expected).max())
    return apart / float(np.abs(expected).max()) if method in SALIENCY else apart


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, the lowest over the first images of `(B, ...)`."""
    return min(ranks(a, b))


def ranks(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Spearman's correlation of each of the first images of `(B, ...)`."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant map correlates with nothing
        found = [np.corrcoef(_ranks(p), _ranks(q))[0, 1] for p, q in zip(a[:FEW], b[:FEW], strict=False)]
    return np.nan_to_num(found).tolist()


def unlike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether maps are not the same at all, not even in one of the first images."""
    return max(ranks(a, b)) < LEAST


def in_bf16(problem: Problem, method: str, pair: Pair) -> Pair:
    """What a side gave in bf16, and what `independent` gives in bf16, where that is not fastcam itself."""
    if method not in SALIENCY and not _written_down(problem, method):
        return pair
    return pair[0], independent(problem.cast(torch.bfloat16), method)[0]


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, equal ones sharing theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - counts / 2)[places.ravel()]


def as_numpy(value: Any) -> np.ndarray:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
