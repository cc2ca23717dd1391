"""Sends a finished run to its trackers: everything in metrics.jsonl that they lack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.config.frozen import load_config
from launcher.errors import UserError
from launcher.paths import RunPaths
from launcher.runs.events import Event, read_events
from launcher.tracking.replay import Replay
from launcher.tracking.tracker import chosen_trackers, load_tracker
from launcher.tracking.wandb_tracker import login_page, server_of


@dataclass(frozen=True, slots=True)
class Synced:
    """A tracker that now has everything."""

    tracker: str
    title: str
    rows: int
    """Records sent now; the tracker had the others."""
    url: str | None


def sync(run_dir: Path, *, timeout_s: float) -> list[Synced]:
    """Sends every record that the run's trackers lack and waits until they have them, at most `timeout_s`.

    Raises: UserError without package or login, when a server cannot be reached or refuses, or after the time-out.
    """
    paths = RunPaths(run_dir)
    track = load_config(paths.config).config.track
    known = len(read_events(paths.events))
    replay, started, failures = Replay(run_dir, attempt=0), [], []
    for name in chosen_trackers(track):
        try:
            destination = load_tracker(name).destination(track, os.environ, syncing=True)
        except UserError as error:
            failures.append(str(error))
            continue
        if destination is not None:
            replay.add(name, destination)
            started.append(name)
    replay.finish(timeout_s)
    events = [event for event in read_events(paths.events)[known:] if event.attempt == 0]
    done = []
    for name in started:
        complete = [event.fields for event in events if event.event == name and event.fields.get("complete") is True]
        if complete:
            rows, url = complete[-1].get("rows"), complete[-1].get("url")
            rows = rows if isinstance(rows, int) else 0
            done.append(Synced(name, load_tracker(name).title, rows, None if url is None else str(url)))
        else:
            failures.append(_failure(run_dir, name, events))
    if failures:
        raise UserError("\n".join(failures))
    return done


def _failure(run_dir: Path, name: str, events: list[Event]) -> str:
    warnings = [event.fields for event in events if event.fields.get("source") == name]
    why = str(warnings[-1].get("message")) if warnings else "The sending process died"
    check = ""
    # A refusal includes what to do.
    if name == "wandb" and not (warnings and warnings[-1].get("key_refused")):
        server = server_of(os.environ)
        check = f" Check that this host reaches {server}, and that WANDB_API_KEY is a key of it ({login_page(server)})."
    return (
        f"{load_tracker(name).title} did not take the run. {why}.{check} "
        f"Details are in {RunPaths(run_dir).tracker(name) / 'replay.log'}. Run `launcher sync {run_dir.name}` again: "
        "it continues where this one stopped"
    )
