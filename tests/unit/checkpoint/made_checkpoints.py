"""Small checkpoints made by the real commit protocol, and a child that is killed or stopped while it makes one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.checkpoint.commit import Checkpoint, begin, committed, prune, publish, steps_to_keep
from launcher.checkpoint.manifest import FileEntry, Manifest, TrainState, seal_file
from launcher.config.schema import CheckpointConfig
from launcher.errors import CheckpointError, SupersededError
from launcher.paths import RunPaths

RUN_ID = "0123456789abcdef"
CONTENTS = {
    "model-rank00000.safetensors": b"weights " * 9,
    "zero/mp_rank_00_model_states.pt": b"states " * 7,
    "rng-rank00000.safetensors": b"dice",
    "scaler.json": b"{}",
}
FEW = {"model-rank00000.safetensors": b"weights", "zero/mp_rank_00_model_states.pt": b"states"}


def new_run(root: Path) -> RunPaths:
    """A run directory with its first attempt and nothing else."""
    run = RunPaths(root)
    run.attempt(1).mkdir(parents=True)
    return run


def make_manifest(step: int, files: list[FileEntry], *, attempt: int = 1, loss: float | None = None) -> Manifest:
    state = TrainState(step=step, last_eval_step=0 if loss is None else step, last_eval_loss=loss)
    return Manifest(
        run_id=RUN_ID,
        attempt=attempt,
        world_size=1,
        strategy="single",
        method="full",
        config_hash="hash",
        state=state,
        files=files,
    )


def stage(run: RunPaths, step: int, *, attempt: int = 1, contents: Mapping[str, bytes] = CONTENTS) -> Path:
    """A staging folder with files that differ from step to step."""
    staging = begin(run, step, attempt)
    for name, content in contents.items():
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_bytes(content + b" of step %d, attempt %d" % (step, attempt))
    return staging


def save(
    run: RunPaths,
    step: int,
    *,
    attempt: int = 1,
    loss: float | None = None,
    contents: Mapping[str, bytes] = CONTENTS,
    trusted: set[str] | None = None,
) -> Checkpoint:
    """One whole save; the manifest's hash is added to `trusted`, which stands for the run's journal."""
    staging = stage(run, step, attempt=attempt, contents=contents)
    files = [seal_file(staging, staging / name) for name in contents]
    manifest = make_manifest(step, files, attempt=attempt, loss=loss)
    if trusted is None:
        return publish(run, staging, manifest)
    return publish(run, staging, manifest, journal=trusted.add, trusted=frozenset(trusted))


def save_and_prune(run: RunPaths, step: int, *, attempt: int = 1, keep_last: int = 1) -> Checkpoint:
    """What training does at a step edge."""
    checkpoint = save(run, step, attempt=attempt, contents=FEW)
    config = CheckpointConfig(keep_last=keep_last, keep_best=False)
    prune(run, steps_to_keep(config, [c.step for c in committed(run)], best_step=None), attempt=attempt)
    return checkpoint


def damage_file(path: Path) -> None:
    """Flips one bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def killed_at(operation: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that kills itself right before its n-th operation (from 1) that changes files: opening
    for writing, renaming, removing, making folders, fsync. False once the work has fewer, so that it came to its end.

    SIGKILL to itself, so that no handler, no `finally` and no buffered write runs after it.
    """
    child = os.fork()
    if child == 0:
        try:
            _arm(operation)
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return False


def stopped_at(operation: int, work: Callable[[], object]) -> int | None:
    """As killed_at, but the child stops there (SIGSTOP) and can be continued. Its process id; None once it ended."""
    child = os.fork()
    if child == 0:
        try:
            _arm(operation, signal.SIGSTOP)
            work()
            os._exit(0)
        except SupersededError:
            os._exit(6)
        except (CheckpointError, OSError):
            os._exit(3)
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return child
    assert os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return None


def _arm(operation: int, number: signal.Signals = signal.SIGKILL) -> None:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == operation:
            os.kill(os.getpid(), number)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            count()

    def fsync(descriptor: int) -> None:
        count()
        real_fsync(descriptor)

    # Python's own audit events see each call where it reaches the system, whichever module makes it; fsync has none.
    real_fsync, os.fsync = os.fsync, fsync
    sys.addaudithook(audit)
