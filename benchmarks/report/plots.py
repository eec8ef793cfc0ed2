"""The pictures of the report, each a function from its data to a figure.

The colours are Okabe and Ito's, whom colour-blind readers can follow; marks that differ in colour differ in shape too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report.wording import digits

Data = dict[str, Any]
BLUE, RED, GREEN, ORANGE, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, PALE = "#666666", "#DDDDDD"
WIDTH = 8.0  # inches
NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "efficientnet_b0": "EfficientNet-B0",
    "convnext_tiny": "ConvNeXt-T",
    "vit_b_16": "ViT-B/16",
}
_STYLE: Any = {
    **{"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.linewidth": 0.6},
    **{"xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": "black", "ytick.labelcolor": "black"},
    **{"savefig.dpi": 200, "figure.dpi": 200},
}
_PEER_MARKS = {"grad-cam": "o", "torch-cam": "s", "captum": "^", "FlashTorch": "D"}
_MODEL_MARKS = (("o", BLUE), ("s", RED), ("^", GREEN), ("D", ORANGE), ("v", PINK), ("P", SKY))
MOST_MARKS = 8  # on a line of a key
CHEAP = 1.5  # times the forward pass
_SIDE_MARKS = {"kernel": ("o", BLUE), "compiled": ("^", ORANGE), "definition": ("s", GREY)}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def _styled(draw: Callable[[Data], Figure]) -> Callable[[Data], Figure]:
    @wraps(draw)
    def styled(data: Data) -> Figure:
        with rc_context(_STYLE):
            figure = draw(data)
            figure.canvas.draw()  # a layout of this style
        return figure

    return styled


@_styled
def speed_ups(data: Data) -> Figure:
    """A column a model, a line a method: each peer's time over fastcam's."""
    points = data["points"]
    models, methods = _models(points), _seen(points, "method")
    sizes = _sizes(points)
    figure, axes = _columns(len(models), len(methods))
    for ax, model in zip(axes, models, strict=True):
        _log(ax, [p["ratio"] for p in points])
        _rows(ax, methods)
        ax.set_title(NAMES.get(model, model))
        ax.axvline(1, color="black", linewidth=0.8, zorder=1)
        for p in (p for p in points if p["model"] == model):
            ax.plot(
                p["ratio"],
                methods.index(p["method"]),
                _PEER_MARKS[p["peer"]],
                color=RED if p["ratio"] < 1 else BLUE,
                markersize=sizes[p["batch"]],
                markeredgecolor="white",
                markeredgewidth=0.4,
                alpha=0.9,
                zorder=3 if p["ratio"] < 1 else 2,
            )
    figure.supxlabel("time of the peer / time of fastcam (log scale)", fontsize=8)
    _key(
        figure,
        [
            *(_mark(_PEER_MARKS[peer], GREY, peer) for peer in data["peers"]),
            _mark("o", BLUE, "fastcam faster"),
            _mark("o", RED, "fastcam slower"),
            *(_mark("o", GREY, f"batch {batch}", size) for batch, size in sizes.items()),
        ],
    )
    return figure


@_styled
def costs(data: Data) -> Figure:
    """A column a batch, a line a method: fastcam's time over the forward pass, a mark a model.

    Methods that hardly cost more than the forward pass have an axis of their own, which is not logarithmic.
    """
    points = data["points"]
    models, batches = _models(points), sorted(_seen(points, "batch"))
    worst = {m: max(p["ratio"] for p in points if p["method"] == m) for m in _seen(points, "method")}
    methods = sorted(worst, key=worst.__getitem__)
    cheap = [m for m in methods if worst[m] <= CHEAP]
    parts = [part for part in (cheap, methods[len(cheap) :]) if part]
    marks = {model: _MODEL_MARKS[i % len(_MODEL_MARKS)] for i, model in enumerate(models)}
    figure = Figure(figsize=(WIDTH, 1.1 + 0.15 * len(methods) + 0.25 * len(parts)), layout="constrained")
    heights = [len(part) + 1 for part in parts]
    axes = figure.subplots(len(parts), len(batches), sharex="row", sharey="row", squeeze=False, height_ratios=heights)
    for line, part in zip(axes, parts, strict=True):
        shown = [p for p in points if p["method"] in part]
        for ax, batch in zip(line, batches, strict=True):
            if part is not cheap:
                _log(ax, [p["ratio"] for p in shown])
            _rows(ax, part)
            ax.axvline(1, color="black", linewidth=0.8, zorder=1)
            for p in (p for p in shown if p["batch"] == batch):
                shape, colour = marks[p["model"]]
                ax.plot(p["ratio"], part.index(p["method"]), shape, color=colour, markersize=4, alpha=0.8, mew=0)
    for ax, batch in zip(axes[0], batches, strict=True):
        ax.set_title(f"batch {batch}")
    figure.supxlabel("time of fastcam / time of the forward pass; logarithmic in the lower part", fontsize=8)
    _key(figure, [_mark(*marks[model], NAMES.get(model, model)) for model in models])
    return figure


@_styled
def roofline(data: Data) -> Figure:
    """A panel an operator: operations a second over operations a byte, below the roofs."""
    points, copy, peak = data["points"], data["copy"], data["peak"]
    operators, sizes = _seen(points, "operator"), sorted(_seen(points, "bytes"))
    figure, axes = _grid(len(operators), 4, 1.55)
    lowest, highest = 0.6 * min(p["intensity"] for p in points), 1.7 * max(p["intensity"] for p in points)
    ends = [lowest, *([peak / copy] if peak and lowest < peak / copy < highest else []), highest]
    roof = [min(copy * at, peak or copy * at) for at in ends]
    for ax, operator in zip(axes, operators, strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(operator, fontsize=7)
        ax.plot(ends, roof, color="black", linewidth=0.8)
        shown = [p for p in points if p["operator"] == operator]
        for p in shown:
            shape, colour = _SIDE_MARKS[p["side"]]
            size = 2 + 4 * sizes.index(p["bytes"]) / max(1, len(sizes) - 1)
            ax.plot(p["intensity"], p["rate"], shape, color=colour, markersize=size, alpha=0.75, mew=0)
        for at, kind in _apart(shown) if len(_seen(points, "type")) > 1 else []:
            ax.text(at, 0.03, kind, transform=ax.get_xaxis_transform(), ha="center", fontsize=7, color=GREY)
        ax.xaxis.set_major_formatter(_PLAIN)
        ax.yaxis.set_major_locator(LogLocator(numticks=12))
        ax.yaxis.set_major_formatter(_PLAIN)
        ax.set_xlim(lowest, highest)
        ax.set_ylim(0.3 * min(p["rate"] for p in points), 6 * max(*roof, *(p["rate"] for p in points)))
    named = f"copy, {digits(copy)} GB/s" + (f"\nproduct, {digits(peak)} GFLOP/s" if peak else "")
    axes[0].annotate(named, (1, 0), (-3, 3), "axes fraction", "offset points", ha="right", va="bottom", fontsize=6.5)
    figure.supxlabel("operations a byte (log scale)", fontsize=8)
    figure.supylabel("GFLOP/s (log scale)", fontsize=8)
    _key(figure, [_mark(*mark, side) for side, mark in _SIDE_MARKS.items() if side in _seen(points, "side")])
    return figure


def _apart(points: Sequence[Data]) -> list[tuple[float, str]]:
    """Where each type is to be named: at intensities that are not next to each other."""
    places: list[tuple[float, str]] = []
    for at, kind in sorted({(p["intensity"], p["type"]) for p in points}):
        if not any(kind == known and at < 1.5 * place for place, known in places):
            places.append((at, kind))
    return places


@_styled
def scale(data: Data) -> Figure:
    """Two panels a sweep, time above memory: a curve a method, with its line."""
    panels = data["panels"]
    names = list(dict.fromkeys((p["model"], p["sweep"]) for p in panels))
    across = min(4 if len(names) > 6 else 3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(WIDTH, 3.2 * down), layout="constrained")
    axes = figure.subplots(2 * down, across, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for panel in panels:
        at, below = names.index((panel["model"], panel["sweep"])), panel["quantity"] == "memory"
        ax = axes[2 * (at // across) + below][at % across]
        ax.set_visible(True)
        _curves(ax, panel)
        if below:
            ax.set_xlabel(panel["of"])
        else:
            ax.set_title(f"{panel['sweep']}, {NAMES.get(panel['model'], panel['model'])}")
    return figure


def _curves(ax: Axes, panel: Data) -> None:
    """The curves of a panel, named in the corner that rising lines leave free; of the forward passes the first."""
    forward = [c for c in panel["curves"] if c["side"] == "forward"][:1]
    ours = [c for c in panel["curves"] if c["side"] != "forward"]
    marks = [(".", GREY)] * len(forward) + list(_MODEL_MARKS)
    for i, (curve, (shape, colour)) in enumerate(zip(forward + ours, marks, strict=False)):
        xs, ys = zip(*curve["points"], strict=True)
        ax.plot(xs, ys, shape, color=colour, markersize=4, alpha=0.8, markeredgewidth=0)
        if curve["line"] is not None:
            intercept, slope = curve["line"]
            ends = [xs[0], xs[-1]]
            style = "-" if curve["straight"] else ":"
            ax.plot(ends, [intercept + slope * x for x in ends], style, color=colour, linewidth=0.9)
        name = "forward pass" if curve["side"] == "forward" else curve["method"]
        clear = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
        at: Any = {"textcoords": "offset points", "va": "top", "bbox": clear}
        ax.annotate(name, (0, 1), (4, -4 - 9 * i), "axes fraction", color=colour, fontsize=7, **at)
    ax.set_ylabel(f"{panel['quantity']}, {panel['unit']}")
    ax.set_xlim(left=0)
    highest, right = ax.get_ylim()[1], ax.get_xlim()[1]
    below = 1 - 0.11 * len(forward + ours)  # of the panel, where the names end
    points = [point for curve in panel["curves"] for point in curve["points"]]
    crowded = any(x < 0.7 * right and y > below * highest for x, y in points)
    ax.set_ylim(0, highest / below if crowded else 1.1 * highest)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 10000 else f"{x:g}"))


def _seen(points: Iterable[Data], key: str) -> list[Any]:
    """The values of a key, in the order they come in."""
    return list(dict.fromkeys(point[key] for point in points))


def _models(points: Iterable[Data]) -> list[str]:
    """Those of `NAMES` in their order, then any other."""
    known = list(NAMES)
    return sorted(_seen(points, "model"), key=lambda model: known.index(model) if model in NAMES else len(known))


def _sizes(points: Sequence[Data]) -> dict[int, float]:
    """A mark's size for each batch."""
    batches = sorted(_seen(points, "batch"))
    return {batch: 3 + 2.5 * i / max(1, len(batches) - 1) for i, batch in enumerate(batches)}


def _columns(columns: int, rows: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 0.9 + 0.15 * rows), layout="constrained")
    return figure, list(figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False).flat)


def _grid(panels: int, across: int, height: float) -> tuple[Figure, list[Axes]]:
    across = min(across, panels)
    down = -(-panels // across)
    figure = Figure(figsize=(WIDTH, 0.5 + height * down), layout="constrained")
    axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.set_visible(False)
    for ax in axes[max(0, panels - across) : panels]:
        ax.tick_params(labelbottom=True)
    return figure, axes[:panels]


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """A line for each name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.hlines(range(len(names)), 0, 1, transform=ax.get_yaxis_transform(), color=PALE, linewidth=0.5, zorder=0)
    ax.spines["left"].set_visible(False)


def _log(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers around 1 and all the values."""
    ax.set_xscale("log")
    low, high = min(1.0, *values) / 1.3, max(1.0, *values) * 1.3
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0), numticks=12))
    ax.xaxis.set_major_formatter(_PLAIN)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _mark(shape: str, colour: str, label: str, size: float = 5) -> Line2D:
    return Line2D([], [], marker=shape, color=colour, linestyle="", markersize=size, label=label)


def _key(figure: Figure, marks: Sequence[Line2D]) -> None:
    """What the marks are, above the axes, on a line or two."""
    lines = 1 if len(marks) <= MOST_MARKS else 2
    figure.legend(
        handles=marks,
        loc="outside upper center",
        ncols=-(-len(marks) // lines),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )
