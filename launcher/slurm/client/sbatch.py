"""The sbatch command of a stage. Pure: configuration in, argv out; user text is only ever one word of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, GpuRequest
from launcher.config.schema import MethodKind, RunConfig
from launcher.config.topology import resolve_topology
from launcher.errors import ConfigErrors, Problem
from launcher.plan.parameters import count_parameters
from launcher.runs.rank_environment import job_environment
from launcher.slurm.client.container import container_problems
from launcher.slurm.client.option_validation import path_problem, why_unfit, word_problems

STAGES = ("prepare", "train", "export", "eval")
"""In the order they run in."""
CORES_PER_GPU = 4
"""Cores asked for with a GPU where the site file says nothing."""
STAGE_MEMORY_GIB = 16.0
"""The least a stage other than training asks for, where memory is asked for at all."""

COMMENT = "launcher:"
"""Jobs of a run carry this and the submission's key as their comment."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a job is besides its settings."""

    stage: str
    job_name: str
    key: str
    """Submission.key."""
    script: Path
    """The constant script of the stage, absolute."""
    script_args: list[str]
    """Handed to it as they are."""
    log_dir: Path
    """Folder of the job's own output, absolute."""
    variables: list[str] = field(default_factory=list)
    """Names of what the job gets of the environment of sbatch."""
    after: str = ""
    """Job that must end well first."""
    members: int = 0
    """Members of a job array; 0: one job."""
    throttle: int = 0
    """Members that may run at once; 0: all."""


def sbatch_argv(config: RunConfig, request: JobRequest) -> list[str]:
    """The command that queues a stage of a run.

    Raises:
        ConfigErrors: a setting that sbatch would not take as it stands (sbatch_problems), or a path or argument.
    """
    problems = sbatch_problems(config) + _request_problems(request)
    if problems:
        raise ConfigErrors(problems)
    name = "%A_%a" if request.members else "%j"
    words = [
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
        words.append(f"--array=0-{request.members - 1}{limit}")
    if request.after:
        words += [f"--dependency=afterok:{request.after}", "--kill-on-invalid-dep=yes"]
    return [*words, str(request.script), *request.script_args]


def comment(key: str, stage: str) -> str:
    """The comment of a job: tells one stage of one run from all others."""
    return f"{COMMENT}{key}" if stage == "train" else f"{COMMENT}{key}:{stage}"


def sbatch_problems(config: RunConfig) -> list[Problem]:
    """What sbatch would not take as it stands, or would take in another sense."""
    cluster = config.cluster
    problems = [*word_problems(cluster), *container_problems(config)]
    runs_dir = path_problem("runs_dir", Path(config.runs_dir).absolute())
    if runs_dir is not None:
        problems.append(runs_dir)
    if cluster.walltime_min is not None and cluster.signal_lead_s >= 60 * cluster.walltime_min:
        why = f"the whole time limit is {60 * cluster.walltime_min} s (cluster.walltime_min = {cluster.walltime_min})"
        problems.append(Problem("cluster.signal_lead_s", cluster.signal_lead_s, why, "Give less, or a longer limit"))
    if cluster.gpu_type is not None and cluster.gpu_request is GpuRequest.none:
        hint = "Leave it out, or use cluster.gpu_request=gres"
        problems.append(Problem("cluster.gpu_type", cluster.gpu_type, "no GPUs are asked for by name", hint))
    return problems


def job_variables(cluster: ClusterConfig, environ: Mapping[str, str], *, python: str) -> dict[str, str]:
    """What the job gets of the user's environment, and what its script needs: the allow-list of local ranks."""
    kept = {name: value for name, value in job_environment(environ).items() if _VARIABLE.fullmatch(name)}
    for name in ("LAUNCHER_PYTHON", "LAUNCHER_SETUP_FILE", "LAUNCHER_MODULES"):
        kept.pop(name, None)
    kept["LAUNCHER_PYTHON"] = python
    if cluster.setup_file is not None:
        kept["LAUNCHER_SETUP_FILE"] = str(Path(cluster.setup_file).absolute())
    if cluster.modules:
        kept["LAUNCHER_MODULES"] = " ".join(cluster.modules)
    return kept


def sbatch_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of sbatch itself: the user's whole one, for site plug-ins, without marks of an enclosing job.

    What of it reaches the job is for --export to say. SBATCH_WAIT and its like would change what sbatch does.
    """
    dropped = ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_TEST_ONLY", "SBATCH_EXPORT", "SLURM_EXPORT_ENV")
    kept = {
        name: value
        for name, value in environ.items()
        if name not in dropped and (not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS"))
    }
    return {**kept, **variables}


def on_cpus(config: RunConfig, stage: str) -> bool:
    """Whether a stage asks for no GPU."""
    return stage in ("prepare", "export") or resolve_topology(config, []).device == "cpu"


def _resources(config: RunConfig, stage: str) -> list[str]:
    cluster = config.cluster
    # A partition of its own has other nodes: what was asked of the training nodes does not hold there.
    elsewhere = stage in ("prepare", "export") and cluster.cpu_partition is not None
    wanted: list[tuple[str, object]] = [
        ("partition", cluster.cpu_partition if elsewhere else cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("time", cluster.walltime_min if stage == "train" else cluster.stage_walltime_min),
        ("nodes", cluster.nodes if stage == "train" else 1),
        ("ntasks-per-node", cluster.devices_per_node or 1 if stage == "train" else 1),
        ("cpus-per-task", cores_per_task(config, stage)),
    ]
    if not elsewhere:
        wanted += [
            ("constraint", cluster.constraint),
            ("reservation", cluster.reservation),
            ("nodelist", cluster.nodelist if stage == "train" else None),
            ("exclude", cluster.exclude),
            ("mem", _memory(config, stage)),
        ]
    if not on_cpus(config, stage):
        wanted.append(_gpus(cluster, cluster.devices_per_node or 1 if stage == "train" else 1))
    if stage == "train":
        wanted.append(("licenses", cluster.licenses))
    wanted += [("mail-user", cluster.mail_user), ("mail-type", cluster.mail_type)]
    words = [f"--{name}={value}" for name, value in wanted if value is not None]
    if stage == "train":
        words += [f"--signal=USR2@{cluster.signal_lead_s}", *(["--exclusive"] if cluster.exclusive else [])]
        words += cluster.sbatch_args
    return words


def cores_per_task(config: RunConfig, stage: str = "train") -> int | None:
    """Cores asked for with each task of a stage; None leaves them to Slurm.

    Many sites give one per job unless told otherwise, and a rank that feeds a GPU needs some.
    """
    cluster = config.cluster
    unasked = cluster.cpus_per_task is None and not cluster.exclusive and cluster.gpu_request is not GpuRequest.none
    return CORES_PER_GPU if unasked and not on_cpus(config, stage) else cluster.cpus_per_task


def _memory(config: RunConfig, stage: str) -> str | None:
    asked = config.cluster.memory_gib_per_node if stage == "train" else _stage_memory_gib(config, stage)
    if asked is None:
        return None
    return f"{math.ceil(asked * 1024)}M" if asked else "0"


def _stage_memory_gib(config: RunConfig, stage: str) -> float | None:
    """The part of a node's memory that goes with one of its GPUs, or more where the weights need it: no stage has more
    than one GPU, and whoever takes all the memory keeps everybody else from the others.
    """
    cluster = config.cluster
    parts = cluster.devices_per_node or 1
    if cluster.memory_gib_per_node is None or cluster.gpu_request is GpuRequest.none or parts == 1:
        return cluster.memory_gib_per_node
    # 0 is all of a node, and how much that is only host_memory_gib tells.
    whole = cluster.memory_gib_per_node or cluster.host_memory_gib or 0.0
    needed = max(whole / parts, STAGE_MEMORY_GIB, 0.0 if stage == "prepare" else _weights_gib(config))
    return min(whole, needed) if whole else needed


def _weights_gib(config: RunConfig) -> float:
    """Host memory of an export, which eval makes too: all trained weights in 32 bits beside those that are written."""
    architecture = config.model.architecture
    if architecture.hidden_size == 0:  # a model of the user's own, of which nothing is known here
        return 0.0
    per_parameter = 8 if config.method.kind is MethodKind.full else 4
    return per_parameter * count_parameters(architecture) / 2**30


def _gpus(cluster: ClusterConfig, count: int) -> tuple[str, str | None]:
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type is not None else ""
    if cluster.gpu_request is GpuRequest.gres:
        return "gres", f"gpu:{kind}{count}"
    return "gpus-per-node", f"{kind}{count}" if cluster.gpu_request is GpuRequest.gpus_per_node else None


def _request_problems(request: JobRequest) -> list[Problem]:
    problems = [path_problem("runs_dir", request.log_dir)]
    for key, words in (("name", [request.job_name]), ("script", [str(request.script), *request.script_args])):
        problems += [Problem(key, word[:80], reason) for word in words if (reason := why_unfit(word, max_bytes=65_536))]
    if ":" in request.script_args:
        problems.append(
            Problem("script", ":", "sbatch takes a lone colon for the border between two jobs, and drops it")
        )
    problems += [_bad_name(name) for name in request.variables if not _VARIABLE.fullmatch(name)]
    return _found(problems)


def _bad_name(name: str) -> Problem:
    return Problem("environment", name[:80], "is not the name of a variable")


def _found(problems: Iterable[Problem | None]) -> list[Problem]:
    return [problem for problem in problems if problem is not None]
