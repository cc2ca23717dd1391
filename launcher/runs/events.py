"""events.jsonl: what happened to a run and when, appended by the launcher and by any rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.runs import jsonl


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    time: str
    """UTC, ISO 8601 with milliseconds."""
    event: str
    """state, attempt_start, attempt_end, signal, checkpoint, resume, warning, ...; docs/architecture.md lists them."""
    attempt: int
    """0 for what happens before the first attempt."""
    rank: int
    """-1 for a process that is no rank, such as the launcher itself."""
    fields: dict[str, object] = field(default_factory=dict)
    """What belongs to this kind of event."""


class EventWriter:
    """Appends to events.jsonl. Ranks: any; each line is a single append, so writers do not mix."""

    def __init__(self, path: Path, attempt: int, rank: int) -> None:
        self._log = jsonl.AppendLog(path)
        self._attempt = attempt
        self._rank = rank

    def write(self, event: str, **fields: object) -> None:
        """Adds one event, now. Values JSON cannot hold are written as their text."""
        head = {"time": jsonl.utc_now(), "event": event, "attempt": self._attempt, "rank": self._rank}
        self._log.append({**head, **{key: value for key, value in fields.items() if key not in head}})

    def close(self) -> None:
        self._log.close()


def read_events(path: Path) -> list[Event]:
    """All events in the order they were written; empty where there is no file."""
    lines, _ = jsonl.read_lines(path)
    events = (parse_event(line) for line in lines)
    return [event for event in events if event is not None]


def words_of(events: list[Event], name: str) -> list[Event]:
    """Events of one kind, in order, without those of an attempt that spoke after a newer one had begun.

    An old attempt may come back to life, its machine suspended or cut off meanwhile; the run is not what it says then.
    """
    newest, found = 0, []
    for event in events:
        newest = max(newest, event.attempt)
        if event.event == name and event.attempt in (0, newest):
            found.append(event)
    return found


def written_manifests(path: Path) -> set[str]:
    """sha256 of every checkpoint manifest this run says it wrote; what is not among them was planted."""
    return {str(event.fields["manifest_sha256"]) for event in read_events(path) if event.event == "checkpoint_prepared"}


def parse_event(line: dict[str, object]) -> Event | None:
    """The event a line holds; None when it names none."""
    rest = dict(line)
    name = rest.pop("event", None)
    time = rest.pop("time", None)
    attempt = rest.pop("attempt", 0)
    rank = rest.pop("rank", -1)
    if not isinstance(name, str) or not isinstance(time, str):
        return None
    return Event(
        time=time,
        event=name,
        attempt=attempt if isinstance(attempt, int) else 0,
        rank=rank if isinstance(rank, int) else -1,
        fields=rest,
    )
