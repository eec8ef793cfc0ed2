"""The pictures of the report, each a function from its data to a figure. Colours are told apart by colour-blind readers.

Okabe and Ito's palette; marks that differ in colour differ in shape or place too.
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
_STYLE = {
    **{"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.linewidth": 0.6},
    **{"xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": "black", "ytick.labelcolor": "black"},
    **{"savefig.dpi": 160, "figure.dpi": 160},
}
_PEER_MARKS = {"grad-cam": "o", "torch-cam": "s", "captum": "^", "FlashTorch": "D"}
_MODEL_MARKS = (("o", BLUE), ("s", RED), ("^", GREEN), ("D", ORANGE), ("v", PINK), ("P", SKY))
_SIDE_MARKS = {"kernel": ("o", BLUE), "compiled": ("^", ORANGE), "definition": ("s", GREY)}


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
    models, methods = _seen(points, "model"), _seen(points, "method")
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
    """A column a batch, a line a method: fastcam's time over the forward pass, a mark a model."""
    points = data["points"]
    models, batches = _seen(points, "model"), sorted(_seen(points, "batch"))
    worst = {m: max(p["ratio"] for p in points if p["method"] == m) for m in _seen(points, "method")}
    methods = sorted(worst, key=worst.__getitem__)
    marks = {model: _MODEL_MARKS[i % len(_MODEL_MARKS)] for i, model in enumerate(models)}
    figure, axes = _columns(len(batches), len(methods))
    for ax, batch in zip(axes, batches, strict=True):
        _log(ax, [p["ratio"] for p in points])
        _rows(ax, methods)
        ax.set_title(f"batch {batch}")
        ax.axvline(1, color="black", linewidth=0.8, zorder=1)
        for p in (p for p in points if p["batch"] == batch):
            shape, colour = marks[p["model"]]
            ax.plot(p["ratio"], methods.index(p["method"]), shape, color=colour, markersize=4, alpha=0.85)
    figure.supxlabel("time of fastcam / time of the forward pass (log scale); the line is the forward pass", fontsize=8)
    _key(figure, [_mark(*marks[model], NAMES.get(model, model)) for model in models])
    return figure


@_styled
def roofline(data: Data) -> Figure:
    """A panel an operator: bytes a second over operations a byte."""
    points = data["points"]
    operators = _seen(points, "operator")
    figure, axes = _grid(len(operators), 4, 1.5)
    sizes = sorted({p["bytes"] for p in points})
    for ax, operator in zip(axes, operators, strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(operator)
        ax.axhline(data["copy"], color="black", linewidth=0.8)
        for p in (p for p in points if p["operator"] == operator):
            shape, colour = _SIDE_MARKS[p["side"]]
            size = 2.5 + 4 * sizes.index(p["bytes"]) / max(1, len(sizes) - 1)
            ax.plot(p["intensity"], p["rate"], shape, color=colour, markersize=size, alpha=0.75, markeredgewidth=0)
    for ax in axes:
        ax.set_xlim(0.7 * min(p["intensity"] for p in points), 1.4 * max(p["intensity"] for p in points))
        ax.set_ylim(0.5 * min(p["rate"] for p in points), 2 * max(data["copy"], *(p["rate"] for p in points)))
    axes[0].annotate(
        f"copy: {data['copy']:.3g} GB/s", (0.03, data["copy"]), ("axes fraction", "data"), va="bottom", fontsize=7
    )
    figure.supxlabel("operations a byte", fontsize=8)
    figure.supylabel("GB/s", fontsize=8)
    _key(figure, [_mark(*_SIDE_MARKS[side], side) for side in _SIDE_MARKS if side in _seen(points, "side")])
    return figure


@_styled
def scale(data: Data) -> Figure:
    """Two panels a sweep, time above memory: a curve a method, with its line."""
    panels = data["panels"]
    names = list(dict.fromkeys((p["model"], p["sweep"]) for p in panels))
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(WIDTH, 2.9 * down), layout="constrained")
    axes = figure.subplots(2 * down, across, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for i, (model, sweep) in enumerate(names):
        chosen = [p for p in panels if (p["model"], p["sweep"]) == (model, sweep)]
        for j, label in enumerate(("time", "memory")):
            ax = axes[2 * (i // across) + j][i % across]
            ax.set_visible(True)
            _curves(ax, label, chosen)
        axes[2 * (i // across)][i % across].set_title(f"{sweep}, {NAMES.get(model, model)}")
    return figure


def _curves(ax: Axes, label: str, panels: Sequence[Data]) -> None:
    for panel, (shape, colour) in zip(panels, _MODEL_MARKS, strict=False):
        for curve in (c for c in panel["curves"] if c["label"] == label):
            xs, ys, line = curve["xs"], curve["ys"], curve["line"]
            ax.plot(xs, ys, shape, color=colour, markersize=4)
            if line is not None:
                ends = [xs[0], xs[-1]]
                fitted = [line["intercept"] + line["slope"] * x for x in ends]
                ax.plot(ends, fitted, "-" if line["straight"] else ":", color=colour, linewidth=1)
            ax.set_ylabel(f"{label}, {curve['unit']}")
            ax.annotate(panel["method"], (xs[-1], ys[-1]), (-3, 4), textcoords="offset points", ha="right", color=colour)
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)


def _seen(points: Iterable[Data], key: str) -> list[Any]:
    """The values of a key, in the order they come in."""
    return list(dict.fromkeys(point[key] for point in points))


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
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _mark(shape: str, colour: str, label: str, size: float = 5) -> Line2D:
    return Line2D([], [], marker=shape, color=colour, linestyle="", markersize=size, label=label)


def _key(figure: Figure, marks: Sequence[Line2D]) -> None:
    """One line above the axes that says what the marks are."""
    figure.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, handletextpad=0.1, columnspacing=1.2
    )
