"""How `launcher status` shows many runs: a table, and the grid of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.report.goodput import run_goodput
from launcher.runs.heartbeat import Phase
from launcher.runs.jsonl import parse_time
from launcher.runs.progress import duration_text
from launcher.runs.states import RunState
from launcher.slurm.client.sweep import read_sweep

Cells = Mapping[str, str | Text]
"""By column title; a column without an entry shows a dash."""

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
_COLUMNS = ("state", "step", "left", "loss", "val loss", "tokens/s", "checkpoint")
_MORE_COLUMNS = ("attempt", "nodes", "goodput", "updated")
_WIDE = 125
"""Terminal columns from which _MORE_COLUMNS are shown."""


def table(states: list[RunState], width: int, not_asked: str) -> RenderableType:
    """All runs, oldest first; a sweep takes one line."""
    rows: dict[str, Cells] = {}
    for state in states:
        sweep = state.name.rpartition("/")[0]
        if not sweep:
            rows[state.name] = _cells(state, width)
        elif sweep not in rows:
            rows[sweep] = _sweep_cells([other for other in states if other.name.rpartition("/")[0] == sweep])
    return _render("run", (), [(Text(name), cells) for name, cells in rows.items()], width, not_asked)


def grid(sweep_dir: Path, states: list[RunState], width: int, not_asked: str) -> RenderableType:
    """The members of a sweep, what differs in each, and which has the lowest validation loss."""
    sweep = read_sweep(sweep_dir)
    differs = {member.run: member.differs for member in sweep.members} if sweep else {}
    keys = list(dict.fromkeys(key for settings in differs.values() for key in settings))
    best = best_member(states)
    rows: list[tuple[Text, Cells]] = []
    for state in states:
        folder = Path(state.path).name
        name = Text(folder)
        if best is not None and state.name == best.name:
            name.append(" best", "bold green")
        settings = {key: str(value) for key, value in differs.get(folder, {}).items()}
        rows.append((name, {**settings, **_cells(state, width)}))
    return _render(sweep_dir.name, keys, rows, width, not_asked)


def best_member(states: list[RunState]) -> RunState | None:
    """The run with the lowest validation loss so far; None before any was measured."""
    measured = [state for state in states if state.eval_loss is not None and state.eval_loss == state.eval_loss]
    return min(measured, key=lambda state: state.eval_loss or 0.0, default=None)


def _render(
    first: str, keys: Sequence[str], rows: list[tuple[Text, Cells]], width: int, not_asked: str
) -> RenderableType:
    titles = [*keys, *_COLUMNS, *(_MORE_COLUMNS if width >= _WIDE else ())]
    columns = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns.add_column(Text(first), overflow="fold")  # the only one that may take two lines
    for title in titles:
        columns.add_column(Text(title), justify="left" if title == "state" else "right", no_wrap=True)
    for name, cells in rows:
        columns.add_row(name, *(cells.get(title) or "-" for title in titles))
    if not not_asked:
        return columns
    note = f"Slurm cannot be asked ({not_asked}): jobs are shown by the runs' own records"
    return Group(columns, Text(note, "yellow"))


def _cells(state: RunState, width: int) -> Cells:
    share = run_goodput(Path(state.path)).useful_share if width >= _WIDE else None
    return {
        "state": coloured(state),
        "step": f"{state.step}/{state.of}" if state.of else "",
        "left": left(state),
        "loss": number(state.loss),
        "val loss": number(state.eval_loss),
        "tokens/s": f"{state.tokens_per_s:,.0f}" if state.tokens_per_s else "",
        "checkpoint": age(state.last_checkpoint_time),
        "attempt": str(state.attempt or ""),
        "nodes": str(len(state.nodes) or ""),
        "goodput": f"{share:.0%}" if share is not None else "",
        "updated": age(state.updated),
    }


def _sweep_cells(members: list[RunState]) -> Cells:
    counts = Counter(state.state for state in members)
    best = best_member(members)
    return {
        "state": "sweep: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        "step": f"{sum(state.step for state in members)}/{sum(state.of for state in members)}",
        "loss": number(best.loss if best else None),
        "val loss": number(best.eval_loss if best else None),
        "updated": age(max(state.updated for state in members)),
    }


def coloured(state: RunState) -> Text:
    """The state, and in brackets what it leaves open."""
    note = note_of(state)
    return Text.assemble((state.state, _COLOURS.get(state.state, "")), f" ({note})" if note else "")


def note_of(state: RunState) -> str:
    """One or two words; empty if the state says it all."""
    if state.preempted:
        return "stopped"
    if state.requeued:
        return "requeued, waits"
    if state.alive is None:
        return "Slurm not asked" if state.not_asked else "elsewhere"
    if state.state == "running" and state.phase in _PHASES:
        return _PHASES[state.phase]
    return state.queue_reason


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def left(state: RunState) -> str:
    return "" if state.eta_s is None else duration_text(state.eta_s)


def age(text: str) -> str:
    """How long ago, in one unit."""
    if not text:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - parse_time(text)).total_seconds())
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
