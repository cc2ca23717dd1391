"""The recorded state and the settings of a run, for its report."""

from __future__ import annotations

import json
from dataclasses import dataclass

from omegaconf import MISSING

from launcher.config.schema import RunConfig
from launcher.files import as_json
from launcher.runs.events import Event, valid_events
from launcher.runs.status import FINAL_STATES
from launcher.tracking.tracker import flat


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    value: str
    default: str
    """Empty where there is none, because it must be given."""
    is_changed: bool


def recorded_state(events: list[Event]) -> tuple[str, str]:
    """The state the events leave the run in, and why."""
    states = valid_events(events, "state")
    state = str(states[-1].fields.get("state", "")) if states else ""
    reasons = [text for event in states[-1:] for key in ("reason", "message") if (text := event.fields.get(key))]
    if state not in FINAL_STATES:
        turns = [event.event for event in events if event.event in ("attempt_start", "preempted")]
        if turns and turns[-1] == "preempted":
            return "preempted", "stopped and saved; it waits to be continued"
    return state or "unknown", str(reasons[0]) if reasons else ""


def settings(config: RunConfig) -> dict[str, list[Setting]]:
    """Every setting by section, and whether it differs from its default."""
    groups: dict[str, list[Setting]] = {"run": []}
    defaults = flat(as_json(RunConfig()))
    for path, value in flat(as_json(config)).items():
        section, _, key = path.partition(".")
        default = defaults.get(path)
        usual = "" if default == MISSING else shown(default)
        setting = Setting(key or section, shown(value), usual, value != default)
        groups.setdefault(section if key else "run", []).append(setting)
    return groups


def shown(value: object) -> str:
    """A setting as one would type it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)
