"""From overrides to a run that may start: compose, check, prepare, derive, plan. All starters use it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from launcher.config.compose import compose_config
from launcher.config.devices import visible_gpus
from launcher.config.frozen import load_config, save_config
from launcher.config.package_floors import package_problems
from launcher.config.path_checks import machine_problems
from launcher.config.schema import FrozenRun
from launcher.data.prepare import Progress
from launcher.errors import ConfigErrors
from launcher.files import write_json
from launcher.paths import RunPaths
from launcher.plan.run_plan import PlannedRun, allow_problems, plan_run
from launcher.runs.run_dir import create_run, link_data, refuse_taken_name

logger = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 5.0


def plan_overrides(overrides: list[str], *, conf_dir: Path | None = None) -> PlannedRun:
    """Everything a run needs before it starts; cheap checks come first, so that a typo never waits for data.

    Only the model and the prepared data in the cache are on disk afterwards.

    Raises:
        ConfigErrors: with all problems of the configuration, of this host, or of the plan.
        RunError: the name is taken. ModelError, DataError: model or data cannot be used, or the audit refuses the data.
    """
    config = compose_config(overrides, extra_dir=conf_dir)
    if problems := [*machine_problems(config, visible_gpus()), *package_problems(config), *allow_problems(config)]:
        raise ConfigErrors(problems)
    refuse_taken_name(config)
    planned = plan_run(config, progress=log_progress())
    if planned.plan.problems:
        raise ConfigErrors(planned.plan.problems)
    return planned


def create_planned(planned: PlannedRun) -> Path:
    """The run directory of a planned run."""
    return create_run(planned.config, planned.derived, planned.plan)


def complete_run(run_dir: Path) -> bool:
    """Gives a run that was created before its data was prepared what it lacks: data, derived values, the real plan.

    Needs no torch. config.yaml is replaced whole, last, so it can be done again after a crash; but only one process may
    do it at a time, for two would give the run two identities.

    Returns:
        Whether there was anything to do.
    Raises:
        ConfigErrors: the plan made of the real data has problems. ModelError, DataError: as plan_overrides.
    """
    paths = RunPaths(run_dir)
    frozen = load_config(paths.config)
    if frozen.derived is not None:
        return False
    planned = plan_run(frozen.config, progress=log_progress())
    if planned.plan.problems:
        raise ConfigErrors(planned.plan.problems)
    write_json(paths.plan, planned.plan, indent=2)
    link_data(run_dir, planned.derived)
    save_config(paths.config, FrozenRun(config=frozen.config, derived=planned.derived))
    return True


def log_progress() -> Progress:
    """Logs the progress of preparing data every few seconds; nothing if it is done before."""
    last = time.monotonic()

    def log(examples: int, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_EVERY_S:
            last = time.monotonic()
            logger.info("preparing data: %d examples, %.0f %%", examples, 100 * share)

    return log
