"""The README's block: goals, a scoreboard, the losses, and where the rest is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.report.figures import Figure
from benchmarks.report.goals import Outcome, outcomes
from benchmarks.report.losses import Loss, losses
from benchmarks.report.plans import plan
from benchmarks.report.remarks import unexplained
from benchmarks.report.runs import Device, Result, Row, devices, ratio
from benchmarks.report.tables import of_runs
from benchmarks.report.wanting import described
from benchmarks.report.wording import ABSENT, RATIOS, digits, measured_on, named, over_cap, short_type, spread, table

MOST_USED = ("gradcam", "gradcam++", "layercam", "eigencam", "scorecam", "ablationcam")
_PEERS = ("grad-cam", "torch-cam", "captum")
_VERDICTS = (
    "The medians decide; `within noise`: the limit lies between the quartiles. No goal holds while one of its cases "
    "failed or is not measured."
)
Groups = dict[tuple[str, str, str], dict[str, Row]]  # (model, batch, type) -> method -> row


def block(found_on: list[Device], pictures: Callable[[Device], str], tables: str) -> str:
    """The text between the README's markers.

    pictures   what is shown of a device
    tables     the address of the file with every row
    """
    if not found_on:
        return "No run is on record yet.\n"
    found = outcomes(found_on)
    parts = [f"{RATIOS}\n", f"### Goals\n\n{_VERDICTS}\n", of_goals(found)]
    for device in found_on:
        parts += [f"### {device.name}\n", measured_on(device), *scoreboards(device), pictures(device)]
        parts += [_slower(device, found), _missed(device, found), unexplained(device)]
    parts.append(f"All rows, memory, failed cases, and what was left out and why: [{tables}]({tables}).\n")
    return "\n".join(part for part in parts if part)


def of_run(results: Iterable[Result]) -> str:
    """What a run prints last: all its tables, and the goals that it measured."""
    results = list(results)
    measured = [outcome for outcome in outcomes(devices(results)) if outcome.rows or outcome.wanting]
    return of_runs(results) + (f"\n## Goals\n\n{of_goals(measured)}" if measured else "")


def of_goals(found: Iterable[Outcome]) -> str:
    heads = ("goal", "on", "figure", "measured, the worst row", "rows that keep to it", "")
    return table(heads, (_goal(outcome) for outcome in found))


def _goal(outcome: Outcome) -> list[str]:
    goal, device = outcome.goal, outcome.device
    where = device.name if device else {"cpu": "CPU", "cuda": "GPU"}[outcome.kind]
    head = [goal.text, where, f"{goal.figure.name} {goal.limit}"]
    wanting = [
        f"in {len(outcome.stopped)} more {goal.figure.side} was stopped at its cap" if outcome.stopped else "",
        f"{len(outcome.failed)} more without figure, since `torch.compile` failed" if outcome.failed else "",
        f"failed {described(outcome.broken, named)}" if outcome.broken else "",
        f"not measured {described(outcome.absent, named)}" if outcome.absent else "",
    ]
    said = "; ".join(filter(None, wanting))
    if not outcome.rows:
        return [*head, ABSENT, said or ABSENT, outcome.verdict]
    worst = outcome.rows[0]
    beside = [f"{_measured(goal.figure, row)}: {named(row)}" for row in outcome.beside[:1]]
    aside = "; ".join(text for text in (named(worst), goal.aside(worst), *(f"aside {text}" for text in beside)) if text)
    kept = f"{len(outcome.rows) - len(outcome.missed)} of {len(outcome.rows)}{f'; {said}' if said else ''}"
    verdict = f"**{outcome.verdict}**{', within noise' if outcome.within_noise else ''}"
    return [*head, f"{_measured(goal.figure, worst, goal.least is not None)}: {aside}", kept, verdict]


def _measured(figure: Figure, row: Row, at_least: bool = False) -> str:
    """A figure with a digit more than usual, to be told from its limit.

    at_least   of a side that was stopped: the least that the figure is, in place of the cap
    """
    if value := figure.read(row):
        return spread(value, figure.percent, more=1)
    least = figure.least(row) if at_least else None
    return over_cap(row, figure.side) or ABSENT if least is None else f"> {digits(least)}"


def scoreboards(device: Device) -> list[str]:
    """Two tables of medians, a line for each model and batch: time over the forward pass, and over the peers'."""
    groups: Groups = {}
    for row in (*device.of("methods"), *device.of("perturbation")):
        if row["method"] in MOST_USED:
            groups.setdefault((row["model"], str(row["batch"]), short_type(row)), {})[row["method"]] = row
    peers = f"{' / '.join(f'`{peer}`' for peer in _PEERS)} over fastcam, medians; **bold** where fastcam is slower:"
    both = [
        _board("`fastcam / forward`, medians:", groups, dict.fromkeys(MOST_USED, _cost)),
        _board(peers, groups, dict.fromkeys(MOST_USED, _gains)),
    ]
    return [text for text in both if text]


def _board(title: str, groups: Groups, columns: dict[str, Callable[[Row], str]]) -> str:
    """The columns in which anything is measured; nothing where nothing is."""
    keys = list(zip(*groups, strict=True))
    cells = dict(zip(("model", "batch", "type"), keys, strict=True)) if groups else {}
    if set(cells.get("type", ())) <= {"fp32"}:
        cells.pop("type", None)
    about = len(cells)
    for method, cell in columns.items():
        column = tuple(cell(rows[method]) if method in rows else ABSENT for rows in groups.values())
        if set(column) - {ABSENT}:
            cells[method] = column
    return f"{title}\n\n{table(list(cells), zip(*cells.values(), strict=True))}" if len(cells) > about else ""


def _cost(row: Row) -> str:
    found = ratio(row, "fastcam", "forward")
    return over_cap(row, "fastcam") or (ABSENT if found is None else digits(found["median"]))


def _gains(row: Row) -> str:
    """The speed-up over each of the peers in turn."""
    found = [_gain(row, peer) for peer in _PEERS]
    return " / ".join(found) if set(found) - {ABSENT} else ABSENT


def _gain(row: Row, peer: str) -> str:
    if (found := ratio(row, peer, "fastcam")) is None:
        return over_cap(row, peer) or ABSENT
    text = digits(found["median"])
    return f"**{text}**" if found["median"] < 1 else text


def _slower(device: Device, found: list[Outcome]) -> str:
    """Every row in which something else is faster, with the goal that it misses, if it does."""
    lost = losses(device)
    if not lost:
        return "No row is slower than a peer's.\n"
    missed = {
        (id(row), outcome.goal.figure.name): f"misses {outcome.goal.limit}"
        for outcome in found
        for row in outcome.missed
    }
    heads = ["row", "figure", "measured", "goal"]
    rows = []
    for loss in lost:
        goal = missed.get((id(loss.row), loss.figure.name), ABSENT)
        rows.append([named(loss.row), loss.figure.name, _measured(loss.figure, loss.row), goal])
    plans = [_plan(loss, line[-1]) for loss, line in zip(lost, rows, strict=True)]
    if set(plans) - {ABSENT}:
        heads, rows = [*heads, "plan"], [[*line, text] for line, text in zip(rows, plans, strict=True)]
    return f"Losses: rows in which something else is faster.\n\n{table(heads, rows)}"


def _plan(loss: Loss, goal: str) -> str:
    """What is to be done about a row that misses its goal against a peer."""
    peer = loss.figure.base
    return plan(peer, loss.row["method"], loss.row.get("model", "")) if peer in _PEERS and goal != ABSENT else ABSENT


def _missed(device: Device, found: list[Outcome]) -> str:
    """Rows that miss a goal which is not about a peer's time, the worst of each goal first."""
    known = {(id(loss.row), loss.figure.name) for loss in losses(device)}
    rows = [
        [named(row), f"{outcome.goal.figure.name} {outcome.goal.limit}", _measured(outcome.goal.figure, row)]
        for outcome in found
        for row in outcome.missed
        if outcome.device is device and (id(row), outcome.goal.figure.name) not in known
    ]
    return f"Losses: rows that miss another goal.\n\n{table(('row', 'goal', 'measured'), rows)}" if rows else ""
