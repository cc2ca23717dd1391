"""Settings of the hardware, the Slurm job and fault handling. Part of the schema (schema.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from launcher.config.limits import Limits, NonNegativeFloat, PositiveFloat, PositiveInt


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ClusterKind(Enum):
    local = "local"
    slurm = "slurm"


class GpuRequest(Enum):
    gpus_per_node = "gpus_per_node"
    gres = "gres"
    none = "none"


class ContainerRuntime(Enum):
    none = "none"
    apptainer = "apptainer"
    pyxis = "pyxis"


class PrepareAt(Enum):
    auto = "auto"
    login = "login"
    job = "job"


@dataclass(kw_only=True, slots=True)
class HardwareConfig:
    """Hardware of the run, with or without Slurm."""

    kind: ClusterKind = ClusterKind.local
    """local: processes on this host; slurm: a Slurm job."""
    device: Device = Device.auto
    """auto uses the visible GPUs, or the CPU if there are none."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    devices_per_node: Annotated[int, Limits(1, 1024)] | None = None
    """Processes per node, one per GPU. Default: every visible GPU, or one process on a CPU."""
    threads_per_process: PositiveInt | None = None
    """OMP_NUM_THREADS of each process. Default: the cores divided among the processes."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU, for the plan. Default: measured if the run is local and GPUs are visible, else 80."""
    host_memory_gib: PositiveFloat | None = None
    """Memory of one node, for the plan. Default: measured if the run is local."""
    tokens_per_s_per_device: PositiveFloat | None = None
    """Measured training speed, for the plan. Default: estimated from device_tflops."""
    device_tflops: PositiveFloat | None = None
    """Peak dense 16-bit TFLOP/s of one device, for the plan. Default: from a table, quoted in the plan."""
    price_per_device_hour: NonNegativeFloat | None = None
    """Price of one GPU-hour in any currency, for the cost estimate and the report."""
    hosts: list[str] = field(default_factory=list)
    """Hosts of a run over several nodes without Slurm, the leader first. Default: this host only."""

    @property
    def is_slurm(self) -> bool:
        """Whether the run is a Slurm job, on other hosts than this one."""
        return self.kind is ClusterKind.slurm


@dataclass(kw_only=True, slots=True)
class ClusterConfig(HardwareConfig):
    """Hardware of the run, what it costs, and how a Slurm job asks for it.

    A site is a file of these under conf/cluster/ (docs/slurm.md). The settings from partition on apply only to
    cluster.kind=slurm.
    """

    partition: str | None = None
    """Slurm partition of the training job, or a comma-separated list. Default: the site's."""
    account: str | None = None
    """Slurm account to charge."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Required node features, in Slurm syntax."""
    reservation: str | None = None
    """Slurm reservation to run in."""
    walltime_min: PositiveInt | None = None
    """Time limit of one attempt of the training job in minutes. Default: the partition's."""
    gpu_request: GpuRequest = GpuRequest.gpus_per_node
    """How the site requests GPUs: --gpus-per-node, --gres=gpu:, or none if nodes are allocated whole."""
    gpu_type: str | None = None
    """GPU type to request, such as h100. Default: any."""
    cpus_per_task: PositiveInt | None = None
    """Cores per rank. Default: 4 with a GPU, otherwise Slurm's default."""
    memory_gib_per_node: NonNegativeFloat | None = None
    """Host memory to request per node; 0 requests all of it. Default: the site's. Stages other than training request
    the share of one GPU (docs/slurm.md)."""
    exclusive: bool = False
    """Request whole nodes."""
    nodelist: str | None = None
    """Nodes the job must include, in Slurm syntax."""
    exclude: str | None = None
    """Nodes the job must avoid, in Slurm syntax."""
    licenses: str | None = None
    """Slurm licenses the job needs."""
    mail_user: str | None = None
    """Address for Slurm's e-mail notifications."""
    mail_type: str | None = None
    """Events Slurm sends e-mail for, such as END,FAIL."""
    sbatch_args: list[str] = field(default_factory=list)
    """Additional sbatch options of the training job, one per item, such as --switches=1."""
    srun_args: list[str] = field(default_factory=list)
    """Additional srun options of the ranks, one per item, such as --cpu-bind=cores. Options the launcher sets itself
    and options that run other programs are rejected."""
    modules: list[str] = field(default_factory=list)
    """Environment modules the job loads first."""
    setup_file: str | None = None
    """Shell file the job sources first, for any other site setup."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables for the ranks, export and eval, such as NCCL_SOCKET_IFNAME. No secrets: they are written
    to config.yaml."""
    container: ContainerRuntime = ContainerRuntime.none
    """Run the ranks, export, eval and the doctor's probe in a container: apptainer, or pyxis (enroot)."""
    container_image: str | None = None
    """Image file (apptainer), or image name or file (pyxis)."""
    container_mounts: list[str] = field(default_factory=list)
    """Additional bind mounts as /SOURCE:/TARGET; run, data, model, cache and working folder are always mounted."""
    prepare: PrepareAt = PrepareAt.auto
    """Where launcher submit prepares the data. auto: small data on the login node, large data in a job of its own."""
    cpu_partition: str | None = None
    """Partition of the stages that need no GPU (prepare, export). Default: the training job's."""
    stage_walltime_min: PositiveInt | None = None
    """Time limit of the other stages in minutes. Default: the partition's."""
    signal_lead_s: Annotated[int, Limits(1, 65_535)] = 120
    """How long before the time limit Slurm signals the ranks; the run's own, measured lead usually comes first."""


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    """How a run detects failures, and how often it restarts."""

    max_attempts: PositiveInt = 100
    """Maximum attempts of one job, whatever ended them."""
    max_fruitless_attempts: PositiveInt = 3
    """Maximum consecutive attempts that fail without a new checkpoint; preemptions do not count."""
    meet_limit_s: PositiveFloat = 300.0
    """Rendezvous timeout: how long ranks wait for each other at the start before the missing node is named."""
    load_limit_s: PositiveFloat = 1800.0
    """Hang timeout while a rank loads model, data or a checkpoint, and during preflight and the first step."""
    step_limit_s: PositiveFloat | None = None
    """Hang timeout of a step or evaluation. Default: 10 times the slowest so far, at least 300."""
    save_limit_s: PositiveFloat = 1800.0
    """Hang timeout while a checkpoint is saved."""
    stop_margin_s: NonNegativeFloat = 30.0
    """Safety margin added to the measured time of a step and a save when stopping before the time limit."""
