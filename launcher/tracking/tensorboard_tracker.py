"""TensorBoard: event files in the run directory, one for each attempt, written with tensorboard's own record writer."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launcher.config.schema import TrackConfig
from launcher.runs.jsonl import parse_time
from launcher.runs.metrics import Record
from launcher.tracking.tracker import Cursor, TrackedRun, Tracker, values_of

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

FILE_VERSION = "brain.Event:2"


class TensorboardTracker(Tracker):
    title = "TensorBoard"

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._old_files = sorted(run.folder.glob("events.out.tfevents.*"))
        self.is_new = not self._old_files
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (run.folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._event: type[Event] = Event
        self._write(Event(wall_time=time.time(), file_version=FILE_VERSION))
        if self.is_new:
            settings = f"```\n{json.dumps(run.settings, indent=2, default=str)}\n```"
            self._write(Event(wall_time=time.time(), summary=text_pb("settings", settings)))
        self._sync()

    @classmethod
    def destination(cls, track: TrackConfig, environment: Mapping[str, str], *, syncing: bool = False) -> str | None:
        return "local"

    def recover(self) -> Cursor:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        # For the reader a truncated record ends its file, so this attempt writes to its own file.
        newest = {"train/loss": 0, "eval/loss": 0}
        for path in self._old_files:
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if value.tag in newest:
                        newest[value.tag] = max(newest[value.tag], event.step)
        return Cursor(newest["train/loss"], newest["eval/loss"])

    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            event = self._event(wall_time=parse_time(record.time).timestamp(), step=record.step)
            for tag, value in values_of(record).items():
                event.summary.value.add(tag=tag, simple_value=value)
            self._write(event)
        self._sync()

    def close(self, scores: Mapping[str, float], *, failed: bool) -> None:
        self._sync()
        self._file.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


TRACKER = TensorboardTracker
