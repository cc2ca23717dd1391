"""Settings of the place a run runs at, and of how it notices trouble and goes on. Part of the schema (schema.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


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
class ClusterConfig:
    """Where the run runs, how a job is asked for there, and what that place costs.

    A site is a file of these under conf/cluster/ (docs/slurm.md); the Slurm settings count for kind slurm only.
    """

    kind: ClusterKind = ClusterKind.local
    """local: processes on this machine; slurm: a job."""
    device: Device = Device.auto
    """auto takes the GPUs that are visible, else the CPU."""
    nodes: int = 1
    """Machines."""
    devices_per_node: int | None = None
    """Processes per machine, one per GPU; left out: every visible GPU, or one process on a CPU."""
    threads_per_process: int | None = None
    """OMP_NUM_THREADS of each process; left out: the cores divided among the processes."""
    gpu_memory_gib: float = 80.0
    """Memory of one GPU, for the plan."""
    host_memory_gib: float | None = None
    """Memory of one machine, for the plan; left out: read from this machine when it is local."""
    tokens_per_s_per_device: float | None = None
    """Measured training speed, for the plan; left out: estimated from device_tflops."""
    device_tflops: float | None = None
    """Peak dense 16-bit matrix rate of one device in TFLOP/s, for the plan; left out: a table, stated in the plan."""
    price_per_device_hour: float | None = None
    """Price of one GPU-hour, in any currency, for the plan and the bill."""
    partition: str | None = None
    """Slurm partition of the training job; left out: the site's default. A comma list lets Slurm choose."""
    account: str | None = None
    """Slurm account that is charged."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Node features the job needs, in Slurm's own syntax."""
    reservation: str | None = None
    """Slurm reservation to run in."""
    walltime_min: int | None = None
    """Time limit of one attempt of the training job in minutes; left out: the partition's default."""
    gpu_request: GpuRequest = GpuRequest.gpus_per_node
    """How the site spells GPUs: --gpus-per-node, --gres=gpu:, or none where nodes are given out whole."""
    gpu_type: str | None = None
    """Kind of GPU in the request, such as h100; left out: any."""
    cpus_per_task: int | None = None
    """Cores of each rank; left out: 4 for one with a GPU, else what Slurm gives."""
    memory_gib_per_node: float | None = None
    """Host memory asked for on each node; 0 asks for all of it; left out: the site's default. Other stages than
    training ask for one GPU's part of it (docs/slurm.md)."""
    exclusive: bool = False
    """Ask for whole nodes."""
    nodelist: str | None = None
    """Nodes the job must have, in Slurm's own syntax."""
    exclude: str | None = None
    """Nodes the job must not get, in Slurm's own syntax."""
    licenses: str | None = None
    """Slurm licences the job needs."""
    mail_user: str | None = None
    """Address for Slurm's mails."""
    mail_type: str | None = None
    """Which mails Slurm sends, such as END,FAIL."""
    sbatch_args: list[str] = field(default_factory=list)
    """Further sbatch options for the training job, one word each, such as --switches=1."""
    srun_args: list[str] = field(default_factory=list)
    """Further srun options for the ranks, one word each, such as --cpu-bind=cores; what the launcher sets itself and
    what runs other programs is refused."""
    modules: list[str] = field(default_factory=list)
    """Environment modules the job loads first."""
    setup_file: str | None = None
    """Shell file the job sources first, for whatever else the site needs."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for the ranks and for export and eval, such as NCCL_SOCKET_IFNAME; no secrets: this is written to
    config.yaml."""
    container: ContainerRuntime = ContainerRuntime.none
    """Run the ranks, export, eval and the doctor's probe inside a container: apptainer, or pyxis (enroot)."""
    container_image: str | None = None
    """Image file (apptainer) or image name or file (pyxis)."""
    container_mounts: list[str] = field(default_factory=list)
    """Folders the container sees besides run, data, model, cache and working folder, as /SOURCE:/TARGET."""
    prepare: PrepareAt = PrepareAt.auto
    """Where launcher submit prepares the data: auto does small files at once and large ones in a job of their own."""
    cpu_partition: str | None = None
    """Partition of the stages that need no GPU (prepare, export); left out: as the training job."""
    stage_walltime_min: int | None = None
    """Time limit of the other stages in minutes; left out: the partition's default."""
    signal_lead_s: int = 120
    """How long before the time limit Slurm itself warns the ranks; the run's own measured lead usually comes first."""
    hosts: list[str] = field(default_factory=list)
    """Machines of a local run over several boxes, the first one leads; left out: this machine only."""


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    """How a run notices trouble, and how often it goes on by itself."""

    max_attempts: int = 100
    """Attempts a job may make by itself, whatever ended them; after that the run stops and says so."""
    max_fruitless_attempts: int = 3
    """Attempts in a row that may fail without a new checkpoint; progress resets the count, preemption does not add."""
    meet_limit_s: float = 300.0
    """How long ranks wait for each other at the start before the missing node is named."""
    load_limit_s: float = 1800.0
    """A rank silent for so long while it loads model, data or a checkpoint, rehearses, or does its first step hangs."""
    step_limit_s: float | None = None
    """A rank silent for so long in a step or evaluation hangs; left out: ten times the slowest so far, at least 300."""
    save_limit_s: float = 1800.0
    """A rank silent for so long while it saves a checkpoint hangs."""
    stop_margin_s: float = 30.0
    """Added to the measured time of a step and a save, to stop and save before the time limit."""
