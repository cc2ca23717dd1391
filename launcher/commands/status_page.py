"""How `launcher status RUN` shows one run: a page with its job, its attempts, and why the last one ended."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from launcher.commands.status_table import age, coloured, left, number
from launcher.commands.verdict_view import goodput_page, verdict_page
from launcher.config.frozen import load_config
from launcher.diagnose.verdict import Verdict, read_verdict, read_verdicts
from launcher.errors import LauncherError, VerdictClass
from launcher.files import as_json, find_record
from launcher.paths import RunPaths
from launcher.plan.plan import Plan
from launcher.report.cost import Bill, make_bill
from launcher.report.goodput import Goodput, run_goodput
from launcher.runs.attempts import AttemptRecord, read_attempts
from launcher.runs.jsonl import parse_time
from launcher.runs.progress import duration_text
from launcher.runs.states import RunState
from launcher.slurm.client.job_status import Jobs, stages_of

_MOST_ATTEMPTS = 12


def page(state: RunState, run_dir: Path, jobs: Jobs) -> RenderableType:
    """Everything that is known of a run and fits on a screen."""
    rows = {
        "state": coloured(state),
        "why": escape(state.reason),  # an error message may hold anything, such as data.allow=[duplicate]
        "job": escape(_job_text(state)),
        "queue": escape(_queue_text(state)),
        "stages": escape("\n".join(_stage_lines(run_dir, jobs))),
        "nodes": escape(_shortened(state.nodes)),
        "note": escape(_not_asked_text(state)),
        "directory": escape(state.path),
        "step": f"{state.step} of {state.of}" + (f", epoch {state.epoch:.2f}" if state.epoch else "")
        if state.of
        else "",
        "loss": number(state.loss),
        "validation loss": number(state.eval_loss),
        "speed": f"{state.tokens_per_s:,.0f} tokens/s, {left(state)} left" if state.tokens_per_s else "",
        "checkpoint": _checkpoint_text(state),
        "attempt": "" if _attempts(run_dir) or not state.attempt else str(state.attempt),
        "attempts": escape("\n".join(_attempt_lines(run_dir))),
        "exit code": "" if state.exit_code is None or not state.over else str(state.exit_code),
        "created": local_time(state.created),
        "updated": local_time(state.updated),
        "next": escape(state.hint),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("run", f"[bold]{escape(state.name)}[/]")
    for label, text in rows.items():
        if text and text != "-":
            grid.add_row(label, text)
    parts: list[RenderableType] = [grid]
    account = _account(run_dir)
    if account is not None:
        parts += ["", goodput_page(account, _bill(run_dir) if state.over else None)]
    verdict = _verdict_of(state, run_dir)
    if verdict is not None:
        parts += ["", verdict_page(verdict)]
    return Group(*parts)


def further_facts(run_dir: Path, jobs: Jobs) -> dict[str, object]:
    """What --json says of one run besides its state."""
    account, cost = _account(run_dir), _bill(run_dir)
    return {
        "stages": [asdict(stage) for stage in stages_of(run_dir, jobs)],
        "attempts": [asdict(record) for record in read_attempts(run_dir)],
        "verdicts": [verdict.as_dict() for verdict in read_verdicts(run_dir)],
        "goodput": account.as_dict() if account else None,
        "bill": as_json(cost),
    }


def local_time(text: str) -> str:
    return parse_time(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else ""


def _job_text(state: RunState) -> str:
    if not state.job_id:
        return ""
    return f"{state.job_id} (Slurm: {state.job_state})" if state.job_state else state.job_id


def _queue_text(state: RunState) -> str:
    start = ""
    if state.expected_start:
        start = f"Slurm expects to start it at {local_time(state.expected_start)}"
    return "; ".join(text for text in (state.queue_why, start) if text)


def _not_asked_text(state: RunState) -> str:
    if not state.not_asked:
        return ""
    return f"Slurm cannot be asked ({state.not_asked}): this is what the run itself has written"


def _stage_lines(run_dir: Path, jobs: Jobs) -> list[str]:
    lines = []
    for stage in stages_of(run_dir, jobs):
        why = f", {stage.reason}" if stage.reason else ""
        lines.append(f"{stage.stage:<8} job {stage.job_id}: {stage.state}{why}")
    return lines


def _shortened(nodes: list[str]) -> str:
    if len(nodes) <= 8:
        return ", ".join(nodes)
    return f"{len(nodes)}: {', '.join(nodes[:6])}, ... {nodes[-1]}"


def _checkpoint_text(state: RunState) -> str:
    if state.last_checkpoint_step is None:
        return "none yet"
    when = f", {age(state.last_checkpoint_time)}" if state.last_checkpoint_time else ""
    return f"step {state.last_checkpoint_step}{when}"


def _attempts(run_dir: Path) -> list[AttemptRecord]:
    return read_attempts(run_dir)


def _attempt_lines(run_dir: Path) -> list[str]:
    records = _attempts(run_dir)
    verdicts = {verdict.attempt: verdict for verdict in read_verdicts(run_dir)}
    lines = [f"... and {len(records) - _MOST_ATTEMPTS} before"] if len(records) > _MOST_ATTEMPTS else []
    lines += [_attempt_line(record, verdicts.get(record.attempt)) for record in records[-_MOST_ATTEMPTS:]]
    return lines


def _attempt_line(record: AttemptRecord, verdict: Verdict | None) -> str:
    place = f"job {record.job_id} on {_shortened(record.nodes)}" if record.job_id else f"on {record.host}"
    words = [f"{record.attempt}:", place, "from", local_time(record.started)]
    if record.ended:
        words.append(f"for {_duration(record.started, record.ended)}")
    text = " ".join(words)
    if verdict is None:
        return f"{text}, exit code {record.exit_code}" if record.exit_code is not None else text
    steps = f", steps {verdict.step_start} to {verdict.step_end}" if verdict.step_end > verdict.step_start else ""
    return f"{text}{steps}: {verdict.verdict_class.value.replace('_', ' ')}"


def _duration(start: str, end: str) -> str:
    try:
        return duration_text(max(0.0, (parse_time(end) - parse_time(start)).total_seconds()))
    except ValueError:
        return "?"


def _account(run_dir: Path) -> Goodput | None:
    account = run_goodput(run_dir)
    return account if account.allocated_ms else None


def _bill(run_dir: Path) -> Bill | None:
    account = _account(run_dir)
    if account is None:
        return None
    try:
        price = load_config(RunPaths(run_dir).config).config.cluster.price_per_device_hour
    except LauncherError:
        price = None  # of another version; the page is shown all the same
    plan = find_record(Plan, RunPaths(run_dir).plan)
    return make_bill(account.device_hours, price_per_device_hour=price, planned=plan.bill if plan is not None else None)


def _verdict_of(state: RunState, run_dir: Path) -> Verdict | None:
    """Why the newest attempt ended, where that needs more than a line."""
    verdict = read_verdict(run_dir, state.attempt) if state.attempt else None
    return None if verdict is None or verdict.verdict_class is VerdictClass.done else verdict
