"""One rank of a run under any starter: launcher train, accelerate launch, torchrun or srun.

python -m launcher.train --run RUN [--attempt N]     an existing run; launcher train has made the attempt
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
from launcher.runs.redact import redacted
from launcher.runs.run_dir import find_run, lock_run, new_attempt
from launcher.runs.states import run_state
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG, record_collectives

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 4000


@dataclass(slots=True)
class _ThisRank:
    """This rank, and the attempt it takes part in once that is known."""

    number: int
    paths: RunPaths | None = None
    attempt: int = 0

    def join(self, run_dir: Path, attempt: int) -> None:
        """From here on this rank sends heartbeats, and records its end."""
        self.paths, self.attempt = RunPaths(run_dir), attempt
        frozen = load_config(self.paths.config)
        WATCHDOG.begin(self.paths, attempt, rank=self.number, fault=frozen.config.fault)
        record_collectives(self.paths.attempt(attempt).resolve(), os.environ)
        if frozen.derived is not None and frozen.derived.device == "cpu":
            # DeepSpeed picks its device when it is imported, by the GPUs it sees.
            os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

    def record_end(self, code: int, error: BaseException | None) -> None:
        if self.paths is None:
            return
        message = "" if error is None else redacted(str(error))[:_LONGEST_MESSAGE]
        end = end_of(self.number, host=socket.gethostname(), exit_code=code, error=error, message=message)
        with suppress(OSError):
            write_rank_end(self.paths.rank_end(self.attempt, self.number), end)


def main(argv: list[str]) -> int:
    """Runs this rank to its end; does not return.

    The process ends without destructors: one of gloo's can wait forever (see train/world.py).
    """
    args = _parser().parse_args(argv)
    if (args.run is None) == (not args.overrides):
        _parser().error("give either --run RUN or settings (experiment=NAME, section.key=VALUE), and not both")
    rank = _ThisRank(rank_numbers(os.environ).rank)
    code, error = _guarded(lambda: _work(args, rank))
    rank.record_end(code, error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.train", description="one rank of a training run")
    parser.add_argument("overrides", nargs="*", metavar="setting=value", help="settings of a new run")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run directory, or its name under runs/")
    parser.add_argument("--attempt", type=int, metavar="N", help="attempt made by the starter of the ranks")
    parser.add_argument("--conf-dir", type=Path, metavar="DIR", help="folder with more options, laid out like conf/")
    return parser


def _guarded(work: Callable[[], ExitCode]) -> tuple[int, BaseException | None]:
    """The exit code of `work`, and its error, already shown to the user."""
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
            # The signal also went to helpers of this process, such as a compiler; their failure is not a bug.
            logger.warning("stopped by %s before the first step; nothing is lost", STOP.reason)
            return ExitCode.PREEMPTED, error
        return ExitCode.BUG, error


def _work(args: argparse.Namespace, rank: _ThisRank) -> ExitCode:
    _forget_accelerate_settings()
    setup_logging(rank=rank.number)
    with ExitStack() as held:
        if args.run is not None and args.attempt is not None:
            run_dir, attempt = args.run, args.attempt
        else:
            run_dir, attempt = _agree_on_run(args, held)
        if attempt == 0:
            logger.info("%s has finished; there is nothing left to do", run_dir)
            return ExitCode.DONE
        rank.join(run_dir, attempt)
        from launcher.train.main import train

        return train(run_dir, attempt)


def _forget_accelerate_settings() -> None:
    """Removes what accelerate launch puts into the environment, where it overrides the frozen configuration.

    One of these settings, ACCELERATE_USE_CPU, makes Accelerate silently train without DeepSpeed.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


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
    """Plans and creates a run for the ranks that were started. Ranks: 0."""
    from launcher.plan.create import create_planned, plan_overrides

    per_node = ranks_per_node(os.environ, world_size)
    cluster = [f"cluster.devices_per_node={per_node}", f"cluster.nodes={world_size // per_node}"]
    adopted = [] if _chooses_ranks(args) else cluster
    planned = plan_overrides([*args.overrides, *adopted], conf_dir=args.conf_dir)
    if planned.derived.world_size != world_size:
        raise UserError(
            f"{world_size} ranks were started but the settings plan {planned.derived.world_size} "
            f"(cluster.nodes x cluster.devices_per_node). Start that many, or add {' '.join(cluster)}"
        )
    run_dir = create_planned(planned)
    logger.info("run directory: %s", run_dir)
    return run_dir


def _chooses_ranks(args: argparse.Namespace) -> bool:
    """Whether the settings say how many ranks the run has; otherwise it has those that were started."""
    from launcher.config.compose import compose_with_problems

    typed = {override.partition("=")[0] for override in args.overrides}
    if typed & {"cluster.nodes", "cluster.devices_per_node"}:
        return True
    config, _ = compose_with_problems(args.overrides, extra_dir=args.conf_dir)
    return config.cluster.devices_per_node is not None or config.cluster.nodes > 1
