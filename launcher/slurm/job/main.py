"""The inside of a job: python -m launcher.slurm.job STAGE ..., started by the scripts in slurm/.

    train      one attempt of a run on the nodes of this job, supervised from the first of them
    prepare    the data of a run that was submitted before they were prepared
    export     the tuned model of a run as a Hugging Face folder
    eval       the tuned model of a run against its base

--run RUN names the run, or --sweep DIR with the job's index in its array; prepare --sweep DIR prepares all of its runs,
one after the other. train also takes the settings of a new run.
"""

from __future__ import annotations

import argparse
import logging
import os
import traceback
from pathlib import Path

from launcher.errors import ExitCode, LauncherError, UserError
from launcher.log import setup_logging
from launcher.runs.run_dir import run_name
from launcher.slurm.client.job_status import members_of
from launcher.slurm.client.sbatch import STAGES
from launcher.slurm.job.allocation import Allocation, read_allocation
from launcher.slurm.job.resolve_run import Asked, find_or_make_run
from launcher.slurm.job.stages import run_stage
from launcher.slurm.job.supervise import supervise

# Not __name__: started with -m that is __main__, which has no handler.
logger = logging.getLogger("launcher.slurm.job")


def main(argv: list[str]) -> int:
    """The exit code of the job."""
    setup_logging()
    try:
        return _run(argv)
    except LauncherError as error:
        logger.error("%s", error)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG


def _run(argv: list[str]) -> int:
    args, further = _parse(argv)
    allocation = read_allocation(os.environ)
    if args.stage == "prepare" and args.sweep is not None:
        return _prepare_sweep(args.sweep, allocation)
    asked = Asked(run=args.run, sweep=args.sweep, overrides=tuple(args.overrides), conf_dir=args.conf_dir)
    if args.stage == "train":
        return supervise(find_or_make_run(asked, allocation), allocation)
    return run_stage(args.stage, find_or_make_run(asked, allocation), further, allocation)


def _prepare_sweep(folder: Path, allocation: Allocation) -> int:
    """Prepares the data of every member. They usually share it, so the first one does the work.

    Returns: the code of the last member that cannot train; the job array, which waits for this job, then never starts.
    """
    code: int = ExitCode.DONE
    for run_dir in members_of(folder.resolve()):
        try:
            run_stage("prepare", run_dir, [], allocation)
        except LauncherError as error:
            logger.error("%s: %s", run_name(run_dir), error)
            code = error.exit_code
    return code


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Arguments, and what follows `--`: options for the stage's own command."""
    index = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m launcher.slurm.job", description="the inside of a Slurm job")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", metavar="setting=value", help="settings of a new run (train only)")
    parser.add_argument("--run", metavar="RUN", help="run directory, or its name under runs/")
    parser.add_argument("--sweep", type=Path, metavar="DIR", help="folder of a sweep; the array index chooses the run")
    parser.add_argument("--conf-dir", type=Path, metavar="DIR", help="folder with more options, laid out like conf/")
    args = parser.parse_intermixed_args(argv[:index])
    given = sum([args.run is not None, args.sweep is not None, bool(args.overrides)])
    if given != 1:
        raise UserError("give one of: --run RUN, --sweep DIR, or settings (experiment=NAME, section.key=VALUE)")
    if args.overrides and args.stage != "train":
        raise UserError(f"{args.stage} needs an existing run: give --run RUN")
    return args, argv[index + 1 :]
