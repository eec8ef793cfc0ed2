"""How figures and rows are written, and what the tables say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.report.runs import Device, Result, Row, Spread, capped, dtype

ABSENT = "–"
PEERS = ("grad-cam", "torch-cam", "captum", "FlashTorch")
SHORT_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}

RATIOS = (
    "Figures are medians of ratios within interleaved repetitions, quartiles in brackets. `fastcam / forward` is the "
    "time of a whole call over that of the model's own forward pass without gradients, so 1.00 is the forward pass. "
    "A peer's column is its time over fastcam's: above 1 fastcam is faster, below 1 the cell says `slower`. `> 30 s` "
    "is a side of which one call took longer than that: it was stopped. – is what the peer has not or was not measured."
)
LEGENDS = {
    "methods": "Methods of one forward and at most one backward pass, image tensor to finished numpy map. Memory is "
    "the peak of the tensors allocated during a call, fastcam's in MB, and over the forward pass's; numpy's arrays are "
    "not in it. On a GPU `fastcam, on the device` is the same without the copy of the maps to the host.",
    "perturbation": "Methods that score many changed images. `fastcam / masked forward passes`: Score-CAM's time over "
    "that of nothing but its forward passes at their fastest batch size. Memory at batch size 32 beside a forward pass "
    "of 32 images; AblationCAM and Recipro-CAM do not fill such a batch with one image.",
    "toolbox": "Methods of another kind, metrics, several classes at once. `fastcam / one class`: several classes of "
    "each image over one class of the same method.",
    "inside": "Gradients and made images. `one at a time`: fastcam's own loop over what it makes in one batch.",
    "optimize": "Grad-CAM in fast mode, image tensor to finished numpy map, over the forward pass of the user's own "
    "model in fp32. `exact` is the method without fast mode; differences and rank correlations are those of its maps.",
    "operator": "GPU time of a kernel by graph replays, beside the operator's PyTorch definition, `torch.compile` of "
    "the definition and a device copy; without a GPU there is no kernel, and GB/s, `of copy` and `call` are the "
    "definition's. GB/s counts the fewest bytes to move, `of copy` is that over the copy's, `call` is the wall clock "
    "of one call. A kernel that leaves partial maps is timed with their sum. The clock is graph replays, events for "
    "all sides where one cannot be captured, or on a CPU the wall clock. In the columns of two sides the first's time "
    "is over the second's: below 1 the second is `slower`.",
    "peak": "The rate of a large product of fp32 matrices without TF32: the roofline's flat roof.",
    "explanation": "Three figures of one explanation: the GPU time of its kernels, the wall clock of the calls that "
    "launch them, the wall clock of the whole explanation.",
    "compiled": "Compiled ahead of time, not run: what the machine code of each kernel needs and does. Loads and "
    "stores are instructions by the bytes that a thread moves with one; the floor is the fewest bytes that "
    "the whole operator moves for an element, with however many launches.",
    "launches": "Kernel launches of an explanation: fastcam's own after the backward pass, all, and those of a forward "
    "pass alone.",
    "throughput": "A data set through Grad-CAM, files read to maps on the disk, beside a plain loop of inference over "
    "the same files with the same worker processes. The two take turns, a slice of the images each; "
    "`share` is the loop's time over fastcam's, start and end of each run included. `difference` is the largest of a "
    "sample of the maps that were read back from those of calls: fp16.",
    "resident memory": "Memory that the system counts as resident, of the process and of all its workers, in one run, "
    "early and at the end: medians over five batches. Workers begin as copies of the process, which become theirs.",
    "scale": "One thing grows, the rest stays. `line` is fitted to the points, x being what grows; `worst` is how far "
    "it is from a point at most, over the value measured there.",
}


def digits(value: float, more: int = 0) -> str:
    """Three significant digits, no exponent: 0.123, 1.23, 12.3, 1234; or some more. Whole numbers as they are."""
    if isinstance(value, int):
        return str(value)
    decimals = 3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals + more if decimals < 3 else decimals}f}"


def spread(figure: Spread | None, percent: bool = False, more: int = 0) -> str:
    """A median with its quartiles, where it has some; – for None."""

    def shown(value: float) -> str:
        return f"{value:.{more}%}" if percent else digits(value, more)

    if figure is None:
        return ABSENT
    if figure["quartiles"] is None:
        return shown(figure["median"])
    low, high = figure["quartiles"]
    return f"{shown(figure['median'])} ({shown(low)}–{shown(high)})"


def gain(figure: Spread | None) -> str:
    """A ratio that had better be above 1."""
    return f"{spread(figure)}{' slower' if figure and figure['median'] < 1 else ''}"


def over_cap(row: Row, side: str) -> str | None:
    """`> 30 s` where a side was stopped."""
    return None if (seconds := capped(row, side)) is None else f"> {seconds:g} s"


def shape(row: Row) -> str:
    return " × ".join(map(str, row["shape"]))


def short_type(row: Row) -> str:
    return SHORT_TYPES.get(dtype(row), dtype(row))


def named(row: Row) -> str:
    """A row in a list of rows of all kinds; its type only where it is not fp32."""
    kind = [] if dtype(row) == "float32" else [short_type(row)]
    if row["case"] == "operators" and "operator" in row:
        return ", ".join([row["operator"], shape(row), *kind])
    if row["case"] == "scale":
        return f"{row['method']}, {row['sweep']} {row['x']}"
    model = row.get("model") or row.get("network")
    batch = [f"batch {row['batch']}"] if "batch" in row else []
    return ", ".join([row["method"], *([model] if model else []), *batch, *kind])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measured_on(device: Device) -> str:
    """Hardware and versions, a line for each that differs, with the commits measured there."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in device.results:
        commit = f"commit {result['commit'] or 'unknown'}" + (" with changes" if result["dirty"] else "")
        cases = sorted({row["case"] for row in result["rows"]})
        found.setdefault(_machine(result), {}).setdefault(f"{result['date'][:10]}, {commit}", []).extend(cases)
    return "".join(
        f"- {machine}: {'; '.join(f'{when} ({_listed(cases)})' for when, cases in runs.items())}.\n"
        for machine, runs in found.items()
    )


def _machine(result: Result) -> str:
    hardware = result["hardware"]
    where = f"{hardware['cpu']}, {hardware['cores']} cores, {result['threads']} threads"
    if "gpu" in hardware:
        where = f"{hardware['gpu']}, driver {hardware['driver']}, {where}"
    software = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{where}; {software}; {result['repetitions']} repetitions, TF32 {'on' if result['tf32'] else 'off'}"


def _listed(cases: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(cases)) or "nothing"
