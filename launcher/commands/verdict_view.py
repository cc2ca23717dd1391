"""How the end of an attempt, and where the time of a run went, look on a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from launcher.commands.console import fact_table, printable
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


def verdict_page(verdict: Verdict) -> Table:
    """What failed first and where, the last lines that matter, what it cost and what to do, on one page."""
    job = f", job {verdict.job_id}" if verdict.job_id else ""
    colour = _COLOURS.get(verdict.verdict_class, "red")
    where = (
        f"rank {verdict.rank}" if verdict.rank is not None else "",
        f"node {verdict.node}" if verdict.node else "",
        f"exit code {verdict.exit_code}" if verdict.exit_code else "",
    )
    lost = f", of which {_hours(verdict.device_hours_lost)} must be done again" if verdict.device_hours_lost else ""
    rows: list[tuple[str, str | Text]] = [
        ("attempt", Text.assemble(f"{verdict.attempt}{job}: ", (verdict.verdict_class.value, f"bold {colour}"))),
        ("what", verdict.summary),
        ("where", ", ".join(filter(None, where))),
        ("place", verdict.place),
        ("steps", f"{verdict.step_start} to {verdict.step_end}" if verdict.step_end > verdict.step_start else ""),
        ("checkpoint", f"step {verdict.checkpoint_after}" if verdict.checkpoint_after >= 0 else "none"),
        ("cost", f"{_hours(verdict.device_hours)}{lost}" if verdict.device_hours else ""),
        ("setting", verdict.setting),
        ("action", _ACTIONS[verdict.action]),
        ("next", verdict.hint),
    ]
    lines = [Text(printable(line), style="dim") for line in verdict.lines]
    return fact_table([*rows, *zip(["last lines", *[""] * len(lines)], lines, strict=False)])


def goodput_page(goodput: Goodput, bill: Bill | None) -> Table:
    """Where the allocated time went, and planned against actual cost."""
    attempts = "1 attempt" if len(goodput.spans) == 1 else f"{len(goodput.spans)} attempts"
    useful = goodput.useful_share
    total = "-" if useful is None else f"{useful:.1%} of {_hours(goodput.device_hours)} in {attempts}"
    rows: list[tuple[str, str]] = [("goodput", total)]
    rows += [("", f"{goodput.share(part):6.1%}  {name}") for part, name in PARTS.items() if goodput.parts_ms[part]]
    if goodput.queue_ms:
        rows.append(("queue", f"{goodput.queue_ms / 3_600_000:.2f} hours of waiting, not paid for"))
    if bill is not None and bill.planned_device_hours is not None and bill.more_device_hours is not None:
        more = f"{_hours(abs(bill.more_device_hours))} {'more' if bill.more_device_hours >= 0 else 'less'}"
        rows.append(("estimate", f"{_hours(bill.planned_device_hours)}; it took {more}"))
    if bill is not None and bill.cost is not None:
        planned = "" if bill.planned_cost is None else f", {bill.planned_cost:,.2f} was expected"
        rows.append(("bill", f"{bill.cost:,.2f}{planned}"))
    return fact_table(rows)


def _hours(hours: float) -> str:
    return f"{hours:,.2f} device-hours" if hours >= 0.1 else f"{hours * 3600:,.0f} device-seconds"
