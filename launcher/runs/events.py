"""events.jsonl: what happened to a run and when, appended by the launcher and by any rank."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.errors import RecordError
from launcher.files import record_from
from launcher.runs import jsonl

_HEAD = ("time", "event", "attempt", "rank")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    time: str
    """UTC, ISO 8601 with milliseconds."""
    event: str
    """state, attempt_start, attempt_end, signal, checkpoint, resume, warning, ...; docs/files.md lists them."""
    attempt: int = 0
    """0 before the first attempt."""
    rank: int = -1
    """-1 for a process that is not a rank, such as the launcher itself."""
    fields: dict[str, object] = field(default_factory=dict)
    """Depends on the kind of event."""


class EventWriter(jsonl.AppendLog):
    """Appends to events.jsonl. Ranks: any; each line is a single append, so writers do not mix."""

    def __init__(self, path: Path, attempt: int, rank: int = -1) -> None:
        super().__init__(path)
        self._attempt = attempt
        self._rank = rank

    def write(self, event: str, **fields: object) -> None:
        """Adds one event, now. Values JSON cannot hold are written as their text."""
        head = {"time": jsonl.utc_now(), "event": event, "attempt": self._attempt, "rank": self._rank}
        self.append(head | {key: value for key, value in fields.items() if key not in _HEAD})


def write_event(path: Path, attempt: int, event: str, **fields: object) -> None:
    """Adds one event on behalf of a process that is not a rank."""
    with closing(EventWriter(path, attempt)) as events:
        events.write(event, **fields)


def read_events(path: Path) -> list[Event]:
    """All events in the order they were written; empty where there is no file."""
    lines, _ = jsonl.read_lines(path)
    return [event for line in lines if (event := parse_event(line)) is not None]


def parse_event(line: dict[str, object]) -> Event | None:
    """The event a line holds; None where it holds none."""
    try:
        event = record_from(Event, {key: line[key] for key in _HEAD if key in line})
    except RecordError:
        return None
    return replace(event, fields={key: value for key, value in line.items() if key not in _HEAD})


def valid_events(events: list[Event], name: str) -> list[Event]:
    """Events of one kind, in order, without those an attempt wrote after a newer one had begun.

    An old attempt may come back to life, its host suspended or cut off meanwhile; what it then writes is not about the
    run any more.
    """
    newest, found = 0, []
    for event in events:
        newest = max(newest, event.attempt)
        if event.event == name and event.attempt in (0, newest):
            found.append(event)
    return found


def last_state(path: Path) -> str:
    """State of the run by its events; empty before the first."""
    states = valid_events(read_events(path), "state")
    return str(states[-1].fields.get("state")) if states else ""


def written_manifests(path: Path) -> set[str]:
    """sha256 of every checkpoint manifest this run says it wrote; what is not among them was planted."""
    return {str(event.fields["manifest_sha256"]) for event in read_events(path) if event.event == "checkpoint_prepared"}
