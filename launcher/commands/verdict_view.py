"""How the end of an attempt, and where the time of a run went, look on a terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from launcher.diagnose.verdict import Action, Verdict
from launcher.errors import VerdictClass
from launcher.report.cost import Bill
from launcher.report.goodput import PARTS, Goodput

_COLOURS = {
    VerdictClass.done: "green",
    VerdictClass.preempted: "blue",
    VerdictClass.timeout: "blue",
    VerdictClass.cancelled: "yellow",
}
_ACTIONS = {
    Action.none: "",
    Action.requeue: "start it again",
    Action.requeue_without_node: "start it again without that node",
    Action.stop: "stop: somebody has to look first",
}
_NAMES = {
    "start": "starting the ranks",
    "load": "loading",
    "rehearse": "rehearsal",
    "data": "waiting for data",
    "useful": "useful steps",
    "redone": "redone steps",
    "save": "saving",
    "evaluate": "evaluation",
    "lost": "lost",
    "other": "other",
}


def verdict_page(verdict: Verdict) -> RenderableType:
    """What failed first, where, the last lines that matter, what it cost, and what to do, on one page."""
    grid = _grid()
    colour = _COLOURS.get(verdict.verdict_class, "red")
    job = f", job {escape(verdict.job_id)}" if verdict.job_id else ""
    grid.add_row("attempt", f"{verdict.attempt}{job}: [bold {colour}]{verdict.verdict_class.value}[/]")
    rows = {
        "what": verdict.summary,
        "where": _where(verdict),
        "place": verdict.place,
        "steps": _steps(verdict),
        "checkpoint": f"step {verdict.checkpoint_after}" if verdict.checkpoint_after >= 0 else "none",
        "cost": _cost(verdict),
        "setting": verdict.setting,
        "action": _ACTIONS[verdict.action],
        "next": verdict.hint,
    }
    for label, text in rows.items():
        if text:
            grid.add_row(label, escape(text))
    for number, line in enumerate(verdict.lines):
        # A log may hold anything, also what rich or the terminal would take for commands.
        grid.add_row("last lines" if number == 0 else "", Text(_printable(line), style="dim"))
    return grid


def goodput_page(goodput: Goodput, bill: Bill | None = None) -> RenderableType:
    """Where the allocated time went, and the estimate beside the bill."""
    grid = _grid()
    useful = goodput.useful_share
    attempts = f"{goodput.num_attempts} attempt{'' if goodput.num_attempts == 1 else 's'}"
    grid.add_row("goodput", "-" if useful is None else f"{useful:.1%} of {_hours(goodput.device_hours)} in {attempts}")
    for part in PARTS:
        if goodput.parts_ms[part]:
            grid.add_row("", f"{goodput.share(part):6.1%}  {_NAMES[part]}")
    if goodput.queue_ms:
        grid.add_row("queue", f"{goodput.queue_ms / 3_600_000:.2f} hours of waiting, not paid for")
    if bill is not None:
        for label, text in _bill_rows(bill).items():
            grid.add_row(label, text)
    return grid


def _bill_rows(bill: Bill) -> dict[str, str]:
    rows = {}
    if bill.planned_device_hours is not None and bill.more_device_hours is not None:
        rows["estimate"] = f"{_hours(bill.planned_device_hours)}; it took {_more(bill.more_device_hours)}"
    if bill.cost is not None:
        planned = "" if bill.planned_cost is None else f", {bill.planned_cost:,.2f} was expected"
        rows["bill"] = f"{bill.cost:,.2f}{planned}"
    return rows


def _more(hours: float) -> str:
    return f"{_hours(abs(hours))} {'more' if hours >= 0 else 'less'}"


def _hours(hours: float) -> str:
    return f"{hours:,.2f} device-hours" if hours >= 0.1 else f"{hours * 3600:,.0f} device-seconds"


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _where(verdict: Verdict) -> str:
    rank = "" if verdict.rank is None else f"rank {verdict.rank}"
    node = f"node {verdict.node}" if verdict.node else ""
    code = "" if verdict.exit_code in (None, 0) else f"exit code {verdict.exit_code}"
    return ", ".join(part for part in (rank, node, code) if part)


def _steps(verdict: Verdict) -> str:
    return f"{verdict.step_start} to {verdict.step_end}" if verdict.step_end > verdict.step_start else ""


def _cost(verdict: Verdict) -> str:
    if not verdict.device_hours:
        return ""
    lost = f", of which {_hours(verdict.device_hours_lost)} have to be done again" if verdict.device_hours_lost else ""
    return f"{_hours(verdict.device_hours)}{lost}"


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line)
