"""The other jobs of a submission, before and after training: prepare, export, eval."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
from pathlib import Path

from launcher.config.cluster_schema import ContainerRuntime
from launcher.config.frozen import load_prepared
from launcher.config.schema import DataConfig, Derived
from launcher.errors import ExitCode, RunError, UserError
from launcher.paths import RunPaths
from launcher.plan.create import complete_run
from launcher.runs.events import last_state
from launcher.slurm.client.container import example_files, run_folders
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.job.srun import stage_argv, stage_environment

logger = logging.getLogger(__name__)


def run_stage(stage: str, run_dir: Path, further: list[str], allocation: Allocation) -> int:
    """Runs one stage on this node.

    Args:
        further: options for the command of the stage, such as --merge for export.
    Returns: the exit code of the job.
    Raises:
        UserError: the run has not finished training. ConfigErrors, RunError: as srun.stage_argv.
    """
    if stage == "prepare":
        complete_run(run_dir)
        logger.info("%s is prepared and can train", run_dir)
        return ExitCode.DONE
    if last_state(RunPaths(run_dir).events) != "succeeded":
        raise UserError(f"{run_dir} has not finished training, so there is nothing to {stage} yet")
    config, derived = load_prepared(RunPaths(run_dir).config)
    command = stage_command(stage, run_dir, further)
    is_contained = config.cluster.container is not ContainerRuntime.none
    argv = stage_argv(
        config,
        command,
        shown=stage_folders(command, run_dir, config.data, derived) if is_contained else [],
        gpus=stage == "eval" and derived.device == "cuda",
        cpus_per_task=allocation.cpus_per_node,
    )
    environment = stage_environment(os.environ, config, cpus=allocation.cpus_per_node)
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def stage_command(stage: str, run_dir: Path, further: list[str]) -> list[str]:
    """The launcher command of a stage. Pure. Without --to an export goes to export/hf in the run directory."""
    if stage == "export" and _target(further) is None:
        further = ["--to", str(RunPaths(run_dir).export / "hf"), *further]
    return [stage, str(run_dir), *further]


def stage_folders(command: list[str], run_dir: Path, data: DataConfig, derived: Derived) -> list[Path]:
    """The folders a stage needs in a container: those of the ranks, and what export or eval adds.

    Raises:
        RunError: --to names a folder that cannot be mounted.
    """
    folders = run_folders(run_dir, derived)
    if command[0] == "eval":
        return [*folders, *example_files(data)]
    target = Path(_target(command) or "").expanduser().resolve()
    if any(target.is_relative_to(folder.resolve()) for folder in folders):
        return folders
    # The export creates the folder itself, by renaming a hidden one next to it.
    above = next(folder for folder in target.parents if folder.is_dir())
    if above == Path("/"):
        raise RunError(f"--to {target}: all of / cannot be mounted in a container; make {target.parent} first")
    return [*folders, above]


def _target(arguments: list[str]) -> str | None:
    """The value of --to; the last one counts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to")
    target: str | None = parser.parse_known_args(arguments)[0].to
    return target
