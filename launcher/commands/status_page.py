"""How `launcher status RUN` shows one run: its job, its attempts, and why the last one ended."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.commands.console import fact_table
from launcher.commands.status_table import age, coloured, left, number
from launcher.commands.verdict_view import goodput_page, verdict_page
from launcher.config.frozen import load_config
from launcher.diagnose.verdict import Verdict, read_verdicts
from launcher.errors import LauncherError, VerdictClass
from launcher.files import as_json, find_record
from launcher.paths import RunPaths
from launcher.plan.plan import Plan
from launcher.report.cost import Bill, make_bill
from launcher.report.goodput import Goodput, run_goodput
from launcher.runs.attempts import AttemptRecord, read_attempts
from launcher.runs.jsonl import parse_time, seconds_between
from launcher.runs.progress import duration_text
from launcher.runs.states import RunState
from launcher.slurm.client.job_status import Jobs, stages_of

_MOST_ATTEMPTS = 12


def page(state: RunState, jobs: Jobs) -> RenderableType:
    """Everything known about a run that fits on a screen."""
    run_dir = Path(state.path)
    attempts, verdicts = read_attempts(run_dir), {verdict.attempt: verdict for verdict in read_verdicts(run_dir)}
    start = f"Slurm expects to start it at {_local_time(state.expected_start)}" if state.expected_start else ""
    rows: list[tuple[str, str | Text]] = [
        ("run", Text(state.name, "bold")),
        ("state", coloured(state)),
        ("why", state.reason),
        ("job", f"{state.job_id} (Slurm: {state.job_state})" if state.job_state else state.job_id),
        ("queue", "; ".join(filter(None, (state.queue_why, start)))),
        ("stages", _stages(run_dir, jobs)),
        ("nodes", _shortened(state.nodes)),
        ("note", f"Slurm cannot be asked ({state.not_asked}): this is the run's own record" if state.not_asked else ""),
        ("directory", state.path),
        ("step", _step(state)),
        ("loss", number(state.loss)),
        ("validation loss", number(state.eval_loss)),
        ("speed", _speed(state)),
        ("checkpoint", _checkpoint(state)),
        ("attempt", str(state.attempt) if state.attempt and not attempts else ""),
        ("attempts", _attempts(attempts, verdicts)),
        ("exit code", "" if state.exit_code is None or not state.over else str(state.exit_code)),
        ("created", _local_time(state.created)),
        ("updated", _local_time(state.updated)),
        ("next", state.hint),
    ]
    parts: list[RenderableType] = [fact_table(rows)]
    account = run_goodput(run_dir)
    if account.allocated_ms:
        parts += ["", goodput_page(account, _bill(run_dir, account) if state.over else None)]
    verdict = verdicts.get(state.attempt)
    if verdict is not None and verdict.verdict_class is not VerdictClass.done:
        parts += ["", verdict_page(verdict)]
    return Group(*parts)


def further_facts(state: RunState, jobs: Jobs) -> dict[str, object]:
    """Fields of --json for one run, apart from its state."""
    run_dir = Path(state.path)
    account = run_goodput(run_dir)
    return {
        "stages": as_json(stages_of(run_dir, jobs)),
        "attempts": as_json(read_attempts(run_dir)),
        "verdicts": as_json(read_verdicts(run_dir)),
        "goodput": account.as_dict() if account.allocated_ms else None,
        "bill": as_json(_bill(run_dir, account)) if account.allocated_ms else None,
    }


def _local_time(text: str) -> str:
    return parse_time(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else ""


def _stages(run_dir: Path, jobs: Jobs) -> str:
    return "\n".join(
        f"{stage.stage:<8} job {stage.job_id}: {stage.state}{f', {stage.reason}' if stage.reason else ''}"
        for stage in stages_of(run_dir, jobs)
    )


def _step(state: RunState) -> str:
    epoch = f", epoch {state.epoch:.2f}" if state.epoch else ""
    return f"{state.step} of {state.of}{epoch}" if state.of else ""


def _speed(state: RunState) -> str:
    remaining = f", {left(state)} left" if left(state) else ""
    return f"{state.tokens_per_s:,.0f} tokens/s{remaining}" if state.tokens_per_s else ""


def _checkpoint(state: RunState) -> str:
    if state.last_checkpoint_step is None:
        return "none yet"
    when = f", {age(state.last_checkpoint_time)}" if state.last_checkpoint_time else ""
    return f"step {state.last_checkpoint_step}{when}"


def _shortened(nodes: list[str]) -> str:
    if len(nodes) <= 8:
        return ", ".join(nodes)
    return f"{len(nodes)}: {', '.join(nodes[:6])}, ... {nodes[-1]}"


def _attempts(records: list[AttemptRecord], verdicts: dict[int, Verdict]) -> str:
    more = [f"... and {len(records) - _MOST_ATTEMPTS} before"] if len(records) > _MOST_ATTEMPTS else []
    shown = records[-_MOST_ATTEMPTS:]
    return "\n".join([*more, *(_attempt_line(record, verdicts.get(record.attempt)) for record in shown)])


def _attempt_line(record: AttemptRecord, verdict: Verdict | None) -> str:
    where = f"job {record.job_id} on {_shortened(record.nodes)}" if record.job_id else f"on {record.host}"
    text = f"{record.attempt}: {where} from {_local_time(record.started)}"
    if record.ended:
        text += f" for {duration_text(seconds_between(record.started, record.ended))}"
    if verdict is None:
        return f"{text}, exit code {record.exit_code}" if record.exit_code is not None else text
    steps = f", steps {verdict.step_start} to {verdict.step_end}" if verdict.step_end > verdict.step_start else ""
    return f"{text}{steps}: {verdict.verdict_class.value.replace('_', ' ')}"


def _bill(run_dir: Path, account: Goodput) -> Bill:
    try:
        price = load_config(RunPaths(run_dir).config).config.cluster.price_per_device_hour
    except LauncherError:
        price = None  # config.yaml of another version
    plan = find_record(Plan, RunPaths(run_dir).plan)
    return make_bill(account.device_hours, price_per_device_hour=price, planned=plan.bill if plan is not None else None)
