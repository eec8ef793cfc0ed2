"""The README's block: goals, a scoreboard, the losses, and where the rest is."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report.goals import Figure, Outcome, outcomes
from benchmarks.report.losses import losses
from benchmarks.report.runs import Device, Row, ratio
from benchmarks.report.wording import ABSENT, RATIOS, digits, measured_on, named, over_cap, short_type, spread, table

MOST_USED = ("gradcam", "gradcam++", "layercam", "eigencam", "scorecam", "ablationcam")
_PEERS = ("grad-cam", "torch-cam", "captum")
Groups = dict[tuple[str, str, str], dict[str, Row]]  # (model, batch, type) -> method -> row
_NAMED = 3  # rows that miss a goal, in the table of goals; the list of losses has them all


def block(devices: list[Device], pictures: Callable[[Device], str], tables: str) -> str:
    """The text between the README's markers.

    pictures   what is shown of a device
    tables     the address of the file with every row
    """
    if not devices:
        return "No run is on record yet.\n"
    found = outcomes(devices)
    parts = [f"{RATIOS}\n", "### Goals\n", of_goals(found)]
    for device in devices:
        parts += [f"### {device.name}\n", measured_on(device), *scoreboards(device), pictures(device)]
        parts.append(_losses(device, found))
    parts.append(f"All rows, memory and what was left out, with the reasons: [{tables}]({tables}).\n")
    return "\n".join(part for part in parts if part)


def of_goals(found: list[Outcome]) -> str:
    heads = ("goal", "on", "figure", "measured, the worst row", "rows that keep to it", "")
    return table(heads, (_goal(outcome) for outcome in found))


def _goal(outcome: Outcome) -> list[str]:
    goal, device = outcome.goal, outcome.device
    where = device.name if device else {"cpu": "CPU", "cuda": "GPU"}.get(goal.on, ABSENT)
    head = [goal.text, where, f"{goal.figure.name} {goal.limit}"]
    if not outcome.rows:
        return [*head, ABSENT, ABSENT, outcome.verdict]
    worst = outcome.rows[0]
    aside = "; ".join(text for text in (named(worst), goal.aside(worst)) if text)
    return [*head, f"{_measured(goal.figure, worst)}: {aside}", _kept(outcome), f"**{outcome.verdict}**"]


def _measured(figure: Figure, row: Row) -> str:
    value = figure.read(row)
    side = figure.name.partition(" / ")[0]
    return over_cap(row, side) or ABSENT if value is None else spread(value, figure.percent)


def _kept(outcome: Outcome) -> str:
    text = f"{len(outcome.rows) - len(outcome.missed)} of {len(outcome.rows)}"
    if outcome.missed:
        others = len(outcome.missed) - _NAMED
        text += "; not " + "; ".join(named(row) for row in outcome.missed[:_NAMED])
        text += f" and {others} more, below" if others > 0 else ""
    if outcome.stopped:
        side = outcome.goal.figure.name.partition(" / ")[0]
        text += f"; in {len(outcome.stopped)} more {side} was stopped at its cap"
    return text


def scoreboards(device: Device) -> list[str]:
    """Two tables of medians, a line for each model and batch: time over the forward pass, and over the peers'."""
    groups: Groups = {}
    for row in (*device.of("methods"), *device.of("perturbation")):
        if row["method"] in MOST_USED:
            groups.setdefault((row["model"], str(row["batch"]), short_type(row)), {})[row["method"]] = row
    both = [
        _board("`fastcam / forward`, medians:", groups, dict.fromkeys(MOST_USED, _cost)),
        _board("The peers' time over fastcam's, medians; **bold** where fastcam is slower:", groups, dict.fromkeys(MOST_USED, _gains)),
    ]
    return [text for text in both if text]


def _board(title: str, groups: Groups, columns: dict[str, Callable[[Row], str]]) -> str:
    """The columns in which anything is measured; nothing where nothing is."""
    cells = {
        method: [cell(rows[method]) if method in rows else ABSENT for rows in groups.values()]
        for method, cell in columns.items()
    }
    used = {method: column for method, column in cells.items() if set(column) - {ABSENT}}
    lines = ([*key, *row] for key, row in zip(groups, zip(*used.values(), strict=True), strict=True))
    return f"{title}\n\n{table(('model', 'batch', 'type', *used), lines)}" if used else ""


def _cost(row: Row) -> str:
    found = ratio(row, "fastcam", "forward")
    return over_cap(row, "fastcam") or (ABSENT if found is None else digits(found["median"]))


def _gains(row: Row) -> str:
    """The speed-up over each peer that has the method, the losses in bold."""
    return ", ".join(f"{peer} {text}" for peer in _PEERS if (text := _gain(row, peer))) or ABSENT


def _gain(row: Row, peer: str) -> str | None:
    if (found := ratio(row, peer, "fastcam")) is None:
        return over_cap(row, peer)
    text = digits(found["median"])
    return f"**{text}**" if found["median"] < 1 else text


def _losses(device: Device, found: list[Outcome]) -> str:
    lost = losses(device, found)
    if not lost:
        return "No row is slower than a peer's, and none misses a goal.\n"
    rows = [[named(loss.row), loss.figure.name, _measured(loss.figure, loss.row), loss.limit] for loss in lost]
    title = "Losses, the worst first: every row that is slower than a peer's, or that misses a goal:\n\n"
    return title + table(("row", "figure", "measured", "limit"), rows)
