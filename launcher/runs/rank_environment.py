"""The environment of a rank: an allow-list of the user's variables, plus what the starter tells its ranks.

Starters write these variables with `RankEnvironment`; ranks read them with the functions below it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""torchrun's names; a process that is not a rank must not inherit them."""

_WATCHED = "LAUNCHER_WATCHED"
_NODES = "LAUNCHER_NODES"
_RANKS_PER_NODE = "LAUNCHER_RANKS_PER_NODE"
_END_TIMES_S = ("LAUNCHER_END_TIME_S", "SLURM_JOB_END_TIME")
"""Ours first; newer Slurm sets its own for tasks of plain srun, too."""

# fmt: off
_NAMES = frozenset([
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "LANG", "LANGUAGE",
    "TZ", "TERM", "COLORTERM", "NO_COLOR", "TMPDIR", "TMP", "TEMP",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "CC", "CXX", "MAX_JOBS",
    "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HUGGING_FACE_HUB_TOKEN",
    "MODULEPATH", "MODULESHOME",
])
_PREFIXES = (
    "LC_", "XDG_", "PYTHON", "LAUNCHER_", "LMOD_",
    "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "OFI_", "GLOO_", "UCX_", "FI_", "NVTE_",
    "ROCR_", "HIP_", "HSA_", "MIOPEN_", "RCCL_",
    "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "TRITON_", "DS_", "BNB_",
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_",
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_", "WANDB_", "MLFLOW_",
)
# fmt: on


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the user's environment that a rank gets.

    The rest stays out: above all ACCELERATE_* (DeepSpeed plugins fill settings from it), the ranks of an enclosing
    torchrun or srun (RANK, WORLD_SIZE, SLURM_*), and secrets of other programs.
    """
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}


class RankNumbers(NamedTuple):
    """Which rank a process is."""

    rank: int
    local_rank: int
    world_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnvironment:
    """What a starter tells its ranks. It also watches their heartbeats and ends them when one hangs."""

    master_address: str
    master_port: int
    threads: int
    """OMP_NUM_THREADS of a rank."""
    device: str
    """cpu or cuda."""
    ranks_per_node: int
    nodes: Sequence[str] = ()
    """In rank order, so that a rank can name the node of a missing one."""
    interface: str = ""
    """Network interface that leads to the other nodes, if the ranks must be given one."""
    end_time_s: float | None = None
    """When the scheduler ends the job, in unix seconds; None without a limit."""

    def variables(
        self,
        inherited: Mapping[str, str],
        *,
        numbers: RankNumbers | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """The whole environment of a rank.

        Args:
            inherited: the user's variables, which beat our defaults.
            numbers: None where srun tells each rank its own.
            settings: cluster.environment, which beats the user's variables.
        """
        # By default ranks advertise the address of their host name, which is loopback on many systems.
        network = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if self.interface else ()
        own: dict[str, object] = {"MASTER_ADDR": self.master_address, "MASTER_PORT": self.master_port, _WATCHED: 1}
        if self.device == "cpu":
            # Accelerate and DeepSpeed would take the GPUs of the machine on their own.
            own |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        if numbers is not None:
            own |= {"RANK": numbers.rank, "LOCAL_RANK": numbers.local_rank, "WORLD_SIZE": numbers.world_size}
            own["LOCAL_WORLD_SIZE"] = self.ranks_per_node
        if self.nodes:
            own |= {_NODES: ",".join(self.nodes), _RANKS_PER_NODE: self.ranks_per_node}
        if self.end_time_s is not None:
            own[_END_TIMES_S[0]] = f"{self.end_time_s:.0f}"
        defaults = dict.fromkeys(network, self.interface)
        if self.device == "cuda":
            defaults["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; CUDA counts the fastest first
            if "PYTORCH_CUDA_ALLOC_CONF" not in inherited:  # the older name of the same
                # The lengths of micro-batches vary: without it a run that fits at first fragments its memory later.
                defaults["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        return {
            **defaults,
            **inherited,
            # Lines reach the log when they are written, not when the rank exits.
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(self.threads),
            **(settings or {}),
            **{name: str(value) for name, value in own.items()},
        }


def rank_numbers(environ: Mapping[str, str]) -> RankNumbers:
    """As torchrun, accelerate, srun or launcher tell them; rank 0 of 1 without any."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return RankNumbers(int(environ["RANK"]), int(environ.get("LOCAL_RANK", "0")), int(environ["WORLD_SIZE"]))
    # SLURM_STEP_ID is absent in a bare batch script, where SLURM_NTASKS would promise tasks that nobody started.
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        local_rank, size = int(environ.get("SLURM_LOCALID", "0")), int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
        return RankNumbers(int(environ["SLURM_PROCID"]), local_rank, size)
    return RankNumbers(0, 0, 1)


def ranks_per_node(environ: Mapping[str, str], world_size: int) -> int:
    """Ranks on this node, under any starter."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    nodes = environ.get("SLURM_STEP_NUM_NODES", "1")
    return max(1, world_size // (int(nodes) if nodes.isdigit() else 1))


def rank_label(environ: Mapping[str, str], rank: int) -> str:
    """`rank 3 on n2` where the node is known, even if that rank never came: ranks are dealt to nodes in blocks."""
    nodes = [node for node in environ.get(_NODES, "").split(",") if node]
    per_node = environ.get(_RANKS_PER_NODE, "")
    index = rank // int(per_node) if per_node.isdigit() and int(per_node) > 0 else len(nodes)
    if index < len(nodes):
        return f"rank {rank} on {nodes[index]}"
    job_nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    return f"rank {rank} (nodes {job_nodes})" if job_nodes else f"rank {rank}"


def is_watched(environ: Mapping[str, str]) -> bool:
    """Whether the starter ends ranks that hang; otherwise each rank must end itself."""
    return environ.get(_WATCHED) == "1"


def job_end_time(environ: Mapping[str, str]) -> float | None:
    """Unix seconds; None where nothing ends the job, or where the end cannot be read."""
    for name in _END_TIMES_S:
        with suppress(KeyError, ValueError):
            end_s = float(environ[name])
            if end_s > time.time():
                return end_s
    return None


def write_names(path: Path, environment: Mapping[str, str]) -> None:
    """Records which variables a job saw. Names only: values may be secret."""
    path.write_text(json.dumps(sorted(environment), indent=1) + "\n", encoding="utf-8")
