"""How `launcher status` shows many runs: a table, and the grid of a sweep."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from launcher.report.goodput import run_goodput
from launcher.runs.heartbeat import Phase
from launcher.runs.jsonl import parse_time
from launcher.runs.progress import duration_text
from launcher.runs.states import RunState
from launcher.slurm.client.sweep import read_sweep

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "blue"}
_PHASES: dict[str, str] = {
    Phase.start: "starts",
    Phase.meet: "ranks meet",
    Phase.load: "loads",
    Phase.rehearse: "rehearses",
    Phase.evaluate: "evaluates",
    Phase.save: "saves",
    Phase.finish: "finishes",
}
_WIDE = 125
"""Columns of a terminal from which on everything is shown."""


def table(states: list[RunState], folders: list[Path], width: int, not_asked: str = "") -> RenderableType:
    """All runs, oldest first; a sweep takes one line."""
    columns = _new_table("run", wide=width >= _WIDE)
    shown: set[str] = set()
    for state, folder in zip(states, folders, strict=True):
        sweep = state.name.rpartition("/")[0]
        if not sweep:
            columns.add_row(escape(state.name), *_cells(state, folder, wide=width >= _WIDE))
        elif sweep not in shown:
            shown.add(sweep)
            members = [other for other in states if other.name.rpartition("/")[0] == sweep]
            columns.add_row(escape(sweep), *_sweep_cells(members, wide=width >= _WIDE))
    return _with_note(columns, not_asked)


def grid(sweep_dir: Path, states: list[RunState], width: int, not_asked: str = "") -> RenderableType:
    """The members of a sweep, what differs in each, and which is best by validation loss."""
    sweep = read_sweep(sweep_dir)
    differs = {member.run: member.differs for member in sweep.members} if sweep else {}
    keys = list(dict.fromkeys(key for settings in differs.values() for key in settings))
    columns = _new_table(escape(sweep_dir.name), *map(escape, keys), wide=width >= _WIDE)
    best = best_member(states)
    for state in states:
        folder = Path(state.path)
        settings = differs.get(folder.name, {})
        mark = " [bold green]best[/]" if best is not None and state.name == best.name else ""
        values = [escape(str(settings.get(key, "-"))) for key in keys]
        columns.add_row(folder.name + mark, *values, *_cells(state, folder, wide=width >= _WIDE))
    return _with_note(columns, not_asked)


def best_member(states: list[RunState]) -> RunState | None:
    """The run with the lowest validation loss so far; None before any was measured."""
    measured = [state for state in states if state.eval_loss is not None and state.eval_loss == state.eval_loss]
    return min(measured, key=lambda state: state.eval_loss or 0.0, default=None)


def _new_table(first: str, *further: str, wide: bool) -> Table:
    columns = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns.add_column(first, overflow="fold")  # the only one that may take two lines
    for title in further:
        columns.add_column(title, justify="right", no_wrap=True)
    columns.add_column("state", no_wrap=True)
    titles = ["step", "left", "loss", "val loss", "tokens/s", "checkpoint"]
    for title in [*titles, *(["attempt", "nodes", "goodput", "updated"] if wide else [])]:
        columns.add_column(title, justify="right", no_wrap=True)
    return columns


def _cells(state: RunState, folder: Path, *, wide: bool) -> list[str]:
    share = goodput_share(folder) if wide else None
    cells = [
        coloured(state),
        f"{state.step}/{state.of}" if state.of else "-",
        left(state),
        number(state.loss),
        number(state.eval_loss),
        f"{state.tokens_per_s:,.0f}" if state.tokens_per_s else "-",
        age(state.last_checkpoint_time) if state.last_checkpoint_time else "-",
    ]
    if wide:
        cells += [
            str(state.attempt) if state.attempt else "-",
            str(len(state.nodes)) if state.nodes else "-",
            f"{share:.0%}" if share is not None else "-",
            age(state.updated),
        ]
    return cells


def _sweep_cells(members: list[RunState], *, wide: bool) -> list[str]:
    counts: dict[str, int] = {}
    for state in members:
        counts[state.state] = counts.get(state.state, 0) + 1
    best = best_member(members)
    cells = [
        "sweep: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"{sum(state.step for state in members)}/{sum(state.of for state in members)}",
        "-",
        number(best.loss if best else None),
        number(best.eval_loss if best else None),
        "-",
        "-",
    ]
    return [*cells, "-", "-", "-", age(max(state.updated for state in members))] if wide else cells


def _with_note(columns: Table, not_asked: str) -> RenderableType:
    if not not_asked:
        return columns
    note = f"[yellow]Slurm cannot be asked ({escape(not_asked)}): jobs are shown by the runs' own records[/]"
    return Group(columns, note)


def coloured(state: RunState) -> str:
    """The state, and in brackets what it leaves open."""
    note = note_of(state)
    colour = _COLOURS.get(state.state, "")
    text = f"[{colour}]{state.state}[/]" if colour else state.state
    return f"{text} ({note})" if note else text


def note_of(state: RunState) -> str:
    """One or two words, empty where the state says it all."""
    if state.preempted:
        return "stopped"
    if state.requeued:
        return "requeued, waits"
    if state.not_asked and state.alive is None:
        return "Slurm not asked"
    if state.alive is None:
        return "elsewhere"
    if state.state == "running" and state.phase in _PHASES:
        return _PHASES[state.phase]
    return state.queue_reason


def goodput_share(run_dir: Path) -> float | None:
    """Share of the allocated time that counts in the weights; None before any time was allocated."""
    return run_goodput(run_dir).useful_share


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def left(state: RunState) -> str:
    return "-" if state.eta_s is None else duration_text(state.eta_s)


def age(text: str) -> str:
    """How long ago, in one unit."""
    if not text:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - parse_time(text)).total_seconds())
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
