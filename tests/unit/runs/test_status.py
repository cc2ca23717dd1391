from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

from launcher.runs.status import Status, read_status, write_status

STATUS = Status(name="demo", state="running", step=7, of=30, epoch=0.7, loss=1.25, tokens_per_s=900.5, pid=42)


def test_a_status_is_read_back_as_written(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", STATUS)
    assert read_status(tmp_path / "status.json") == STATUS


def test_a_loss_that_is_no_number_survives(tmp_path: Path) -> None:
    write_status(tmp_path / "status.json", replace(STATUS, loss=math.nan))
    status = read_status(tmp_path / "status.json")
    assert status is not None and status.loss is not None and math.isnan(status.loss)


def test_readers_never_see_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_status(path, STATUS)
    done = threading.Event()
    seen: list[Status | None] = []

    def poll() -> None:
        while not done.is_set():
            seen.append(read_status(path))

    reader = threading.Thread(target=poll)
    reader.start()
    for step in range(300):
        write_status(path, replace(STATUS, step=step, job_id="x" * 5000))
    done.set()
    reader.join()
    assert seen and None not in seen
    assert sorted(path.parent.iterdir()) == [path]


def test_a_missing_damaged_or_foreign_file_is_no_status(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    for text in ("", "{", "[]", '{"state": "running"}'):
        path.write_text(text)
        assert read_status(path) is None


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"name": "demo", "state": "queued", "new_key": 1}')
    status = read_status(path)
    assert status is not None and status.state == "queued"
