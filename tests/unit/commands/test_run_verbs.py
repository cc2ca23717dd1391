"""status, logs, cancel and verify on real run directories with real processes, training left out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli
from launcher.checkpoint import commit
from launcher.checkpoint.manifest import Manifest, TrainState, seal_file
from launcher.paths import RunPaths
from launcher.runs.events import EventWriter
from launcher.runs.run_dir import new_attempt, write_state
from tests.made import make_run

MakeCheckpoint = Callable[[Path, int], Path]

TRAIN = """
import os, pathlib, signal, sys, time
run, rank = pathlib.Path(sys.argv[2]), os.environ["RANK"]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("hello from", rank, flush=True)
(run / f"ready-{rank}").touch()
while not stop: time.sleep(0.02)
print("saved", flush=True)
sys.exit(75)
"""
START = """
import sys
from pathlib import Path
from launcher.local.ranks import run_local
from launcher.runs.run_dir import lock_run, new_attempt
run = Path(sys.argv[1])
with lock_run(run) as lock:
    sys.exit(run_local(run, attempt=new_attempt(run), worker=[sys.executable, sys.argv[2]], lock=lock))
"""


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run named `one` of two ranks, under runs/ of the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_run(Path("runs"), world_size=2)


@pytest.fixture
def make_checkpoint() -> MakeCheckpoint:
    """`make_checkpoint(run_dir, step)` commits one as training does."""

    def make(run: Path, step: int) -> Path:
        paths = RunPaths(run)
        staging = commit.begin(paths, step, attempt=1)
        (staging / "weights.bin").write_bytes(bytes([step]) * 1000)
        manifest = Manifest(
            run_id="abc123",
            attempt=1,
            world_size=2,
            strategy="ddp",
            method="full",
            config_hash="hash",
            state=TrainState(step=step),
            files=[seal_file(staging, staging / "weights.bin")],
        )
        events = EventWriter(paths.events, 1, 0)
        published = commit.publish(
            paths, staging, manifest, journal=lambda sha256: events.write("checkpoint_prepared", manifest_sha256=sha256)
        )
        events.close()
        return published.path

    return make


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Path], subprocess.Popen[bytes]]:
    """Starts two ranks of a run in another process, and returns when both are up."""

    def begin(run: Path) -> subprocess.Popen[bytes]:
        (tmp_path / "train.py").write_text(TRAIN)
        starter = subprocess.Popen([sys.executable, "-c", START, str(run), str(tmp_path / "train.py")])
        deadline = time.monotonic() + 20
        while not all((run / f"ready-{rank}").exists() for rank in (0, 1)):
            assert starter.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return starter

    return begin


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, object]:
    """Exit code and the one document on stdout."""
    capsys.readouterr()
    code = cli.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_status_lists_every_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out.splitlines()
    titles = "run state step left loss val loss tokens/s checkpoint attempt nodes goodput updated"
    assert shown[0].split() == titles.split()
    assert shown[1].split()[:2] == ["one", "validating"]


def test_status_of_one_run_says_what_to_do_next(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "one"]) == 0
    assert "launcher train --run one" in capsys.readouterr().out


def test_status_shows_a_reason_word_for_word(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = EventWriter(RunPaths(run_dir).events, 2, 0)
    events.write("attempt_end", exit_code=2, reason="accept it: data.allow=[duplicate] [/red]")
    events.write("state", state="failed", reason="accept it: data.allow=[duplicate] [/red]")
    events.close()
    assert cli.main(["status", "one"]) == 0
    shown = capsys.readouterr().out
    assert "accept it: data.allow=[duplicate] [/red]" in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_status_as_json_is_a_list_or_one_object(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, listed = as_json(capsys, "status")
    assert code == 0 and isinstance(listed, list) and listed[0]["name"] == "one"
    _, single = as_json(capsys, "status", "one")
    assert isinstance(single, dict)
    assert {key: value for key, value in single.items() if key in listed[0] and key != "goodput"} == {
        key: value for key, value in listed[0].items() if key != "goodput"
    }
    assert {"attempts", "verdicts", "stages", "goodput", "bill"} <= single.keys()


def test_status_without_runs_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 0
    assert "launcher train" in capsys.readouterr().out


def test_logs_mark_each_line_with_its_rank(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in (new_attempt(run_dir), new_attempt(run_dir)):
        for rank in (0, 1):
            RunPaths(run_dir).rank_log(attempt, rank).write_text(f"attempt {attempt}\nsecond line\n")
    assert cli.main(["logs", "one"]) == 0
    assert capsys.readouterr().out == "[0] attempt 2\n[0] second line\n[1] attempt 2\n[1] second line\n"
    cli.main(["logs", "one", "--rank", "1", "--attempt", "1"])
    assert capsys.readouterr().out == "attempt 1\nsecond line\n"
    cli.main(["logs", "one", "-n", "1", "--rank", "0"])
    assert capsys.readouterr().out == "second line\n"
    _, document = as_json(capsys, "logs", "one", "--attempt", "0", "--rank", "0")
    assert document == [
        {"attempt": number, "rank": 0, "lines": [f"attempt {number}", "second line"]} for number in (1, 2)
    ]


def test_logs_of_all_ranks_and_the_job_are_merged_by_time(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = new_attempt(run_dir)
    RunPaths(run_dir).rank_log(attempt, 0).write_text("10:00:01 INFO a\nstep 1\n10:00:05 INFO c\n")
    RunPaths(run_dir).rank_log(attempt, 1).write_text("10:00:03 WARNING b\n")
    RunPaths(run_dir).job_log(attempt).write_text("10:00:00 INFO begins\n")
    assert cli.main(["logs", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[job] 10:00:00 INFO begins",
        "[0] 10:00:01 INFO a",
        "[0] step 1",
        "[1] 10:00:03 WARNING b",
        "[0] 10:00:05 INFO c",
    ]


def test_logs_of_all_attempts_say_where_each_begins(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in (new_attempt(run_dir), new_attempt(run_dir)):
        RunPaths(run_dir).rank_log(attempt, 0).write_text(f"of {attempt}\n")
    assert cli.main(["logs", "one", "--attempt", "0", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "--- attempt 1 ---\nof 1\n--- attempt 2 ---\nof 2\n"


def test_a_watch_of_a_run_that_is_over_ends_by_itself(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(run_dir, "failed", reason="it was a test")
    assert cli.main(["status", "one", "--watch"]) == 0
    assert capsys.readouterr().out.count("it was a test") == 1


def test_a_watch_without_a_terminal_prints_what_changes_and_ends_well_on_ctrl_c(run_dir: Path) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "launcher", "status", "--watch", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        # Shells start what goes into the background, as these tests may, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert watcher.stdout is not None
    seen = [watcher.stdout.readline() for _ in range(3)]
    assert seen[2].split()[:2] == ["one", "validating"]
    write_state(run_dir, "running")
    seen = [watcher.stdout.readline() for _ in range(3)]
    assert seen[2].split()[:2] == ["one", "failed"]  # nobody runs it
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(30) == 0


def test_logs_that_are_not_there_are_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["logs", "one"]) == 2
    assert "one has no logs" in capsys.readouterr().err
    RunPaths(run_dir).rank_log(new_attempt(run_dir), 0).write_text("x\n")
    assert cli.main(["logs", "one", "--rank", "7"]) == 2
    assert "there are attempts [1] and ranks [0]" in capsys.readouterr().err


def test_logs_follow_a_run_to_its_end(
    run_dir: Path, start: Callable[[Path], subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    starter = start(run_dir)
    follower = subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "-f", "one", "--rank", "1"], stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.5)
    starter.terminate()
    assert starter.wait(20) == 75
    assert follower.communicate(timeout=60)[0] == "hello from 1\nsaved\n"


def test_cancel_lets_the_run_save_and_says_what_is_known_of_the_model(
    run_dir: Path,
    start: Callable[[Path], subprocess.Popen[bytes]],
    make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starter = start(run_dir)
    make_checkpoint(run_dir, 2)
    assert cli.main(["cancel", "one"]) == 0
    assert starter.wait(20) == 75
    shown = capsys.readouterr().out
    assert "one: cancelled" in shown
    assert "last good checkpoint is step 2" in shown
    assert "quality of a cancelled model is not known" in shown
    assert "saved" in RunPaths(run_dir).rank_log(1, 1).read_text()
    _, state = as_json(capsys, "status", "one")
    assert isinstance(state, dict) and state["state"] == "cancelled"


def test_cancel_now_does_not_wait_for_a_save(
    run_dir: Path, start: Callable[[Path], subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    starter = start(run_dir)
    code, document = as_json(capsys, "cancel", "one", "--now")
    assert code == 0 and isinstance(document, dict)
    assert (document["state"], document["last_good_checkpoint_step"]) == ("cancelled", None)
    assert starter.wait(20) == 137
    assert "saved" not in RunPaths(run_dir).rank_log(1, 1).read_text()


def test_a_dry_run_of_cancel_stops_nothing(
    run_dir: Path, start: Callable[[Path], subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    starter = start(run_dir)
    assert cli.main(["cancel", "one", "--dry-run"]) == 0
    assert "would stop one" in capsys.readouterr().out
    assert starter.poll() is None
    starter.terminate()
    assert starter.wait(20) == 75


def test_a_cancelled_run_cannot_be_cancelled_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cancel", "one"]) == 0
    assert cli.main(["cancel", "one"]) == 2
    assert "was cancelled. There is nothing to cancel" in capsys.readouterr().err


def test_verify_passes_whole_checkpoints(
    run_dir: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(run_dir, 2)
    make_checkpoint(run_dir, 4)
    code, document = as_json(capsys, "verify", "one")
    assert code == 0 and isinstance(document, dict) and document["ok"] is True
    assert [item["step"] for item in document["checkpoints"]] == [2, 4]


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "weights.bin").read_bytes())
    data[500] ^= 1
    (folder / "weights.bin").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (flip_a_bit, "content does not match"),
        (lambda folder: (folder / "weights.bin").unlink(), "missing"),
        (lambda folder: (folder / "more.bin").touch(), "not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not JSON"),
    ],
)
def test_verify_names_what_is_damaged_and_exits_with_3(
    run_dir: Path,
    make_checkpoint: MakeCheckpoint,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    complaint: str,
) -> None:
    make_checkpoint(run_dir, 2)
    harm(make_checkpoint(run_dir, 4))
    code, document = as_json(capsys, "verify", "one")
    assert code == 3 and isinstance(document, dict)
    whole, damaged = document["checkpoints"]
    assert whole["problems"] == []
    assert complaint in " ".join(damaged["problems"])
    assert cli.main(["verify", "one"]) == 3
    assert "step-000004  damaged" in capsys.readouterr().out


def test_verify_refuses_a_checkpoint_that_this_run_did_not_write(
    run_dir: Path, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(run_dir, 2)
    RunPaths(run_dir).events.unlink()
    assert cli.main(["verify", "one"]) == 3
    assert "its manifest was not written by this run" in capsys.readouterr().out
