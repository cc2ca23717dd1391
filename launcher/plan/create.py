"""From overrides to a run that may start: compose, check, prepare, derive, plan. All starters use it."""

from __future__ import annotations

from pathlib import Path

from launcher.config.compose import compose_config
from launcher.config.devices import visible_gpus
from launcher.config.frozen import load_config, save_config
from launcher.config.package_floors import package_problems
from launcher.config.path_checks import machine_problems
from launcher.config.schema import FrozenRun
from launcher.errors import ConfigErrors
from launcher.files import write_json
from launcher.paths import RunPaths
from launcher.plan.run_plan import PlannedRun, allow_problems, plan_run
from launcher.runs.run_dir import create_run, link_data, refuse_taken_name


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
    return plan_run(config)


def create_planned(planned: PlannedRun) -> Path:
    """The run directory of a planned run."""
    return create_run(planned.config, planned.derived, planned.plan)


def complete_run(run_dir: Path) -> bool:
    """Adds what a run lacks that was created before its data was prepared: data, derived values, the real plan.

    config.yaml is replaced last, so this can be repeated after a crash. Only one process may do it at a time: two would
    give the run two identities.

    Returns:
        Whether there was anything to do.
    Raises:
        ConfigErrors, ModelError, DataError: as plan_run.
    """
    paths = RunPaths(run_dir)
    frozen = load_config(paths.config)
    if frozen.derived is not None:
        return False
    planned = plan_run(frozen.config)
    write_json(paths.plan, planned.plan, indent=2)
    link_data(run_dir, planned.derived)
    save_config(paths.config, FrozenRun(config=frozen.config, derived=planned.derived))
    return True
