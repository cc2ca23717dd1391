"""Ranks on this machine: started together, stopped together, their end told in exit code, log and events."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launcher.diagnose.verdict import read_verdict
from launcher.errors import ExitCode, RunError, VerdictClass
from launcher.local import ranks
from launcher.local.ranks import HostShare, run_local
from launcher.local.scheduler import LocalScheduler
from launcher.paths import RunPaths
from launcher.runs.attempts import read_attempt
from launcher.runs.events import read_events
from launcher.runs.run_dir import new_attempt
from launcher.runs.states import run_state

MakeRun = Callable[..., Path]
MakeWorker = Callable[[str], list[str]]

SAVE_WHEN_TOLD = """
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
print("ready", flush=True)
(run / f"ready-{rank}").touch()
while not stop: time.sleep(0.02)
time.sleep(0.1)
sys.exit(75)
"""


def start(run: Path, worker: list[str], **options: object) -> int:
    return run_local(run, attempt=new_attempt(run), worker=worker, **options)  # type: ignore[arg-type]


def states(run: Path) -> list[object]:
    return [event.fields["state"] for event in read_events(RunPaths(run).events) if event.event == "state"]


def signal_when(path: Path, numbers: list[signal.Signals], *, every_s: float = 0.0) -> threading.Thread:
    """Sends signals to this process once a file is there."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(every_s)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_every_rank_gets_its_place_its_log_and_the_run(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run(world_size=2)
    code = start(run, make_worker("print(rank, world_size, os.environ['LOCAL_RANK'], attempt, run.name)"))
    assert code == 0
    assert RunPaths(run).rank_log(1, 0).read_text() == "0 2 0 1 one\n"
    assert RunPaths(run).rank_log(1, 1).read_text() == "1 2 1 1 one\n"
    assert states(run)[-1] == "succeeded"


def test_the_environment_is_recorded_by_name_only_and_the_processes_by_number(
    make_run: MakeRun, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-4711")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run = make_run()
    start(run, make_worker("print(os.environ.get('ACCELERATE_USE_CPU'), os.environ['WANDB_API_KEY'] == 'canary-4711')"))
    folder = RunPaths(run).attempt(1)
    assert (folder / "rank-0000.log").read_text() == "None True\n"
    assert "WANDB_API_KEY" in json.loads((folder / "env.json").read_text())
    assert not any("canary-4711" in path.read_text() for path in folder.iterdir())
    assert json.loads((folder / "process.json").read_text())["pid"] == os.getpid()


def test_a_failing_rank_takes_the_others_down_and_its_code_and_last_lines_are_told(
    make_run: MakeRun, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(world_size=3)
    body = "if rank == 1: print('the cause'); sys.exit(5)\ntime.sleep(60)"
    started = time.monotonic()
    with caplog.at_level(logging.ERROR, logger="launcher"):
        code = start(run, make_worker(body))
    assert code == 5
    assert time.monotonic() - started < 20
    assert "ended with exit code 5" in caplog.text and "log of rank 1: " in caplog.text
    assert "  | the cause" in caplog.text
    assert states(run)[-1] == "failed"


def test_the_first_failure_counts_not_those_that_follow_from_it(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run(world_size=2)
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\nif rank == 1: time.sleep(0.3); sys.exit(3)\n"
    body += "time.sleep(60)"
    assert start(run, make_worker(body)) == 3


def test_a_rank_that_ignores_the_end_of_another_is_killed_with_its_children(
    make_run: MakeRun, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.5)
    run = make_run(world_size=2)
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 0:
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    (run / "child").write_text(str(child.pid))
    time.sleep(60)
while not (run / "child").exists(): time.sleep(0.02)
sys.exit(1)
"""
    assert start(run, make_worker(body)) == 1
    child = int((run / "child").read_text())
    deadline = time.monotonic() + 10  # it is killed, but a busy kernel takes a moment to bury it
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_killed_by_a_signal_gives_128_plus_its_number_and_a_hint(
    make_run: MakeRun, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    with caplog.at_level(logging.ERROR, logger="launcher"):
        assert start(run, make_worker("os.kill(os.getpid(), signal.SIGKILL)")) == 137
    assert "most often the node was out of memory" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_reaches_every_rank_and_the_run_can_go_on(
    make_run: MakeRun, make_worker: MakeWorker, number: signal.Signals
) -> None:
    run = make_run(world_size=2)
    sender = signal_when(run / "ready-1", [number])
    assert start(run, make_worker(SAVE_WHEN_TOLD)) == 75
    sender.join()
    assert states(run) == ["validating"]
    assert "preempted" in [event.event for event in read_events(RunPaths(run).events)]


def test_a_stop_while_ranks_still_start_up_is_no_failure(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run(world_size=2)
    sender = signal_when(run / "ready-1", [signal.SIGTERM])
    body = "(run / f'ready-{rank}').touch()\ntime.sleep(60)"
    assert start(run, make_worker(body)) == 75
    sender.join()


def test_a_second_stop_signal_kills(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    sender = signal_when(run / "ready-0", [signal.SIGINT, signal.SIGINT], every_s=0.8)
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(run / 'ready-0').touch()\ntime.sleep(60)"
    assert start(run, make_worker(body)) == 130
    sender.join()
    assert states(run)[-1] == "cancelled"


def test_one_keystroke_that_arrives_twice_is_one_request(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    sender = signal_when(run / "ready-0", [signal.SIGINT, signal.SIGINT])
    assert start(run, make_worker(SAVE_WHEN_TOLD)) == 75
    sender.join()


def test_a_stopped_run_with_the_cancel_mark_is_cancelled(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    RunPaths(run).cancel.touch()
    sender = signal_when(run / "ready-0", [signal.SIGTERM])
    assert start(run, make_worker(SAVE_WHEN_TOLD)) == 75
    sender.join()
    assert states(run)[-1] == "cancelled"


def test_success_told_by_rank_0_is_taken_back_when_another_rank_fails(
    make_run: MakeRun, make_worker: MakeWorker
) -> None:
    run = make_run(world_size=2)
    body = """
from launcher.runs.run_dir import write_state
if rank == 0: write_state(run, "succeeded", attempt=attempt); sys.exit(0)
time.sleep(0.5); sys.exit(3)
"""
    assert start(run, make_worker(body)) == 3
    assert states(run)[-1] == "failed"


def test_a_rank_that_was_killed_is_the_reason_not_what_rank_0_ran_into_without_it(
    make_run: MakeRun, make_worker: MakeWorker
) -> None:
    run = make_run(world_size=2)
    body = """
from launcher.paths import RunPaths
from launcher.runs.run_dir import write_state
from launcher.runs.events import EventWriter
def lost(*_):
    events = EventWriter(RunPaths(run).events, attempt, 0)
    events.write("attempt_end", exit_code=1, reason="RuntimeError", message="connection reset by peer")
    write_state(run, "failed", attempt=attempt)
    sys.exit(1)
signal.signal(signal.SIGTERM, lost)
(run / f"up-{rank}").touch()
while not all((run / f"up-{other}").exists() for other in (0, 1)): time.sleep(0.02)
if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    assert start(run, make_worker(body)) == 137
    state = run_state(run)
    assert (state.state, state.exit_code) == ("failed", 137)
    assert state.reason.startswith("rank 1 ") and "was killed (SIGKILL)" in state.reason


def test_ranks_stop_by_themselves_when_their_starter_is_killed(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    worker = make_worker("(run / 'rank').write_text(str(os.getpid()))\n" + SAVE_WHEN_TOLD)
    code = (
        "from pathlib import Path\nfrom launcher.local.ranks import run_local\n"
        "from launcher.runs.run_dir import new_attempt\n"
        f"run = Path({str(run)!r})\nrun_local(run, attempt=new_attempt(run), worker={worker!r})\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    while not (run / "ready-0").exists():
        assert starter.poll() is None
        time.sleep(0.02)
    rank = psutil.Process(int((run / "rank").read_text()))
    starter.kill()
    starter.wait()
    psutil.wait_procs([rank], timeout=5)
    assert not rank.is_running()


def test_a_run_whose_directory_is_removed_says_so(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    body = "import shutil; shutil.rmtree(run); (run / 'late').touch()"
    with pytest.raises(RunError, match="was removed while it trained"):
        start(run, make_worker(body))
    assert not run.exists()


def test_a_run_whose_rank_0_fails_while_it_is_cancelled_is_cancelled(
    make_run: MakeRun, make_worker: MakeWorker
) -> None:
    run = make_run(world_size=2)
    body = """
(run / "cancel").touch()
if rank == 0: print("error: the disk is full"); sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(60)
"""
    assert start(run, make_worker(body)) == 1
    assert states(run)[-1] == "cancelled"
    verdict = read_verdict(run, 1)
    assert verdict is not None and verdict.verdict_class is VerdictClass.cancelled


def test_a_run_planned_for_several_hosts_is_refused_here(make_run: MakeRun) -> None:
    with pytest.raises(RunError, match=r"planned for 2 hosts.*cluster\.hosts"):
        LocalScheduler().submit(make_run(world_size=2, nodes=2))


def test_a_second_start_is_refused_while_ranks_of_a_killed_starter_still_save(
    make_run: MakeRun, make_worker: MakeWorker
) -> None:
    from launcher.runs.run_dir import is_locked

    run = make_run()
    worker = make_worker(SAVE_WHEN_TOLD.replace("time.sleep(0.1)", "time.sleep(1.5)"))
    code = (
        "from pathlib import Path\nfrom launcher.local.ranks import run_local\n"
        "from launcher.runs.run_dir import lock_run, new_attempt\n"
        f"run = Path({str(run)!r})\n"
        "with lock_run(run) as lock:\n"
        f"    run_local(run, attempt=new_attempt(run), worker={worker!r}, lock=lock)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    while not (run / "ready-0").exists():
        assert starter.poll() is None
        time.sleep(0.02)
    starter.kill()
    starter.wait()
    assert is_locked(run)
    deadline = time.monotonic() + 10
    while is_locked(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_locked(run)


HANG = """
import json
beat = {"rank": rank, "host": "here", "pid": os.getpid(), "phase": "step", "step": 5, "beat": 9, "time": "now"}
folder = run / "attempts" / f"{attempt:04d}"
(folder / f"beat-{rank:04d}.json").write_text(json.dumps({**beat, "limit_s": 0.3 if rank else 300.0}))
if rank == 0: (folder / "stacks-0000.txt").write_text("Timeout (0:00:00)!\\n")
time.sleep(600)
"""


def test_a_rank_that_hangs_is_named_and_ends_the_run(
    make_run: MakeRun, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(world_size=2)
    assert start(run, make_worker(HANG)) == ExitCode.HANG
    assert "rank 1 has made no progress in phase step" in caplog.text
    verdict = read_verdict(run, 1)
    assert verdict is not None
    assert (verdict.verdict_class, verdict.rank, verdict.exit_code) == (VerdictClass.hang, 1, ExitCode.HANG)
    (hang,) = [event.fields for event in read_events(RunPaths(run).events) if event.event == "hang"]
    assert (hang["rank_failed"], hang["phase"]) == (1, "step")
    assert run_state(run).state == "failed"


def test_every_attempt_leaves_a_record_and_a_verdict(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run(world_size=2)
    start(run, make_worker("sys.exit(3 if rank else 0)"))
    record, verdict = read_attempt(run, 1), read_verdict(run, 1)
    assert record is not None and verdict is not None
    assert (record.starter, record.world_size, record.exit_code) == ("local", 2, 3)
    assert record.started <= record.ended
    assert (verdict.verdict_class, verdict.rank) == (VerdictClass.checkpoint, 1)
    start(run, make_worker(""))
    assert read_verdict(run, 2).verdict_class is VerdictClass.done  # type: ignore[union-attr]


def test_a_stop_signal_to_one_rank_stops_all(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run(world_size=2)
    assert start(run, make_worker("if rank == 1: sys.exit(75)\n" + SAVE_WHEN_TOLD)) == ExitCode.PREEMPTED


def test_a_signal_before_a_rank_can_catch_it_waits_for_it(make_run: MakeRun, make_worker: MakeWorker) -> None:
    run = make_run()
    command = make_worker("")
    Path(command[1]).write_text(
        "import os, signal, sys\n"
        "for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT): os.kill(os.getpid(), number)\n"
        "from launcher.train.stop import STOP\n"
        "STOP.arm()\n"
        "sys.exit(75 if STOP.requested else 1)\n"
    )
    assert start(run, command) == ExitCode.PREEMPTED


def test_ranks_of_another_host_count_from_zero_there_and_meet_at_the_first(
    make_run: MakeRun, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")  # the user knows better
    run = make_run(world_size=8, nodes=2)
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME"
    worker = make_worker(f"(run / f'seen-{{rank}}').write_text(' '.join(os.environ[n] for n in {names!r}.split()))")
    share = HostShare(first_rank=4, num_ranks=4, master_address="hosta", master_port=4321, interface="eth1")
    assert start(run, worker, share=share) == 0
    seen = {path.name: path.read_text() for path in run.glob("seen-*")}
    assert seen == {f"seen-{4 + i}": f"{4 + i} {i} 8 4 hosta 4321 eth1 ib0" for i in range(4)}
