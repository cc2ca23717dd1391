"""One attempt of each kind of end, as its files lie, and what is made of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ClusterKind
from launcher.config.schema import RunConfig
from launcher.diagnose.conclude import explain
from launcher.diagnose.evidence import JobEnd, StarterReport, collect
from launcher.diagnose.verdict import ACTIONS, Action, Verdict, read_verdict, read_verdicts, write_verdict
from launcher.errors import (
    CheckpointError,
    ConfigMismatch,
    DataError,
    DeviceError,
    ErrorOnMain,
    ExitCode,
    MicroBatchTooLarge,
    ModelError,
    NonFiniteError,
    Preempted,
    RanksMissing,
    RendezvousFailed,
    SaveFailed,
    SupersededError,
    VerdictClass,
)
from launcher.runs.attempts import write_attempt
from launcher.runs.hang_detector import Stall
from tests.unit.diagnose.failed_attempts import Attempt, at

GLOO_ECHO = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:33694: "
    "Connection reset by peer. This is typically caused by a remote worker hanging or bugs in the application."
)


def slurm_config() -> RunConfig:
    config = RunConfig()
    config.cluster.kind = ClusterKind.slurm
    return config


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt(tmp_path / "run", config=slurm_config())
    made.trained(17, saved=15)
    return made


def verdict_of(
    attempt: Attempt, exit_code: int | None = 1, srun: str = "", state: str = "", stopped: str = ""
) -> Verdict:
    if srun:
        attempt.paths.job_log(attempt.number).write_text(srun)
    report = StarterReport(exit_code=exit_code, job=JobEnd(state=state), stopped_by=stopped)
    return explain(collect(attempt.root, attempt.number, report))


def others_lose_the_connection(attempt: Attempt, *ranks: int) -> None:
    for rank in ranks:
        attempt.end(rank, 1, "RuntimeError", GLOO_ECHO)
        attempt.log(
            rank, f'Traceback (most recent call last):\n  File "x.py", line 1, in f\nRuntimeError: {GLOO_ECHO}\n'
        )


def test_every_class_has_one_action() -> None:
    assert set(ACTIONS) == set(VerdictClass)


def test_a_finished_attempt_is_done_and_lost_nothing(attempt: Attempt) -> None:
    for rank in range(4):
        attempt.end(rank, 0)
    found = verdict_of(attempt, 0)
    assert (found.verdict_class, found.action, found.device_hours_lost) == (VerdictClass.done, Action.none, 0)
    assert found.device_hours == pytest.approx(4.0)


def test_a_killed_rank_is_named_and_not_those_that_lost_its_connection(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1, 3)
    srun = """\
srun: error: n2: task 2: Killed
srun: launch/slurm: _step_signal: Terminating StepId=7.0
srun: error: n1: tasks 0-1: Exited with exit code 1
srun: error: n2: task 3: Exited with exit code 1
"""
    found = verdict_of(attempt, 137, srun)
    assert (found.verdict_class, found.rank, found.node, found.exit_code) == (
        VerdictClass.out_of_memory_host,
        2,
        "n2",
        -9,
    )
    assert "srun: error: n2: task 2: Killed" in found.lines
    assert found.setting == "cluster.memory_gib_per_node=0"
    assert found.action is Action.requeue


def test_a_killed_rank_is_found_without_the_words_of_srun(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1, 3)
    found = verdict_of(attempt, 137)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.out_of_memory_host, 2, "n2")


def test_the_oom_killer_is_named_where_slurm_saw_it(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1)
    srun = (
        "slurmstepd-n2: error: Detected 1 oom-kill event(s) in StepId=3.0. Some of your processes may have been\n"
        "srun: error: n2: task 3: Out Of Memory\n"
    )
    found = verdict_of(attempt, 137, srun)
    assert (found.verdict_class, found.rank) == (VerdictClass.out_of_memory_host, 3)
    assert "was killed: the node was out of memory" in found.summary


def test_time_and_work_lost_are_counted_from_the_newest_checkpoint(attempt: Attempt) -> None:
    attempt.end(1, 1, "ValueError", "boom")
    found = verdict_of(attempt)
    assert (found.step_end, found.checkpoint_after) == (17, 15)
    assert found.device_hours == pytest.approx(4.0)
    assert found.device_hours_lost == pytest.approx(4 * (3600 - 210) / 3600)
    assert found.made_progress


def test_an_error_of_our_code_is_a_bug_with_its_place(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 2)
    attempt.end(1, 1, "ValueError", "boom", seconds=3580)
    attempt.log(
        1,
        "Traceback (most recent call last):\n"
        '  File "/home/me/launcher/train/step.py", line 55, in optimizer_step\n    x()\n'
        '  File "/venv/lib/python3.11/site-packages/torch/nn/functional.py", line 9, in linear\n    y()\n'
        "ValueError: boom\n",
    )
    found = verdict_of(attempt)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.bug, 1, "n1")
    assert found.summary == "rank 1 on n1: ValueError: boom"
    assert found.place == "launcher/train/step.py:55 optimizer_step"
    assert found.lines[-1] == "ValueError: boom"
    assert found.action is Action.requeue


@pytest.mark.parametrize(
    ("error", "message", "kind"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "out_of_memory_gpu"),
        ("RuntimeError", "CUDA error: out of memory", "out_of_memory_gpu"),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered", "node_failure"),
        ("RuntimeError", "No CUDA GPUs are available: no CUDA-capable device is detected", "node_failure"),
        ("MemoryError", "", "out_of_memory_host"),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "out_of_memory_host"),
        ("ModuleNotFoundError", "No module named 'deepspeed'", "configuration"),
        ("ImportError", "libcudart.so.12: cannot open shared object file: No such file", "configuration"),
        ("GatedRepoError", "401 Client Error. Cannot access gated repo", "configuration"),
        ("HfHubHTTPError", "403 Client Error: Forbidden for url", "configuration"),
        ("RuntimeError", "The client socket has timed out after 300000ms while trying to connect", "rendezvous"),
        ("OSError", "[Errno 28] No space left on device: '/runs/r/metrics.jsonl'", "disk"),
        ("DistBackendError", "NCCL watchdog: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", "hang"),
    ],
)  # fmt: skip
def test_errors_of_other_packages_are_told_apart_by_their_text(
    attempt: Attempt, error: str, message: str, kind: str
) -> None:
    others_lose_the_connection(attempt, 0, 1, 2)
    attempt.end(3, 1, error, message)
    found = verdict_of(attempt)
    assert found.verdict_class is VerdictClass(kind)
    if found.verdict_class is not VerdictClass.rendezvous:
        assert (found.rank, found.node) == (3, "n2")
    assert message.split("\n")[0][:40] in found.summary


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MicroBatchTooLarge("too large", tokens=8192), "out_of_memory_gpu"),
        (ModelError("leaks"), "configuration"),
        (DataError("train.jsonl:3: no messages"), "data"),
        (DeviceError("no GPU"), "node_failure"),
        (OSError(errno.EDQUOT, "full"), "disk"),
        (SaveFailed("not saved", step=20, rank=3, errno=errno.EIO, path="x"), "disk"),
        (ConfigMismatch("other settings", path="step-10", differing=["method.kind"]), "configuration"),
        (CheckpointError("none can be trusted"), "checkpoint"),
    ],
)
def test_an_error_of_ours_is_told_by_its_class_and_fields(attempt: Attempt, error: Exception, kind: str) -> None:
    others_lose_the_connection(attempt, 0, 1, 2)
    attempt.end_with(3, error)
    found = verdict_of(attempt)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass(kind), 3, "n2")
    assert str(error) in found.summary


def test_what_all_ranks_agree_on_blames_none_of_them(attempt: Attempt) -> None:
    for rank in range(4):
        message = "step 3: loss is nan; no weight was changed\n  examples: a.jsonl:3"
        attempt.end_with(rank, NonFiniteError(message, step=3, sample_ids=[3]))
    found = verdict_of(attempt, 5)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.non_finite, None, "")
    assert found.summary == "step 3: loss is nan; no weight was changed"
    assert "  examples: a.jsonl:3" in found.lines


def test_an_import_that_fails_before_our_code_runs_is_found_in_the_log(attempt: Attempt) -> None:
    attempt.log(
        2,
        "Traceback (most recent call last):\n"
        '  File "<frozen runpy>", line 189, in _run_module_as_main\n'
        "ModuleNotFoundError: No module named 'launcher'\n",
    )
    found = verdict_of(attempt, 1, "srun: error: n2: task 2: Exited with exit code 1\n")
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.configuration, 2, "n2")
    assert "the environment on node n2 is not the one the run was made in" in found.hint
    assert found.action is Action.stop


def test_a_program_that_is_not_there_is_configuration(attempt: Attempt) -> None:
    srun = """\
srun: error: n1: task 0: Exited with exit code 2
slurmstepd-n2: error: execve(): /nonexistent/python: No such file or directory
"""
    found = verdict_of(attempt, 2, srun)
    assert (found.verdict_class, found.node) == (VerdictClass.configuration, "n2")


PYTHON = "/usr/lib/python3.11"
TORCH = "/venv/launcher/lib/python3.11/site-packages/torch"


def stack(*frames: str) -> str:
    """A dump as faulthandler writes it, with a helper thread first."""
    own = "".join(f'  File "{file}", line {line} in {function}\n' for file, line, function in map(str.split, frames))
    helper = (
        f'  File "{PYTHON}/threading.py", line 331 in wait\n  File "{PYTHON}/threading.py", line 1002 in _bootstrap\n'
    )
    head = "(most recent call first):\n"
    return f"Timeout (0:05:00)!\nThread 0x00007f405e7fc6c0 {head}{helper}\nThread 0x00007f4087295b80 {head}{own}"


IN_A_COLLECTIVE = stack(
    f"{TORCH}/distributed/distributed_c10d.py 3252 all_reduce",
    f"{TORCH}/distributed/c10d_logger.py 83 wrapper",
    "/work/launcher/train/world.py 52 sum_",
    "/work/launcher/train/step.py 61 optimizer_step",
    "/work/launcher/train/loop.py 37 train_loop",
    "/work/launcher/worker.py 60 _work",
)
IN_DATA = stack("/work/launcher/train/micro_batch.py 31 make_micro_batch", "/work/launcher/worker.py 60 _work")
ON_MAIN = stack(
    f"{PYTHON}/pathlib.py 1044 open",
    "/work/launcher/checkpoint/commit.py 90 publish",
    "/work/launcher/train/world.py 101 on_main",
    "/work/launcher/worker.py 60 _work",
)


def hang(attempt: Attempt, stacks: list[str], *, rank: int = 0, phase: str = "step") -> Verdict:
    for number, text in enumerate(stacks):
        attempt.beat(number, phase=phase)
        attempt.stacks(number, text)
    stall = Stall(rank=rank, host="n1", phase=phase, step=7, silent_s=301, limit_s=300)
    return explain(collect(attempt.root, 1, StarterReport(exit_code=137, stall=stall)))


def test_a_hang_names_the_rank_that_is_in_no_collective_and_its_place(attempt: Attempt) -> None:
    found = hang(attempt, [IN_A_COLLECTIVE, IN_A_COLLECTIVE, IN_DATA, IN_A_COLLECTIVE])
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.hang, 2, "n2")
    assert found.place == "launcher/train/micro_batch.py:31 make_micro_batch"
    assert "launcher/train/micro_batch.py:31" in found.summary and "phase step" in found.summary
    assert found.action is Action.requeue


def test_file_work_of_rank_0_on_behalf_of_all_is_no_collective(attempt: Attempt) -> None:
    found = hang(attempt, [ON_MAIN, IN_A_COLLECTIVE, IN_A_COLLECTIVE, IN_A_COLLECTIVE], rank=3, phase="save")
    assert (found.rank, found.place) == (0, "launcher/checkpoint/commit.py:90 publish")
    assert found.setting == "fault.save_limit_s=3600"


def test_a_rank_that_cannot_dump_its_stack_is_the_one(attempt: Attempt) -> None:
    found = hang(attempt, [IN_A_COLLECTIVE, IN_A_COLLECTIVE, IN_A_COLLECTIVE, ""])
    assert (found.rank, found.node, found.place) == (3, "n2", "")
    assert "it dumped no stack" in found.summary


def test_where_all_wait_in_a_collective_the_one_that_waits_elsewhere_is_named(attempt: Attempt) -> None:
    elsewhere = IN_A_COLLECTIVE.replace("step.py", "validation.py")
    found = hang(attempt, [IN_A_COLLECTIVE, elsewhere, IN_A_COLLECTIVE, IN_A_COLLECTIVE])
    assert (found.rank, found.place) == (1, "launcher/train/validation.py:61 optimizer_step")


def test_a_hang_without_any_stack_names_the_rank_the_watcher_saw(attempt: Attempt) -> None:
    found = hang(attempt, ["", "", "", ""], rank=2)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.hang, 2, "n2")


def test_a_rank_that_ended_itself_because_it_hung_is_a_hang_too(attempt: Attempt) -> None:
    for number, text in enumerate([IN_A_COLLECTIVE, IN_DATA, IN_A_COLLECTIVE, IN_A_COLLECTIVE]):
        attempt.beat(number)
        attempt.stacks(number, text)
    attempt.end(0, 7)
    others_lose_the_connection(attempt, 2, 3)
    found = verdict_of(attempt, 7)
    assert (found.verdict_class, found.rank) == (VerdictClass.hang, 1)
    assert "phase step for longer than 300 s" in found.summary


def test_what_ranks_say_while_a_hang_is_ended_is_not_its_cause(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1, 3)
    found = hang(attempt, [IN_A_COLLECTIVE, IN_A_COLLECTIVE, IN_DATA, IN_A_COLLECTIVE])
    assert (found.verdict_class, found.rank) == (VerdictClass.hang, 2)


def test_a_node_that_cannot_be_started_on_is_left_out(attempt: Attempt) -> None:
    srun = "srun: error: Task launch for StepId=5.0 failed on node n2: Communication connection failure\n"
    found = verdict_of(attempt, 1, srun)
    assert (found.verdict_class, found.node) == (VerdictClass.node_failure, "n2")
    assert (found.action, found.setting) == (Action.requeue_without_node, "cluster.exclude=n2")


def test_a_lost_node_is_blamed_and_not_its_victims(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1)
    srun = """\
srun: error: Node failure on n2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: error: n1: task 0: Terminated
"""
    found = verdict_of(attempt, 143, srun)
    assert (found.verdict_class, found.node, found.action) == (
        VerdictClass.node_failure,
        "n2",
        Action.requeue_without_node,
    )


def test_the_node_whose_ranks_left_no_word_is_the_one_that_failed(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1)
    found = verdict_of(attempt, 143, state="NODE_FAIL")
    assert (found.verdict_class, found.node) == (VerdictClass.node_failure, "n2")


def test_a_supervisor_that_vanished_means_its_machine_did(attempt: Attempt) -> None:
    found = verdict_of(attempt, None)
    assert (found.verdict_class, found.node) == (VerdictClass.node_failure, "n1")


def test_a_stop_that_was_saved_is_a_preemption(attempt: Attempt) -> None:
    attempt.trained(17, saved=17)
    for rank in range(4):
        attempt.end_with(rank, Preempted("saved", stopped_by="SIGTERM"))
    found = verdict_of(attempt, 75, "srun: error: n2: tasks 2-3: Exited with exit code 75\n", stopped="SIGTERM")
    assert (found.verdict_class, found.action) == (VerdictClass.preempted, Action.requeue)
    assert found.summary == "stopped by SIGTERM, saved at step 17"
    assert found.device_hours_lost == 0


def test_a_stop_while_loading_lost_nothing(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    attempt.end_with(0, Preempted("nothing was trained", stopped_by="SIGTERM"))
    found = verdict_of(attempt, 75, stopped="SIGTERM")
    assert found.summary == "stopped by SIGTERM, before it had trained"


def test_a_warning_of_slurm_near_the_limit_is_a_time_limit(tmp_path: Path) -> None:
    for limit_min, kind in ((61, "timeout"), (600, "preempted")):
        config = slurm_config()
        config.cluster.walltime_min = limit_min
        attempt = Attempt(tmp_path / kind, config=config)
        attempt.end_with(0, Preempted("saved", stopped_by="SIGUSR2"))
        assert verdict_of(attempt, 75).verdict_class is VerdictClass(kind)


def test_a_preemption_that_left_no_time_to_save_is_none_the_less_one(attempt: Attempt) -> None:
    srun = "srun: error: n1: tasks 0-1: Killed\nsrun: error: n2: tasks 2-3: Killed\n"
    found = verdict_of(attempt, 137, srun, state="PREEMPTED")
    assert (found.verdict_class, found.summary) == (VerdictClass.preempted, "preempted, before it could save")
    assert found.device_hours_lost > 0


@pytest.mark.parametrize("how", ["state", "words", "field", "starter"])
def test_a_time_limit_is_recognised_however_it_is_told(attempt: Attempt, how: str) -> None:
    srun = state = stopped = ""
    if how == "state":
        state = "TIMEOUT"
    elif how == "words":
        attempt.log(
            0, "slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-11-24T02:23:27 DUE TO TIME LIMIT ***\n"
        )
        srun = "srun: error: n1: task 0: Terminated\n"
    elif how == "field":
        attempt.end_with(0, Preempted("saved", stopped_by="time limit"))
    else:
        stopped = "time limit"
    found = verdict_of(attempt, 143, srun, state, stopped)
    assert (found.verdict_class, found.action) == (VerdictClass.timeout, Action.requeue)
    assert found.setting == ""


def test_a_time_limit_without_a_checkpoint_asks_for_more_frequent_ones(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", config=slurm_config())
    attempt.trained(17)
    found = verdict_of(attempt, 143, state="TIMEOUT")
    assert not found.made_progress
    assert found.setting == "checkpoint.save_every_steps=8"


def test_a_time_limit_before_the_first_steps_asks_for_more_time(tmp_path: Path) -> None:
    config = slurm_config()
    config.cluster.walltime_min = 30
    found = verdict_of(Attempt(tmp_path / "run", config=config), 143, state="TIMEOUT")
    assert found.setting == "cluster.walltime_min=60"


def test_a_full_disk_counts_also_while_a_stop_was_under_way(attempt: Attempt) -> None:
    error = SaveFailed("not saved", step=17, rank=0, errno=errno.ENOSPC, path="x")
    attempt.end_with(0, error)
    attempt.end_with(1, ErrorOnMain(str(error), ExitCode.CHECKPOINT, error.kind, error.data))
    found = verdict_of(attempt, 3, state="PREEMPTED")
    assert (found.verdict_class, found.rank) == (VerdictClass.disk, 0)


def test_what_the_user_cancelled_is_cancelled(attempt: Attempt) -> None:
    attempt.paths.cancel.touch()
    attempt.end_with(0, Preempted("saved"))
    found = verdict_of(attempt, 75)
    assert (found.verdict_class, found.action) == (VerdictClass.cancelled, Action.stop)
    assert verdict_of(attempt, 143, state="CANCELLED by 0").verdict_class is VerdictClass.cancelled


def test_a_superseded_rank_outranks_the_rest(attempt: Attempt) -> None:
    attempt.end_with(0, SupersededError("older"))
    attempt.end_with(1, ErrorOnMain("older", ExitCode.SUPERSEDED, "SupersededError", {}))
    found = verdict_of(attempt, 6, state="PREEMPTED")
    assert (found.verdict_class, found.action) == (VerdictClass.superseded, Action.stop)


def test_the_node_that_did_not_answer_is_blamed_and_not_who_says_so(attempt: Attempt) -> None:
    for rank in (0, 1):
        attempt.end_with(rank, RanksMissing("two did not come", ranks=[2, 3]))
    found = verdict_of(attempt, 4)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.rendezvous, 2, "n2")
    assert found.action is Action.requeue_without_node


def test_a_rank_that_is_killed_while_the_ranks_meet_is_the_cause(attempt: Attempt) -> None:
    attempt.end_with(1, RanksMissing("rank 0 is gone: Broken pipe", ranks=[0]))
    srun = "srun: error: n1: task 0: Killed\nsrun: error: n1: task 1: Exited with exit code 4\n"
    found = verdict_of(attempt, 137, srun)
    assert (found.verdict_class, found.rank) == (VerdictClass.out_of_memory_host, 0)


def test_ranks_that_met_but_cannot_talk_blame_no_node(attempt: Attempt) -> None:
    attempt.end_with(1, RendezvousFailed("they cannot talk: timed out", rank=1))
    found = verdict_of(attempt, 4)
    assert (found.verdict_class, found.node) == (VerdictClass.rendezvous, "")
    assert found.setting == "cluster.environment={NCCL_SOCKET_IFNAME:INTERFACE}"


def test_no_setting_is_advised_that_a_run_without_slurm_refuses(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", config=RunConfig(), starter="local")
    attempt.end_with(1, RendezvousFailed("they cannot talk: timed out", rank=1))
    found = verdict_of(attempt, 4)
    assert (found.verdict_class, found.setting) == (VerdictClass.rendezvous, "")


def test_a_network_that_broke_blames_nobody(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1, 2, 3)
    found = verdict_of(attempt)
    assert (found.verdict_class, found.rank, found.node) == (VerdictClass.rendezvous, None, "")


def test_a_crash_in_native_code_is_named_by_its_signal(attempt: Attempt) -> None:
    others_lose_the_connection(attempt, 0, 1, 2)
    found = verdict_of(attempt, 139, "srun: error: n2: task 3: Segmentation fault\n")
    assert (found.verdict_class, found.rank, found.exit_code) == (VerdictClass.bug, 3, -11)
    assert "SIGSEGV" in found.summary


def test_an_attempt_that_never_started_its_ranks_says_what_the_starter_said(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    found = verdict_of(attempt, 2, "error: cluster.nodes = 3: the job has 2. Ask for 3\n")
    assert found.verdict_class is VerdictClass.configuration
    assert found.summary == "cluster.nodes = 3: the job has 2. Ask for 3"


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({}, "batch.micro_tokens=4096"),
        ({"micro_tokens": 2048}, "strategy.activation_checkpointing=true"),
        ({"micro_sequences": 4}, "batch.micro_sequences=2"),
    ],
)
def test_less_gpu_memory_is_asked_for_where_it_helps(tmp_path: Path, change: dict[str, int], setting: str) -> None:
    config = RunConfig()
    for name, value in change.items():
        setattr(config.batch, name, value)
    attempt = Attempt(tmp_path / "run", config=config)
    attempt.end(0, 1, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    assert verdict_of(attempt).setting == setting


def test_nodes_excluded_before_stay_excluded(tmp_path: Path) -> None:
    config = slurm_config()
    config.cluster.exclude = "n7"
    attempt = Attempt(tmp_path / "run", config=config)
    assert verdict_of(attempt, 143, "srun: error: Node failure on n2\n").setting == "cluster.exclude='n7,n2'"


def test_the_order_of_exits_decides_where_the_starter_saw_it(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", starter="local")
    attempt.end(0, 1, "RuntimeError", "an error nobody knows")
    found = explain(collect(attempt.root, 1, StarterReport(exit_code=137, exits=[(3, -9), (0, 1), (1, -15), (2, -9)])))
    # Rank 0 spoke, but after rank 3 was killed.
    assert found.rank == 3 and found.verdict_class is VerdictClass.out_of_memory_host


def test_a_verdict_comes_back_as_it_was_written(attempt: Attempt) -> None:
    attempt.end(1, 1, "ValueError", "boom \ud800 \x1b[31m")
    first = verdict_of(attempt)
    write_verdict(attempt.root, first)
    back = read_verdict(attempt.root, 1)
    assert back is not None and (back.verdict_class, back.rank, back.device_hours) == (
        first.verdict_class,
        first.rank,
        first.device_hours,
    )
    assert read_verdicts(attempt.root) == [back]
    attempt.paths.verdict(1).write_text('{"verdict_class": "unheard of"}')
    assert read_verdict(attempt.root, 1) is None and read_verdicts(attempt.root) == []


def test_an_attempt_without_a_record_is_judged_too(attempt: Attempt) -> None:
    attempt.paths.attempt_record(1).unlink()
    attempt.end_with(1, DataError("train.jsonl:3: no messages"))
    found = verdict_of(attempt)
    assert (found.verdict_class, found.node, found.started) == (VerdictClass.data, "n1", at(60))


def test_a_record_of_one_node_makes_a_run_of_one_node(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run")
    assert verdict_of(attempt).num_nodes == 2
    write_attempt(
        attempt.root, attempt.record.__class__(attempt=1, starter="local", host="box", world_size=4, started=at(0))
    )
    assert verdict_of(attempt).num_nodes == 1
