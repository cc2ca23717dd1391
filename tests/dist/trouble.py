"""What ranks run when a test wants them hung, or signalled at an awkward moment. Arguments and results are JSON."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from launcher.config.frozen import load_config
from launcher.paths import RunPaths

HUNG_RANK = 1
HUNG_STEP = 3


def hang(run_dir: str, kind: str, attempt: int = 1) -> str:
    """Trains; rank 1 hangs in its third step, or in the save before it (kind `save`)."""
    import launcher.train.saving as saving
    import launcher.train.step as step_module
    from launcher.train.main import train

    os.environ["LAUNCHER_WATCHED"] = "1"
    if kind == "save":
        block_in_save(saving)
    else:
        hang_in_third_batch(step_module, kind)
    return train(Path(run_dir), attempt).name


def _is_victim() -> bool:
    from launcher.runs.rank_environment import rank_numbers

    return rank_numbers(os.environ).rank == HUNG_RANK


def hang_in_third_batch(step_module: ModuleType, kind: str) -> None:
    """Has rank 1 hang for ever in its third micro-batch."""
    make_micro_batch = step_module.make_micro_batch
    batches = 0

    def make_batch(*args, **named):  # type: ignore[no-untyped-def]
        nonlocal batches
        batches += 1
        if batches == HUNG_STEP and _is_victim():
            _hang(kind)
        return make_micro_batch(*args, **named)

    step_module.make_micro_batch = make_batch  # type: ignore[attr-defined]


def block_in_save(saving: ModuleType) -> None:
    """Has rank 1 wait for ever in its first save, for a reader that never comes."""
    write_share = saving._write_share

    def share(run, staging):  # type: ignore[no-untyped-def]
        if _is_victim():
            blocked = Path(staging) / "blocked"
            os.mkfifo(blocked)
            blocked.open("wb")
        return write_share(run, staging)

    saving._write_share = share  # type: ignore[attr-defined]


def _hang(kind: str) -> None:
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "loop":
        while True:
            pass
    elif kind == "gil":
        ctypes.PyDLL(None).sleep(3600)
    else:
        time.sleep(3600)


def slow(run_dir: str, step_s: float, save_s: float) -> str:
    """Trains with slow steps and slow saves on one rank, which the other one waits for."""
    import launcher.train.saving as saving
    import launcher.train.step as step_module
    from launcher.train.main import train

    os.environ["LAUNCHER_WATCHED"] = "1"
    make_micro_batch, write_share = step_module.make_micro_batch, saving._write_share

    def make_batch(*args, **named):  # type: ignore[no-untyped-def]
        if os.environ["RANK"] == "1":
            time.sleep(step_s)
        return make_micro_batch(*args, **named)

    def share(run, staging):  # type: ignore[no-untyped-def]
        if run.world.rank == 1:
            time.sleep(save_s)
        return write_share(run, staging)

    step_module.make_micro_batch, saving._write_share = make_batch, share
    return train(Path(run_dir), 1).name


def meet_some(world_limit_s: float, absent: int, stopped: int = -1) -> str:
    """Meets the other ranks, of which `absent` never comes; `stopped` gets a real SIGTERM while it waits."""
    from launcher.train.stop import STOP
    from launcher.train.world import meet

    STOP.arm()
    rank = int(os.environ["RANK"])
    os.environ.update(LAUNCHER_NODES="n1,n2,n3", LAUNCHER_RANKS_PER_NODE="1")
    if rank == absent:
        return "absent"
    if rank == stopped:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    meet("cpu", limit_s=world_limit_s)
    return "met"


def signalled(run_dir: str, attempt: int, moment: str, who: list[int], twice: bool = False) -> str:
    """Trains; the ranks in `who` get a real SIGTERM at that moment."""
    from launcher.train.main import train
    from launcher.train.stop import STOP

    STOP.arm()
    rank = int(os.environ["RANK"])
    done = False

    def strike() -> None:
        nonlocal done
        if not done and rank in who:
            for _ in range(2 if twice else 1):
                os.kill(os.getpid(), signal.SIGTERM)
        done = True

    total = load_config(RunPaths(Path(run_dir)).config).derived.total_steps  # type: ignore[union-attr]
    MOMENTS[moment](strike, total)
    return train(Path(run_dir), attempt).name


def _before(module: str, name: str, strike: Callable[[], None], when: Callable[..., bool] = lambda *_: True) -> None:
    """Strikes whenever a function of the trainer is about to be called with arguments that `when` accepts."""
    __import__(module)
    owner = sys.modules[module]
    original = getattr(owner, name)

    def struck(*args, **named):  # type: ignore[no-untyped-def]
        if when(*args):
            strike()
        return original(*args, **named)

    setattr(owner, name, struck)


_MAIN, _LOOP, _SAVING = "launcher.train.main", "launcher.train.loop", "launcher.train.saving"
_COMMIT = "launcher.checkpoint.commit"

MOMENTS: dict[str, Callable[[Callable[[], None], int], None]] = {
    "before the group": lambda strike, total: strike(),
    "meeting": lambda strike, total: _before("launcher.train.rendezvous", "_connect", strike),
    "model load": lambda strike, total: _before(_MAIN, "load_model", strike),
    "engine": lambda strike, total: _before(_MAIN, "make_engine", strike),
    "rehearsal": lambda strike, total: _before("launcher.train.preflight", "refuse_leaking_model", strike),
    "rehearsed evaluation": lambda strike, total: _before("launcher.train.validation", "make_micro_batch", strike),
    "first step": lambda strike, total: _before(_LOOP, "optimizer_step", strike, lambda run, step: step == 0),
    "evaluation": lambda strike, total: _before(_LOOP, "evaluate", strike, lambda run, state: state.step == 2),
    "save": lambda strike, total: _before(_SAVING, "seal_file", strike, lambda folder, path: "000002" in str(folder)),
    "publish": lambda strike, total: _before(_COMMIT, "publish", strike, lambda paths, folder, manifest: manifest.step),
    "last step": lambda strike, total: _before(_LOOP, "optimizer_step", strike, lambda run, step: step == total - 1),
    "last evaluation": lambda strike, total: _before(_LOOP, "evaluate", strike, lambda run, state: state.step == total),
}
