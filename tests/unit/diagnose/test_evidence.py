"""What srun, slurmd and the ranks leave behind, read as it was written. The texts are those of real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.diagnose.evidence import StarterReport, collect
from launcher.diagnose.log_tail import error_block, exception_line, read_tail, traceback_place
from launcher.diagnose.srun_messages import MessageKind, SlurmMessage, expand_numbers, parse_messages
from tests.unit.diagnose.failed_attempts import Attempt, at


def facts(text: str) -> list[tuple[MessageKind, str, list[int], int | None]]:
    return [(fact.kind, fact.node, fact.ranks, fact.exit_code) for fact in parse_messages(text)]


def test_ends_of_ranks_are_read_in_order() -> None:
    text = """\
srun: error: n2: task 1: Exited with exit code 3
srun: launch/slurm: _step_signal: Terminating StepId=6.0
srun: error: n1: task 0: Terminated
srun: Force Terminated StepId=6.0
"""
    assert facts(text) == [(MessageKind.exited, "n2", [1], 3), (MessageKind.signalled, "n1", [0], -15)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Killed", -9),
        ("Segmentation fault", -11),
        ("Segmentation fault (core dumped)", -11),
        ("Aborted", -6),
        ("Bus error", -7),
    ],
)
def test_signals_are_read_by_name(words: str, code: int) -> None:
    assert facts(f"srun: error: n2: task 1: {words}") == [(MessageKind.signalled, "n2", [1], code)]


def test_several_ranks_may_end_in_one_line() -> None:
    assert facts("srun: error: gpu-07.cluster: tasks 8-10,15: Killed") == [
        (MessageKind.signalled, "gpu-07.cluster", [8, 9, 10, 15], -9)
    ]
    assert facts("srun: error: n1: tasks 0-3: Out Of Memory") == [(MessageKind.out_of_memory, "n1", [0, 1, 2, 3], -9)]


@pytest.mark.parametrize(
    ("line", "kind", "node"),
    [
        ("srun: error: Node failure on n2", MessageKind.node_failure, "n2"),
        (
            "slurmstepd-n1: error: *** STEP 16.0 ON n1 CANCELLED AT 2026-11-24T02:21:45 DUE TO NODE FAILURE, "
            "SEE SLURMCTLD LOG FOR DETAILS ***",
            MessageKind.node_failure,
            "",
        ),
        (
            "slurmstepd: error: *** STEP 19.0 ON n1 CANCELLED AT 2026-11-24T02:23:27 DUE TO TIME LIMIT ***",
            MessageKind.time_limit,
            "",
        ),
        (
            "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-24T02:21:11 DUE TO PREEMPTION ***",
            MessageKind.preempted,
            "",
        ),
        (
            "slurmstepd: error: *** JOB 14 ON n1 CANCELLED AT 2026-11-24T02:21:22 DUE TO JOB REQUEUE ***",
            MessageKind.requeued,
            "",
        ),
        ("slurmstepd-n1: error: *** JOB 10 ON n1 CANCELLED AT 2026-11-24T02:20:53 ***", MessageKind.cancelled, ""),
        ("slurmstepd-n2: error: Detected 1 oom-kill event(s) in StepId=3.0.", MessageKind.out_of_memory, "n2"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the", MessageKind.out_of_memory, ""),
        (
            "slurmstepd-n2: error: execve(): /nonexistent/python: No such file or directory",
            MessageKind.start_failed,
            "n2",
        ),
        (
            "srun: error: Task launch for StepId=5.0 failed on node n2: Communication connection failure",
            MessageKind.start_failed,
            "n2",
        ),
        (
            "srun: error: Unable to create step for job 5: More processors requested than permitted",
            MessageKind.start_failed,
            "",
        ),
        ("srun: error: Only allocated 2 nodes asked for 5", MessageKind.start_failed, ""),
    ],
)
def test_reasons_are_recognised(line: str, kind: MessageKind, node: str) -> None:
    assert parse_messages(line) == [SlurmMessage(kind, line, node)]


def test_a_step_that_srun_itself_ends_is_no_cancellation() -> None:
    assert parse_messages("slurmstepd-n1: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-24T02:20:44 ***") == []


def test_what_a_program_prints_is_not_taken_for_slurm() -> None:
    assert parse_messages("my log: the job was CANCELLED AT noon DUE TO TIME LIMIT") == []


@pytest.mark.parametrize(("text", "numbers"), [("0", [0]), ("0-2,5", [0, 1, 2, 5]), ("", []), ("x,3", [3])])
def test_numbers_are_expanded(text: str, numbers: list[int]) -> None:
    assert expand_numbers(text) == numbers


TRACEBACK = """\
02:36:00 INFO saved step=0 bytes=395688 seconds=0.0
Writing model shards:   0%|          | 0/1\rWriting model shards: 100%|##########| 1/1
Traceback (most recent call last):
  File "/work/launcher/worker.py", line 145, in _guarded
    return work()
           ^^^^^^
  File "/work/launcher/train/step.py", line 55, in optimizer_step
    engine.backward(loss)
  File "/venv/lib/python3.11/site-packages/torch/autograd/graph.py", line 979, in _engine_run_backward
    return run_backward()
           ^^^^^^^^^^^^^^
RuntimeError: something broke
  with a second line
slurmstepd-n1: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-24T02:20:44 ***
"""


def test_the_end_of_a_traceback_is_what_matters() -> None:
    block = error_block(TRACEBACK)
    assert block[-2:] == ["RuntimeError: something broke", "  with a second line"]
    assert not any("INFO" in line or "shards" in line or "^^^" in line or "CANCELLED" in line for line in block)
    assert exception_line(block) == "RuntimeError: something broke"


def test_the_place_is_the_innermost_frame_of_our_own() -> None:
    assert traceback_place(TRACEBACK) == "launcher/train/step.py:55 optimizer_step"


def test_an_error_message_is_shown_from_its_first_line() -> None:
    text = "02:36:00 INFO model=x\nerror: step 3: loss is nan\n  examples of the step: train.jsonl:4\n"
    assert error_block(text) == ["error: step 3: loss is nan", "  examples of the step: train.jsonl:4"]


def test_lines_and_their_number_are_bounded() -> None:
    block = error_block("\n".join(f"{number} " + "x" * 5000 for number in range(500)))
    assert len(block) <= 14 and max(map(len, block)) <= 400 and block[-1].startswith("499 ")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"\xff\n" * 200_000 + b"last\n")
    assert len(read_tail(log)) <= 64 * 1024 and read_tail(log).endswith("\nlast\n")
    assert read_tail(tmp_path / "none") == ""


def test_evidence_holds_steps_checkpoints_and_ends(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    attempt.trained(17, saved=15)
    attempt.end(0, 1, "RuntimeError", "x")
    attempt.beat(3, phase="save", step=17)
    attempt.log(2, "hello\n")
    found = collect(attempt.root, 1, StarterReport(exit_code=1))
    assert (found.step_start, found.step_end) == (0, 17)
    assert (found.checkpoint_before, found.checkpoint_after, found.checkpoint_time) == (-1, 15, at(210))
    assert [rank.node for rank in found.ranks] == ["n1", "n1", "n2", "n2"]
    assert found.ranks[0].end is not None and found.ranks[1].end is None
    assert found.ranks[2].log == "hello\n"
    assert found.ranks[3].beat is not None and found.ranks[3].beat.phase == "save"
    assert (found.started, found.ended) == (at(0), at(3600))


def test_the_steps_of_a_later_attempt_start_at_its_checkpoint(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    attempt.trained(17, saved=15)
    later = Attempt(tmp_path / "run", number=2)
    later.event("resume", 100, step=15)
    found = collect(later.root, 2, StarterReport(exit_code=1))
    assert (found.step_start, found.step_end) == (15, 15)
    assert (found.checkpoint_before, found.checkpoint_after, found.checkpoint_time) == (15, 15, "")


def test_words_of_slurmd_in_the_log_of_a_rank_count(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    attempt.log(0, "slurmstepd-n1: error: *** STEP 9.0 ON n1 CANCELLED AT 2026-11-24T02:23:27 DUE TO TIME LIMIT ***\n")
    attempt.paths.job_log(1).write_text("srun: error: n2: task 2: Terminated\n")
    found = collect(attempt.root, 1, StarterReport(exit_code=143))
    assert [fact.kind for fact in found.messages] == [MessageKind.signalled, MessageKind.time_limit]


def test_secrets_in_logs_do_not_get_into_the_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")
    attempt = Attempt(tmp_path / "run")
    attempt.log(0, "error: 401 for hf_canary_0123456789 at https://me:pass@hub.example/model\n")
    attempt.paths.job_log(1).write_text("srun: hf_canary_0123456789\n")
    found = repr(collect(attempt.root, 1, StarterReport(exit_code=1)))
    assert "canary" not in found and "me:pass" not in found and "[secret]" in found


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    for path in (
        attempt.paths.config,
        attempt.paths.attempt_record(1),
        attempt.paths.rank_end(1, 0),
        attempt.paths.heartbeat(1, 0),
        attempt.paths.metrics,
    ):
        path.write_bytes(b'{"rank": "\xff')
    found = collect(attempt.root, 1, StarterReport(exit_code=1))
    assert found.record is None and found.config is None and found.step_end == 0


def test_an_attempt_without_any_file_is_no_error(tmp_path: Path) -> None:
    assert collect(tmp_path / "gone", 3, StarterReport(exit_code=None)).attempt == 3
