"""What the files of a run directory say, gathered for the report; every part may be missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass

from omegaconf import MISSING

from launcher.config.schema import RunConfig
from launcher.files import as_json
from launcher.paths import RunPaths
from launcher.runs.events import Event, valid_events
from launcher.runs.jsonl import seconds_between
from launcher.runs.metrics import Metrics
from launcher.runs.status import FINAL_STATES
from launcher.runs.untyped_json import Loose, read_loose


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the run."""

    number: int
    start: str
    end: str
    """Its last sign of life, where it did not record its end."""
    seconds: float
    first_step: int | None
    last_step: int | None
    exit_code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """One committed checkpoint, from its manifest."""

    name: str
    step: int
    attempt: int | None
    time: str
    size_bytes: int
    num_files: int
    heldout_loss: float | None
    is_best: bool


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    value: str
    default: str
    """Empty where there is none, because it must be given."""
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Score:
    """One way of asking a model, and how often its answer was right."""

    name: str
    exact_match: float | None
    exact_match_interval: tuple[float, float] | None
    token_f1: float | None
    token_f1_interval: tuple[float, float] | None
    is_tuned: bool


def last_state(events: list[Event]) -> tuple[str, str]:
    """The state the events leave the run in, and why."""
    states = valid_events(events, "state")
    state = str(states[-1].fields.get("state", "")) if states else ""
    reasons = [text for event in states[-1:] for key in ("reason", "message") if (text := event.fields.get(key))]
    if state not in FINAL_STATES:
        turns = [event.event for event in events if event.event in ("attempt_start", "preempted")]
        if turns and turns[-1] == "preempted":
            return "preempted", "stopped and saved; it waits to be continued"
    return state or "unknown", str(reasons[0]) if reasons else ""


def attempts(events: list[Event], metrics: Metrics) -> list[Attempt]:
    """Every start of the run, in order."""
    found = []
    for number in sorted({event.attempt for event in events if event.attempt > 0}):
        mine = [event for event in events if event.attempt == number]
        steps = [record for record in metrics.steps if record.attempt == number]
        ends = [event for event in mine if event.event == "attempt_end"]
        starts = [event for event in mine if event.event == "attempt_start"] or mine
        end = ends[-1].time if ends else max([mine[-1].time, *(record.time for record in steps[-1:])])
        code = ends[-1].fields.get("exit_code") if ends else None
        found.append(
            Attempt(
                number=number,
                start=starts[0].time,
                end=end,
                seconds=seconds_between(starts[0].time, end),
                first_step=steps[0].step if steps else None,
                last_step=steps[-1].step if steps else None,
                exit_code=code if isinstance(code, int) else None,
                reason=str(ends[-1].fields.get("message") or ends[-1].fields.get("reason") or "") if ends else "",
            )
        )
    return found


def checkpoints(paths: RunPaths) -> list[CheckpointFacts]:
    """Committed checkpoints, oldest first; their files are not verified here (`launcher verify` does)."""
    found = []
    for manifest_path in sorted(paths.checkpoints.glob("step-*/manifest.json")):
        manifest = read_loose(manifest_path)
        state = manifest.at("state")
        step = state.at("step").whole
        files = manifest.at("files").items
        if step is None:
            continue
        is_measured_here = state.at("last_eval_step").whole == step
        found.append(
            CheckpointFacts(
                name=manifest_path.parent.name,
                step=step,
                attempt=manifest.at("attempt").whole,
                time=manifest.at("time").text,
                size_bytes=sum(entry.at("size_bytes").whole or 0 for entry in files),
                num_files=len(files),
                heldout_loss=state.at("last_eval_loss").number if is_measured_here else None,
                is_best=False,
            )
        )
    measured = [(shot.heldout_loss, shot.step) for shot in found if shot.heldout_loss is not None]
    best_step = min(measured)[1] if measured else None
    return [_with_best(shot, best_step) for shot in found]


def _with_best(facts: CheckpointFacts, best_step: int | None) -> CheckpointFacts:
    values = {item.name: getattr(facts, item.name) for item in fields(facts)}
    return CheckpointFacts(**{**values, "is_best": facts.step == best_step})


def scores(result: Loose) -> list[Score]:
    """Conditions of eval.json, in the order they were measured, the tuned model last."""
    found = []
    for name, condition in result.at("conditions").entries.items():
        shots = condition.at("shots").whole
        label = {
            "zero_shot": "base, zero-shot",
            "few_shot": f"base, {shots}-shot" if shots else "base, few-shot",
            "retrieval": f"base, {shots} retrieved examples" if shots else "base, retrieval",
            "tuned": "tuned",
        }.get(name, name.replace("_", " "))
        found.append(
            Score(
                name=label,
                exact_match=condition.at("exact_match").number,
                exact_match_interval=condition.at("exact_match_ci").interval,
                token_f1=condition.at("token_f1").number,
                token_f1_interval=condition.at("token_f1_ci").interval,
                is_tuned=name == "tuned",
            )
        )
    return sorted(found, key=lambda score: score.is_tuned)


def settings(config: RunConfig) -> dict[str, list[Setting]]:
    """Every setting by section, and whether it differs from its default."""
    groups: dict[str, list[Setting]] = {"run": []}
    defaults = RunConfig()
    for item in fields(config):
        value, default = getattr(config, item.name), getattr(defaults, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            given, usual = flat(as_json(value)), flat(as_json(default))
            groups[item.name] = [_setting(key, given[key], usual.get(key)) for key in given]
        else:
            groups["run"].append(_setting(item.name, as_json(value), as_json(default)))
    return groups


def flat(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(values, dict):
        return {}
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _setting(key: str, value: object, default: object) -> Setting:
    return Setting(key, shown(value), "" if default == MISSING else shown(default), value != default)


def shown(value: object) -> str:
    """A setting as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)
