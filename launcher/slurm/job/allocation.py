"""The resources of this job, read from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import UserError
from launcher.slurm.client.parse import hostnames


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The nodes of a job and the resources of each; all nodes of a job are alike."""

    job_id: str
    """Slurm's id of the job; an array member has its own."""
    cluster: str = ""
    nodes: tuple[str, ...]
    """In rank order."""
    restart: int = 0
    """How often Slurm has restarted the job."""
    gpus_per_node: int = 0
    cpus_per_node: int = 1
    tasks_per_node: int | None = None
    """The job's --ntasks-per-node."""
    cpus_per_task: int | None = None
    """The job's --cpus-per-task."""
    partition: str = ""
    account: str = ""
    array_job_id: str = ""
    array_task: int | None = None

    @property
    def name(self) -> str:
        """The job id as Slurm shows it: ARRAY_TASK for an array member."""
        return self.job_id if self.array_task is None else f"{self.array_job_id}_{self.array_task}"


def read_allocation(environ: Mapping[str, str]) -> Allocation:
    """Pure.

    Raises:
        UserError: this process does not run in a batch job.
    """
    job_id, nodelist = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_JOB_NODELIST", "")
    if not job_id.isdigit() or not nodelist:
        raise UserError(
            "SLURM_JOB_ID or SLURM_JOB_NODELIST is not set: this program runs inside a Slurm job. "
            "Start it with launcher submit, or: sbatch --nodes=N --gpus-per-node=N slurm/train.sbatch ..."
        )
    return Allocation(
        job_id=job_id,
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        nodes=tuple(hostnames(nodelist)),
        restart=_number(environ.get("SLURM_RESTART_COUNT")) or 0,
        gpus_per_node=_number(environ.get("SLURM_GPUS_ON_NODE")) or 0,
        cpus_per_node=_number(environ.get("SLURM_CPUS_ON_NODE")) or 1,
        tasks_per_node=_number(environ.get("SLURM_NTASKS_PER_NODE")),
        cpus_per_task=_number(environ.get("SLURM_CPUS_PER_TASK")),
        partition=environ.get("SLURM_JOB_PARTITION", ""),
        account=environ.get("SLURM_JOB_ACCOUNT", ""),
        array_job_id=environ.get("SLURM_ARRAY_JOB_ID", ""),
        array_task=_number(environ.get("SLURM_ARRAY_TASK_ID")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
