"""The state of a run, from what it wrote and from who is alive."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import EventWriter
from launcher.runs.run_dir import lock_run, new_attempt, write_state
from launcher.runs.states import is_alive, run_process, run_state
from launcher.runs.status import Status, write_status

MakeRun = Callable[..., Path]


def write_events(run: Path, *names: str, attempt: int = 1) -> None:
    writer = EventWriter(RunPaths(run).events, attempt, 0)
    for name in names:
        kind, _, state = name.partition(":")
        writer.write(kind, **({"state": state} if state else {}))
    writer.close()


@contextmanager
def worker_of_another_starter(*, words: list[str]) -> Iterator[int]:
    """A process that stands for rank 0 under torchrun: it holds no lock."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_run_that_was_never_started_says_how_to_start_it(make_run: MakeRun) -> None:
    state = run_state(make_run())
    assert (state.state, state.alive, state.attempt) == ("validating", False, 0)
    assert state.hint == "launcher train --run one"


def test_a_run_whose_lock_is_held_is_running(make_run: MakeRun) -> None:
    run = make_run()
    new_attempt(run)
    write_events(run, "attempt_start", "state:running")
    with lock_run(run):
        state = run_state(run)
    assert (state.state, state.alive, state.hint) == ("running", True, "")


def test_a_running_run_without_processes_has_failed_and_can_go_on(make_run: MakeRun) -> None:
    run = make_run()
    new_attempt(run)
    write_events(run, "attempt_start", "state:running")
    state = run_state(run)
    assert (state.state, state.alive) == ("failed", False)
    assert "processes are gone" in state.reason
    assert state.hint == "launcher train --run one"


def test_a_stopped_run_that_saved_is_preempted_not_failed(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running", "attempt_end", "preempted")
    state = run_state(run)
    assert (state.state, state.preempted) == ("running", True)


def test_a_run_that_went_on_after_a_stop_and_died_has_failed(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running", "preempted")
    write_events(run, "attempt_start", "state:running", attempt=2)
    assert run_state(run).state == "failed"


def test_a_stopped_run_with_the_cancel_mark_is_cancelled(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running", "preempted")
    RunPaths(run).cancel.touch()
    state = run_state(run)
    assert (state.state, state.preempted) == ("cancelled", False)


def test_the_reason_of_a_failure_is_the_message_written_with_it(make_run: MakeRun) -> None:
    run = make_run()
    writer = EventWriter(RunPaths(run).events, 1, 0)
    writer.write("attempt_end", exit_code=5, reason="NonFiniteError", message="loss is NaN at step 7")
    writer.write("state", state="failed")
    writer.close()
    state = run_state(run)
    assert (state.state, state.exit_code, state.reason) == ("failed", 5, "loss is NaN at step 7")


def test_a_worker_of_another_starter_counts_as_alive(make_run: MakeRun) -> None:
    run = make_run()
    with worker_of_another_starter(words=["-m", "launcher.train"]) as pid:
        write_status(RunPaths(run).status, Status(name="one", state="running", pid=pid, host=socket.gethostname()))
        assert is_alive(run) is True
    assert is_alive(run) is False


def test_another_program_with_the_same_process_number_does_not_count(make_run: MakeRun) -> None:
    run = make_run()
    with worker_of_another_starter(words=["something-else"]) as pid:
        write_status(RunPaths(run).status, Status(name="one", state="running", pid=pid, host=socket.gethostname()))
        assert is_alive(run) is False


def test_nothing_is_claimed_about_processes_on_another_machine(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running")
    write_status(RunPaths(run).status, Status(name="one", state="running", pid=os.getpid(), host="elsewhere"))
    state = run_state(run)
    assert (state.state, state.alive) == ("running", None)


def test_a_run_that_was_preempted_on_another_host_is_not_running_there_for_ever(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running", "attempt_end", "preempted")
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=1, pid=1, host="elsewhere"))
    state = run_state(run)
    assert (state.state, state.alive, state.preempted) == ("running", False, True)
    assert state.hint == "launcher train --run one"


def test_the_late_end_of_an_older_attempt_says_nothing_about_a_newer_one_on_another_host(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running")
    write_events(run, "attempt_start", "state:running", attempt=2)
    write_events(run, "attempt_end")
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=2, pid=1, host="elsewhere"))
    assert run_state(run).alive is None


def test_a_run_that_moved_here_and_was_killed_before_it_trained_has_failed(make_run: MakeRun) -> None:
    run = make_run()
    write_events(run, "attempt_start", "state:running", "attempt_end", "preempted")
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=1, pid=1, host="elsewhere"))
    record = AttemptRecord(attempt=2, starter="local", host=socket.gethostname(), world_size=1, started="2026-01-02")
    RunPaths(run).attempt(2).mkdir()
    write_attempt(run, record)
    write_events(run, "attempt_start", attempt=2)
    state = run_state(run)
    assert (state.state, state.alive) == ("failed", False)
    with lock_run(run):
        assert run_state(run).alive is True


def test_a_finished_run_stays_finished_whatever_its_process_number_does_now(make_run: MakeRun) -> None:
    run = make_run()
    write_state(run, "succeeded", attempt=1)
    write_status(
        RunPaths(run).status, Status(name="one", state="succeeded", pid=os.getpid(), host=socket.gethostname())
    )
    state = run_state(run)
    assert (state.state, state.alive, state.hint) == ("succeeded", False, "")


def test_no_starter_is_named_when_nobody_holds_the_run(make_run: MakeRun) -> None:
    assert run_process(make_run()) is None
