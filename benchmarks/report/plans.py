"""What is to be tried next where fastcam takes longer than torch-cam or captum."""

from __future__ import annotations

from benchmarks.report.runs import plain

NONE = "no plan on record"
_FIXED = "the fixed cost of a call, which shows at batch 1: hooks put in and taken out once for several calls"
_SCORED = "the batch size that suits the masked forward passes, found once a network and kept between calls"
_LEAN = (
    "FullGrad's own graph, without sums for parameters (0.82 to 0.88 of captum's time in benchmarks/NOTES.md), where "
    "the caller does not ask for autograd's very bits"
)
_OUTPUT = (
    "keep a rectifier's output, as autograd does, in place of a mask of its own, where the network does not write into "
    "it behind the rectifier: a pass less over each activation"
)

# By peer and method, and by model where one has a plan of its own; "" is any model.
PLANS: dict[tuple[str, str, str], str] = {
    **{("torch-cam", method, ""): _FIXED for method in ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")},
    **{("torch-cam", method, ""): _FIXED for method in ("finercam", "refinecam")},
    **{("torch-cam", method, ""): _SCORED for method in ("scorecam", "sscam", "iscam")},
    ("captum", "gradcam", ""): _FIXED,
    **{("captum", method, ""): _LEAN for method in ("saliency", "inputxgradient")},
    **{("captum", method, ""): _OUTPUT for method in ("guidedbackprop", "guidedgradcam")},
    ("captum", "deconvnet", ""): _FIXED,
}


def plan(peer: str, method: str, model: str) -> str:
    """For a row that misses the goal against a peer; a method's options after a comma do not count."""
    name = plain(method.partition(",")[0])
    known = (PLANS.get((peer, name, of)) for of in (model, ""))
    return next((text for text in known if text), NONE)
