"""The other jobs of a submission, before and after training: prepare, export, eval."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from launcher.config.paths import RunPaths
from launcher.errors import ExitCode, UserError
from launcher.slurm import ledger
from launcher.slurm.allocation import Allocation
from launcher.slurm.srun import stage_argv, step_environment

logger = logging.getLogger(__name__)


def run_stage(stage: str, run_dir: Path, further: list[str], allocation: Allocation) -> int:
    """Runs one stage on this node.

    Args:
        further: options for the command of the stage, such as --merge for export.
    Returns: the exit code of the job.
    """
    if stage == "prepare":
        return _prepare(run_dir)
    if ledger.last_state(RunPaths(run_dir)) != "succeeded":
        raise UserError(f"{run_dir} has not finished training, so there is nothing to {stage} yet")
    words = [*stage_words(stage, run_dir, further)]
    return _run_alone(words, allocation)


def _prepare(run_dir: Path) -> int:
    from launcher.launch.start import complete_run

    complete_run(run_dir)
    logger.info("%s is prepared and may train", run_dir)
    return ExitCode.DONE


def stage_words(stage: str, run_dir: Path, further: list[str]) -> list[str]:
    """The command of a stage. Pure. export goes to export/hf of the run unless told otherwise with --to."""
    if stage == "export" and not any(word == "--to" or word.startswith("--to=") for word in further):
        further = ["--to", str(RunPaths(run_dir).export / "hf"), *further]
    return [stage, str(run_dir), *further]


def _run_alone(words: list[str], allocation: Allocation) -> int:
    environment = {
        **step_environment(os.environ),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(allocation.cpus_per_node),
    }
    argv = stage_argv(words, cpus_per_task=allocation.cpus_per_node, python=sys.executable)
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
