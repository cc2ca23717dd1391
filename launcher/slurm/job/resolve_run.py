"""Finds the run of a job: the same one at every restart of the job."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.config.cluster_schema import Device
from launcher.config.compose import compose_with_problems
from launcher.config.schema import Derived
from launcher.errors import RunError, WorldError
from launcher.files import find_record, write_json
from launcher.paths import RunPaths
from launcher.plan.create import create_planned, plan_overrides
from launcher.runs.run_dir import find_run
from launcher.slurm.client.sweep import member_dir
from launcher.slurm.job.allocation import Allocation

logger = logging.getLogger(__name__)

JOBS = ".jobs"
"""Folder under runs/ that records which run a job created, in CLUSTER-JOB.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Arguments after the batch script's name."""

    run: str | None = None
    sweep: Path | None = None
    overrides: tuple[str, ...] = ()
    conf_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class _Note:
    """The run that a job created, and the settings it was created from."""

    run_dir: Path
    overrides: tuple[str, ...]


def find_or_make_run(asked: Asked, allocation: Allocation) -> Path:
    """The run directory, absolute. Settings are composed at the first start of a job only; a restart finds its run.

    Raises:
        LauncherError: there is no such run, or the settings cannot be planned.
    """
    if asked.run is not None:
        return find_run(asked.run).resolve()
    if asked.sweep is not None:
        if allocation.array_task is None:
            raise RunError(f"--sweep {asked.sweep} is for a job array, but SLURM_ARRAY_TASK_ID is not set")
        return find_run(str(member_dir(asked.sweep, allocation.array_task))).resolve()
    note = _note_file(asked, allocation)
    if allocation.restart and (run_dir := _made_before(note, asked)) is not None:
        return run_dir
    note.unlink(missing_ok=True)  # of another job: a reinstalled cluster reuses job ids
    planned = plan_overrides([*asked.overrides, *adopted(asked, allocation)], conf_dir=asked.conf_dir)
    # Before the run is created: none is left behind if the ranks do not fit.
    check_world(planned.derived, allocation)
    run_dir = create_planned(planned).resolve()
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(note, _Note(run_dir, asked.overrides))
    logger.info("run directory: %s", run_dir)
    return run_dir


def _note_file(asked: Asked, allocation: Allocation) -> Path:
    """Derived from the overrides without composing, so that a restart finds the same file."""
    typed = dict(override.partition("=")[::2] for override in asked.overrides)
    runs_dir = Path(typed.get("runs_dir", "").strip("'\"") or "runs")
    return runs_dir / JOBS / f"{allocation.cluster or 'slurm'}-{allocation.job_id}.json"


def _made_before(file: Path, asked: Asked) -> Path | None:
    """The run that an earlier start of this job created, if any."""
    note = find_record(_Note, file)
    if note is None or note.overrides != asked.overrides:
        return None
    if not RunPaths(note.run_dir).config.is_file():
        raise RunError(
            f"{note.run_dir}, which this job created at its first start, is gone. A restart never trains from scratch: "
            "submit a new run"
        )
    return note.run_dir


def adopted(asked: Asked, allocation: Allocation) -> list[str]:
    """Settings taken from the job's resources where neither the user nor an experiment sets them."""
    config, _ = compose_with_problems(list(asked.overrides), extra_dir=asked.conf_dir)
    cluster = config.cluster
    typed = {override.partition("=")[0] for override in asked.overrides}
    is_cpu = cluster.device is Device.cpu or not allocation.gpus_per_node
    per_node = (allocation.tasks_per_node or 1) if is_cpu else allocation.gpus_per_node
    settings: dict[str, object] = {}
    if not cluster.is_slurm:
        settings["cluster.kind"] = "slurm"
    if cluster.device is Device.auto:
        settings["cluster.device"] = "cpu" if is_cpu else "cuda"
    plans_nodes = cluster.nodes > 1 or cluster.devices_per_node is not None
    if not plans_nodes:
        settings["cluster.nodes"] = len(allocation.nodes)
    if cluster.devices_per_node is None:
        settings["cluster.devices_per_node"] = per_node
    if cluster.threads_per_process is None and is_cpu:
        settings["cluster.threads_per_process"] = max(1, allocation.cpus_per_node // per_node)
    # So that `launcher resume` submits to the same partition and account.
    for key, value in (("partition", allocation.partition), ("account", allocation.account)):
        if getattr(cluster, key) is None and re.fullmatch(r"[A-Za-z_][\w-]*", value):
            settings[f"cluster.{key}"] = value
    return [f"{key}={value}" for key, value in settings.items() if key not in typed]


def check_world(derived: Derived, allocation: Allocation) -> None:
    """Compares the planned ranks with the job's nodes before any rank starts.

    Raises:
        WorldError: they cannot be placed as planned.
    """
    nodes, per_node = derived.world_size // derived.devices_per_node, derived.devices_per_node
    planned = f"the run was planned for {nodes} x {per_node} ranks (cluster.nodes x cluster.devices_per_node)"
    remedy = f"Submit with --nodes={nodes} --gpus-per-node={per_node}, or plan a run for what the job has"
    if derived.device == "cpu":
        remedy = remedy.replace("--gpus-per-node", "--ntasks-per-node")
    if nodes != len(allocation.nodes):
        raise WorldError(f"{planned}, but the job has {len(allocation.nodes)} nodes. {remedy}")
    if derived.device == "cuda":
        # 0: the site gives out whole nodes and does not count their GPUs.
        if 0 < allocation.gpus_per_node < per_node:
            raise WorldError(f"{planned}, but the job has {allocation.gpus_per_node} GPUs on a node. {remedy}")
        if allocation.gpus_per_node > per_node:
            idle = allocation.gpus_per_node - per_node
            logger.warning("%d of %d GPUs on each node stay idle", idle, allocation.gpus_per_node)
    elif allocation.tasks_per_node not in (None, per_node):
        raise WorldError(f"{planned}, but the job asks for --ntasks-per-node={allocation.tasks_per_node}. {remedy}")
