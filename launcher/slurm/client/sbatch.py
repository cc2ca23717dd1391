"""The sbatch command of a stage. Pure: configuration in, argv out; user text is always a single argument of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, GpuRequest
from launcher.config.schema import MethodKind, RunConfig
from launcher.config.topology import resolve_topology
from launcher.errors import ConfigErrors, Problem
from launcher.plan.memory import inference_gpus
from launcher.plan.parameters import count_parameters
from launcher.runs.rank_environment import job_environment
from launcher.slurm.client.container import container_problems
from launcher.slurm.client.option_validation import (
    is_variable_name,
    option_problems,
    path_problem,
    text_problem,
    why_unfit,
)

STAGES = ("prepare", "train", "export", "eval")
"""In the order they run."""
CORES_PER_GPU = 4
"""Cores requested with a GPU if the site file does not say."""
STAGE_MEMORY_GIB = 16.0
"""The least a stage other than training requests, if memory is requested at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job to queue, apart from the run's settings."""

    stage: str
    job_name: str
    key: str
    """Submission.key."""
    script: Path
    """The constant script of the stage, absolute."""
    script_args: list[str]
    log_dir: Path
    """Folder of the job's own output, absolute."""
    variables: list[str] = field(default_factory=list)
    """Names of the variables that the job takes from sbatch's environment."""
    after: str = ""
    """Job that must succeed first."""
    members: int = 0
    """Members of a job array; 0: one job."""
    throttle: int = 0
    """Members that may run at once; 0: all."""


def sbatch_argv(config: RunConfig, request: JobRequest) -> list[str]:
    """The command that queues a stage of a run.

    Raises:
        ConfigErrors: a setting (sbatch_problems), path or argument that sbatch would not take as it stands.
    """
    if problems := [*sbatch_problems(config), *_request_problems(request)]:
        raise ConfigErrors(problems)
    name = "%A_%a" if request.members else "%j"
    argv = [
        "sbatch",
        "--parsable",
        f"--job-name={request.job_name}",
        f"--comment={comment(request.key, request.stage)}",
        f"--output={request.log_dir}/slurm-{name}.out",
        "--open-mode=append",
        "--requeue",
        f"--export={','.join(request.variables) or 'NONE'}",
        *_resources(config, request.stage),
    ]
    if request.members:
        limit = f"%{request.throttle}" if request.throttle else ""
        argv.append(f"--array=0-{request.members - 1}{limit}")
    if request.after:
        argv += [f"--dependency=afterok:{request.after}", "--kill-on-invalid-dep=yes"]
    return [*argv, str(request.script), *request.script_args]


def comment(key: str, stage: str) -> str:
    """The comment of a job, unique to one stage of one run."""
    return f"launcher:{key}" if stage == "train" else f"launcher:{key}:{stage}"


def sbatch_problems(config: RunConfig) -> list[Problem]:
    """Settings that sbatch would not take as they stand, or would take in another sense."""
    cluster = config.cluster
    problems = [*option_problems(cluster), *container_problems(config)]
    if runs_dir := path_problem("runs_dir", Path(config.runs_dir).absolute()):
        problems.append(runs_dir)
    if cluster.walltime_min is not None and cluster.signal_lead_s >= 60 * cluster.walltime_min:
        why = f"the whole time limit is {60 * cluster.walltime_min} s (cluster.walltime_min = {cluster.walltime_min})"
        problems.append(Problem("cluster.signal_lead_s", cluster.signal_lead_s, why, "Give less, or a longer limit"))
    if cluster.gpu_type is not None and cluster.gpu_request is GpuRequest.none:
        hint = "Leave it out, or use cluster.gpu_request=gres"
        problems.append(Problem("cluster.gpu_type", cluster.gpu_type, "no GPUs are requested by name", hint))
    return problems


def _request_problems(request: JobRequest) -> Iterator[Problem]:
    if log_dir := path_problem("runs_dir", request.log_dir):
        yield log_dir
    scripts = [("script", text) for text in (str(request.script), *request.script_args)]
    for key, text in [("name", request.job_name), *scripts]:
        if reason := why_unfit(text, max_bytes=65_536):
            yield text_problem(key, text, reason)
    if ":" in request.script_args:
        yield Problem("script", ":", "sbatch drops a lone colon: it separates two jobs")
    for name in request.variables:
        if not is_variable_name(name):
            yield text_problem("environment", name, "is not a valid name of a variable")


def job_variables(cluster: ClusterConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """The job's environment: the user's variables on the allow-list of local ranks, and those its script reads."""
    own = ("LAUNCHER_PYTHON", "LAUNCHER_SETUP_FILE", "LAUNCHER_MODULES")
    kept = {
        name: value for name, value in job_environment(environ).items() if is_variable_name(name) and name not in own
    }
    kept["LAUNCHER_PYTHON"] = sys.executable
    if cluster.setup_file is not None:
        kept["LAUNCHER_SETUP_FILE"] = str(Path(cluster.setup_file).absolute())
    if cluster.modules:
        kept["LAUNCHER_MODULES"] = " ".join(cluster.modules)
    return kept


def sbatch_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of sbatch itself: all of the user's, for site plug-ins, without traces of an enclosing job.

    --export decides what of it reaches the job. SBATCH_WAIT and its like would change what sbatch does.
    """
    dropped = ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_TEST_ONLY", "SBATCH_EXPORT", "SLURM_EXPORT_ENV")
    kept = {
        name: value
        for name, value in environ.items()
        if name not in dropped and (not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS"))
    }
    return {**kept, **variables}


def _on_cpus(config: RunConfig, stage: str) -> bool:
    return stage in ("prepare", "export") or resolve_topology(config, []).device == "cpu"


def _resources(config: RunConfig, stage: str) -> list[str]:
    cluster, trains = config.cluster, stage == "train"
    tasks_per_node = (cluster.devices_per_node or 1) if trains else 1
    # Nodes of another partition: what is required of the training nodes does not apply to them.
    elsewhere = stage in ("prepare", "export") and cluster.cpu_partition is not None
    wanted: dict[str, object] = {
        "partition": cluster.cpu_partition if elsewhere else cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.walltime_min if trains else cluster.stage_walltime_min,
        "nodes": cluster.nodes if trains else 1,
        "ntasks-per-node": tasks_per_node,
        "cpus-per-task": cores_per_task(config, stage),
        "mail-user": cluster.mail_user,
        "mail-type": cluster.mail_type,
    }
    if not elsewhere:
        wanted |= {"constraint": cluster.constraint, "reservation": cluster.reservation, "exclude": cluster.exclude}
        wanted["mem"] = _memory(config, stage)
    if not _on_cpus(config, stage):
        count = tasks_per_node if trains else _inference_gpus(config)
        gpus = f"{cluster.gpu_type}:{count}" if cluster.gpu_type is not None else count
        if cluster.gpu_request is GpuRequest.gpus_per_node:
            wanted["gpus-per-node"] = gpus
        elif cluster.gpu_request is GpuRequest.gres:
            wanted["gres"] = f"gpu:{gpus}"
    if trains:
        wanted |= {"nodelist": cluster.nodelist, "licenses": cluster.licenses}
        wanted["signal"] = f"USR2@{cluster.signal_lead_s}"
    options = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    if trains:
        options += [*(["--exclusive"] if cluster.exclusive else []), *cluster.sbatch_args]
    return options


def _inference_gpus(config: RunConfig) -> int:
    """GPUs of the eval stage: as many as hold the model."""
    if config.model.architecture.hidden_size == 0:  # a model of the user's own, of unknown size
        return 1
    memory_gib, at_most = resolve_topology(config, []).gpu_memory_gib, config.cluster.devices_per_node or 1
    return inference_gpus(config.model.architecture, memory_gib, at_most=at_most)


def cores_per_task(config: RunConfig, stage: str = "train") -> int | None:
    """Cores requested for each task of a stage; None leaves them to Slurm.

    Many sites give one per job by default, and a rank that feeds a GPU needs some.
    """
    cluster = config.cluster
    unasked = cluster.cpus_per_task is None and not cluster.exclusive and cluster.gpu_request is not GpuRequest.none
    return CORES_PER_GPU if unasked and not _on_cpus(config, stage) else cluster.cpus_per_task


def _memory(config: RunConfig, stage: str) -> str | None:
    asked = config.cluster.memory_gib_per_node if stage == "train" else _stage_memory_gib(config, stage)
    if asked is None:
        return None
    return f"{math.ceil(asked * 1024)}M" if asked else "0"


def _stage_memory_gib(config: RunConfig, stage: str) -> float | None:
    """The share of a node's memory that goes with the GPUs of the stage, or more if the weights need it.

    A job that takes all memory blocks the node's other GPUs.
    """
    cluster = config.cluster
    parts = cluster.devices_per_node or 1
    if cluster.memory_gib_per_node is None or cluster.gpu_request is GpuRequest.none or parts == 1:
        return cluster.memory_gib_per_node
    # 0 means all of a node; only host_memory_gib says how much that is.
    whole = cluster.memory_gib_per_node or cluster.host_memory_gib or 0.0
    share = whole / parts * (1 if _on_cpus(config, stage) else _inference_gpus(config))
    needed = max(share, STAGE_MEMORY_GIB, 0.0 if stage == "prepare" else _weights_gib(config))
    return min(whole, needed) if whole else needed


def _weights_gib(config: RunConfig) -> float:
    """Host memory of an export, which eval also makes: all trained weights in 32 bits, and the written ones."""
    architecture = config.model.architecture
    if architecture.hidden_size == 0:  # a model of the user's own, of unknown size
        return 0.0
    per_parameter = 8 if config.method.kind is MethodKind.full else 4
    return per_parameter * count_parameters(architecture) / 2**30
