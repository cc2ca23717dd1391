"""One rank of a run under any starter: launcher train, accelerate launch, torchrun or srun.

python -m launcher.train --run RUN [--attempt N]     the run is there; launcher train has made the attempt
python -m launcher.train experiment=NAME ...         rank 0 plans and makes the run, the others wait for its name
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.config.frozen import load_config
from launcher.error_output import show_error
from launcher.errors import ErrorOnMain, ExitCode, LauncherError, Preempted, UserError
from launcher.log import setup_logging
from launcher.paths import RunPaths
from launcher.runs.rank_end import end_of, write_rank_end
from launcher.runs.rank_environment import rank_numbers, ranks_per_node
from launcher.runs.redact import redacted_text
from launcher.runs.run_dir import find_run, lock_run, new_attempt
from launcher.runs.states import run_state
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG, record_collectives

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 4000


@dataclass(slots=True)
class _Part:
    """What this process is in: known at once under our own starters, else when the ranks have agreed."""

    rank: int
    run_dir: Path | None = None
    attempt: int = 0

    def take(self, run_dir: Path, attempt: int) -> None:
        """From here on this rank shows signs of life, and leaves a last word."""
        self.run_dir, self.attempt = run_dir, attempt
        WATCHDOG.begin(
            RunPaths(run_dir), attempt, rank=self.rank, fault=load_config(RunPaths(run_dir).config).config.fault
        )
        record_collectives(RunPaths(run_dir).attempt(attempt).resolve(), os.environ)

    def end(self, code: int, error: BaseException | None) -> None:
        """The last word."""
        if self.run_dir is None or not self.attempt:
            return
        message = "" if error is None else redacted_text(str(error), os.environ)[:_LONGEST_MESSAGE]
        end = end_of(self.rank, host=socket.gethostname(), exit_code=code, error=error, message=message)
        with suppress(OSError):
            write_rank_end(RunPaths(self.run_dir).rank_end(self.attempt, self.rank), end)


def main(argv: list[str]) -> int:
    """Runs this rank to its end. Does not return when it is a worker process: see `_leave`."""
    args = _parser().parse_args(argv)
    if (args.run is None) == (not args.overrides):
        _parser().error("give either --run RUN or settings (experiment=NAME, section.key=VALUE), and not both")
    part = _Part(rank_numbers(os.environ).rank)
    code, error = _guarded(lambda: _work(args, part))
    part.end(code, error)
    return _leave(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.train", description="one rank of a training run")
    parser.add_argument("overrides", nargs="*", metavar="setting=value", help="settings of a new run")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run directory, or its name under runs/")
    parser.add_argument("--attempt", type=int, metavar="N", help="attempt made by whoever starts the ranks")
    parser.add_argument("--conf-dir", type=Path, metavar="DIR", help="folder with more options, laid out like conf/")
    return parser


def _work(args: argparse.Namespace, part: _Part) -> ExitCode:
    _forget_accelerate_settings()
    setup_logging(rank=part.rank)
    with ExitStack() as held:
        if args.run is not None and args.attempt is not None:
            run_dir, attempt = args.run, args.attempt
        else:
            run_dir, attempt = _agree_on_run(args, held)
        if attempt:
            part.take(run_dir, attempt)
        if attempt == 0:
            logger.info("%s has finished; there is nothing left to do", run_dir)
            return ExitCode.DONE
        _hide_gpus_from_cpu_run(run_dir)
        from launcher.train.main import train

        return train(run_dir, attempt)


def _forget_accelerate_settings() -> None:
    """accelerate launch hands its own settings down in the environment, where they beat what the run was frozen with.

    One of them, ACCELERATE_USE_CPU, makes Accelerate train without DeepSpeed and not say so.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


def _hide_gpus_from_cpu_run(run_dir: Path) -> None:
    """DeepSpeed picks its device when it is imported, by what it sees."""
    derived = load_config(RunPaths(run_dir).config).derived
    if derived is not None and derived.device == "cpu":
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")


def _agree_on_run(args: argparse.Namespace, held: ExitStack) -> tuple[Path, int]:
    """Run directory and attempt (0: nothing to do), decided by rank 0. Ranks: all."""
    import torch

    from launcher.train.world import meet, on_main

    world = meet("cuda" if torch.cuda.is_available() else "cpu")

    def decide() -> tuple[Path, int]:
        run_dir = find_run(str(args.run)) if args.run is not None else _make_run(args, world.size)
        if run_state(run_dir).state == "succeeded":
            return run_dir, 0
        held.enter_context(lock_run(run_dir))
        return run_dir, new_attempt(run_dir)

    return on_main(world, decide)


def _make_run(args: argparse.Namespace, world_size: int) -> Path:
    """Plans and creates a run for the ranks that are here. Ranks: 0."""
    from launcher.plan.create import create_planned, plan_overrides

    per_node = ranks_per_node(os.environ, world_size)
    cluster = [f"cluster.devices_per_node={per_node}", f"cluster.nodes={world_size // per_node}"]
    adopted = [] if _plans_a_place(args) else cluster
    planned = plan_overrides([*args.overrides, *adopted], conf_dir=args.conf_dir)
    if planned.derived.world_size != world_size:
        raise UserError(
            f"{world_size} ranks were started but the settings plan {planned.derived.world_size} "
            f"(cluster.nodes x cluster.devices_per_node). Start that many, or add {' '.join(cluster)}"
        )
    run_dir = create_planned(planned)
    logger.info("run directory: %s", run_dir)
    return run_dir


def _plans_a_place(args: argparse.Namespace) -> bool:
    """Whether the user, or an experiment or cluster chosen, says how many ranks; else what the starter did stands."""
    from launcher.config.compose import compose_with_problems

    typed = {override.partition("=")[0] for override in args.overrides}
    if typed & {"cluster.nodes", "cluster.devices_per_node"}:
        return True
    config, _ = compose_with_problems(args.overrides, extra_dir=args.conf_dir)
    return config.cluster.devices_per_node is not None or config.cluster.nodes > 1


def _guarded(work: Callable[[], ExitCode]) -> tuple[int, BaseException | None]:
    """The exit code of `work`, and its error, shown in the way users see errors."""
    try:
        return work(), None
    except Preempted as stop:
        logger.warning("%s", stop)
        return stop.exit_code, stop
    except LauncherError as error:
        if not isinstance(error, ErrorOnMain):
            show_error(error)
        return error.exit_code, error
    except BaseException as error:
        traceback.print_exc()
        if STOP.requested and not WATCHDOG.has_trained:
            # The signal went to helpers of this process, too, such as a compiler; what they left undone is no bug.
            logger.warning("stopped by %s before the first step; nothing is lost", STOP.reason)
            return ExitCode.PREEMPTED, error
        return ExitCode.BUG, error


def _leave(code: int) -> int:
    """Ends the process without destructors: one of gloo's can wait for ever (see train/world.py)."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
