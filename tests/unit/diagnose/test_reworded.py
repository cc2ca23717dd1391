"""Messages of ours are for people: reworded, they change no verdict, no action and no exit code."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher
from launcher.config.cluster_schema import ClusterKind
from launcher.config.schema import RunConfig
from launcher.diagnose import error_patterns, srun_messages
from launcher.diagnose.conclude import explain
from launcher.diagnose.evidence import StarterReport, collect
from launcher.diagnose.verdict import Verdict
from launcher.errors import (
    OUR_ERRORS,
    TIME_LIMIT,
    CheckpointError,
    ConfigErrors,
    ConfigMismatch,
    DataError,
    DeviceError,
    ErrorOnMain,
    ExitCode,
    HostLost,
    HostNotStarted,
    LauncherError,
    MicroBatchTooLarge,
    ModelError,
    NonFiniteError,
    NotFetched,
    NothingQueued,
    Preempted,
    Problem,
    RankHung,
    RanksMissing,
    RecordError,
    RendezvousFailed,
    RunError,
    SaveFailed,
    SlurmError,
    SlurmMissing,
    SlurmUnavailable,
    SupersededError,
    TorchLacksGpu,
    UnknownJob,
    UserError,
    VerdictClass,
    WorldError,
)
from launcher.runs.rank_end import fields_of
from tests.unit.diagnose.failed_attempts import Attempt

OTHER_WORDS = "zork"
FULL = OSError(errno.ENOSPC, "No space left on device", "/runs/r/x")


def save_failed(message: str, number: int | None = errno.ENOSPC) -> SaveFailed:
    return SaveFailed(message, step=40, rank=1, errno=number, path="/runs/r/checkpoints/x")


def from_full_disk(error: LauncherError) -> LauncherError:
    error.__cause__ = FULL
    return error


# What each error is in a verdict. The messages are free: the test below replaces all of them.
ERRORS: list[tuple[LauncherError, VerdictClass]] = [
    (LauncherError("scontrol printed something else"), VerdictClass.bug),
    (UserError("4 ranks were started but the settings plan 2"), VerdictClass.configuration),
    (ConfigErrors([Problem("optim.lr", -1.0, "must be positive")]), VerdictClass.configuration),
    (DataError("train.jsonl:3: no messages"), VerdictClass.data),
    (NotFetched("hub:a/b is not in the cache yet"), VerdictClass.data),
    (ModelError("this model lets examples in one row see each other"), VerdictClass.configuration),
    (RunError("the run directory was removed"), VerdictClass.configuration),
    (from_full_disk(RunError("the run cannot be made")), VerdictClass.disk),
    (TorchLacksGpu("this torch was built without GPU support"), VerdictClass.configuration),
    (MicroBatchTooLarge("8192 tokens do not fit into GPU memory", tokens=8192), VerdictClass.out_of_memory_gpu),
    (NothingQueued("sbatch refused"), VerdictClass.configuration),
    (CheckpointError("no checkpoint can be trusted"), VerdictClass.checkpoint),
    (CheckpointError("OSError", **fields_of(FULL)), VerdictClass.disk),
    (CheckpointError("PermissionError", **fields_of(PermissionError(errno.EACCES, "x"))), VerdictClass.checkpoint),
    (save_failed("could not save step 40"), VerdictClass.disk),
    (save_failed("could not save step 40", None), VerdictClass.disk),
    (save_failed("could not save step 40", errno.ENOMEM), VerdictClass.out_of_memory_host),
    (ConfigMismatch("step-10 is of other settings", path="/s", differing=["method.kind"]), VerdictClass.configuration),
    (SupersededError("attempt 1 was superseded by attempt 2"), VerdictClass.superseded),
    (WorldError("3 processes started but 4 were planned"), VerdictClass.rendezvous),
    (RanksMissing("rank 2 on n2 did not answer", ranks=[2, 3]), VerdictClass.rendezvous),
    (RendezvousFailed("every rank came, but they cannot talk", rank=1), VerdictClass.rendezvous),
    (HostNotStarted("n2 could not be started", node="n2", output="Permission denied"), VerdictClass.rendezvous),
    (HostLost("n2 has said nothing for 21 s", node="n2", silent_s=21.0), VerdictClass.rendezvous),
    (DeviceError("rank 3 on n2 sees no GPU"), VerdictClass.node_failure),
    (NonFiniteError("step 3: loss is nan", step=3, sample_ids=[1, 2]), VerdictClass.non_finite),
    (RankHung("no sign of life", phase="step", silent_s=301, limit_s=300), VerdictClass.hang),
    (SlurmError("squeue: Access/permission denied"), VerdictClass.bug),
    (UnknownJob("job 7 is not known"), VerdictClass.bug),
    (SlurmUnavailable("sinfo did not answer"), VerdictClass.bug),
    (RecordError("attempt.json", "world_size", "must be a whole number, not '2'"), VerdictClass.bug),
    (SlurmMissing("sinfo is not installed here"), VerdictClass.configuration),
    (Preempted("stopped by SIGTERM after step 17, saved", stopped_by="SIGTERM"), VerdictClass.preempted),
    (Preempted("stopped by time limit after step 17, saved", stopped_by=TIME_LIMIT), VerdictClass.timeout),
]

NAMES = [f"{error.kind}-{i}" for i, (error, _) in enumerate(ERRORS)]


def on_main(error: LauncherError) -> ErrorOnMain:
    return ErrorOnMain(str(error), ExitCode(error.exit_code), error.kind, fields_of(error))


def decision(verdict: Verdict) -> tuple[object, ...]:
    """All of a verdict that something hangs on; not what is only shown."""
    return (verdict.verdict_class, verdict.action, verdict.rank, verdict.node, verdict.exit_code, verdict.setting)


def judged(root: Path, error: LauncherError, message: str, *, with_log: bool = True) -> Verdict:
    """A run whose rank 0 raised `error`, and the others what follows from it."""
    config = RunConfig()
    config.cluster.kind = ClusterKind.slurm
    attempt = Attempt(root, config=config)
    attempt.trained(17, saved=15)
    for rank in range(4):
        attempt.end_with(rank, error if rank == 0 else on_main(error), message)
    if with_log:
        attempt.log(0, f"error: {message}\n")
    return explain(collect(attempt.root, 1, StarterReport(exit_code=int(error.exit_code))))


def test_every_error_class_is_tried() -> None:
    assert {error.kind for error, _ in ERRORS} | {ErrorOnMain.__name__} == set(OUR_ERRORS)


@pytest.mark.parametrize(
    ("error", "expected"), ERRORS, ids=[f"{error.kind}-{i}" for i, (error, _) in enumerate(ERRORS)]
)
def test_other_words_give_the_same_verdict(tmp_path: Path, error: LauncherError, expected: VerdictClass) -> None:
    real = judged(tmp_path / "real", error, str(error))
    reworded = judged(tmp_path / "reworded", error, OTHER_WORDS)
    assert real.verdict_class is expected
    assert decision(real) == decision(reworded)


@pytest.mark.parametrize(
    ("error", "expected"), ERRORS, ids=[f"{error.kind}-{i}" for i, (error, _) in enumerate(ERRORS)]
)
def test_rank_0_that_left_no_record_is_replaced_by_what_it_sent_to_the_others(
    tmp_path: Path, error: LauncherError, expected: VerdictClass
) -> None:
    found = []
    for name, message in (("real", str(error)), ("reworded", OTHER_WORDS)):
        attempt = Attempt(tmp_path / name)
        attempt.end_with(1, on_main(error), message)
        found.append(explain(collect(attempt.root, 1, StarterReport(exit_code=int(error.exit_code)))))
    assert decision(found[0]) == decision(found[1])


@pytest.mark.parametrize("message", ["could not save step 40", "saving step 40 failed", OTHER_WORDS])
def test_a_save_that_failed_is_requeued_however_it_is_said(tmp_path: Path, message: str) -> None:
    found = judged(tmp_path / "run", save_failed(message), message)
    assert (found.verdict_class, found.action.value) == (VerdictClass.disk, "requeue")


@pytest.mark.parametrize("message", ["boxb has said nothing for 21 s", OTHER_WORDS])
@pytest.mark.parametrize(("silent_s", "code"), [(21.0, None), (None, 4)])
def test_a_lost_host_is_told_by_its_fields(
    tmp_path: Path, message: str, silent_s: float | None, code: int | None
) -> None:
    lost = HostLost(message, node="n2", silent_s=silent_s, code=code)
    attempt = Attempt(tmp_path / "run", starter="local")
    found = explain(collect(attempt.root, 1, StarterReport(exit_code=4, error=lost)))
    expected = (VerdictClass.node_failure, "n2") if silent_s else (VerdictClass.rendezvous, "")
    assert (found.verdict_class, found.node) == expected


def test_what_a_remote_shell_printed_is_read_as_other_peoples_text(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run", starter="local")
    error = HostNotStarted(OTHER_WORDS, node="n2", output="/usr/bin/python: No module named launcher")
    found = explain(collect(attempt.root, 1, StarterReport(exit_code=4, error=error)))
    assert found.verdict_class is VerdictClass.configuration


def test_a_record_of_an_older_version_has_no_kind_and_is_judged_by_its_class(tmp_path: Path) -> None:
    for name, message, expected in (
        ("SupersededError", OTHER_WORDS, VerdictClass.superseded),
        ("CheckpointError", OTHER_WORDS, VerdictClass.checkpoint),
        ("CheckpointError", "step 20: rank 1: [Errno 28] No space left on device", VerdictClass.disk),
    ):
        attempt = Attempt(tmp_path / f"{name}-{len(message)}")
        attempt.end(0, 3, name, message, kind="")
        assert explain(collect(attempt.root, 1, StarterReport(exit_code=3))).verdict_class is expected


def our_sentences() -> Iterator[tuple[str, str]]:
    """(where, text) of every text that is raised or logged in launcher/, its gaps filled with nonsense."""
    for path in sorted(Path(launcher.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                arguments = node.exc.args
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_logger(node.func):
                arguments = node.args[:1]
            else:
                continue
            for argument in arguments:
                yield f"{path.name}:{node.lineno}", _text(argument)


def _is_logger(function: ast.Attribute) -> bool:
    return isinstance(function.value, ast.Name) and function.value.id == "logger"


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return OTHER_WORDS


def patterns_for_others() -> list[re.Pattern[str]]:
    found = [pattern for _, pattern in (*error_patterns._OF_TEXT, *srun_messages._OTHER)]
    named = [value for module in (error_patterns, srun_messages) for value in vars(module).values()]
    return found + [value for value in named if isinstance(value, re.Pattern)]


def test_no_pattern_for_other_peoples_text_matches_a_sentence_of_ours() -> None:
    sentences = list(our_sentences())
    assert len(sentences) > 200
    hits = [
        (where, text, pattern.pattern)
        for where, text in sentences
        for pattern in patterns_for_others()
        if pattern.search(f"error: {text}") or pattern.search(text)
    ]
    assert not hits


def test_every_error_class_stands_in_errors_py() -> None:
    for path in sorted(Path(launcher.__file__).parent.rglob("*.py")):
        if path.name == "errors.py":
            continue
        classes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
        bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
        assert not bases & {*OUR_ERRORS, "Exception", "BaseException", "ValueError", "OSError"}, path
