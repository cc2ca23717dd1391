"""The environment of a rank: an allow-list of what the user's shell has, plus who the rank is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from launcher.runs.machine_ranks import Place

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
    "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "FI_", "ROCR_", "HIP_", "HSA_", "MIOPEN_",
    "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_", "DS_", "BNB_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_",
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_", "WANDB_", "MLFLOW_",
)
# fmt: on


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of the user's environment a rank gets.

    What is not listed stays out: above all ACCELERATE_* (DeepSpeed plugins fill settings from it), ranks of an
    enclosing torchrun or srun (RANK, WORLD_SIZE, SLURM_*), and whatever secrets of other programs lie about.
    """
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}


def rank_environment(
    job: Mapping[str, str], *, rank: int, world_size: int, place: Place, threads_per_process: int, device: str
) -> dict[str, str]:
    """The environment of one rank of those that start on this machine."""
    # A run on the CPU of a machine with GPUs: Accelerate and DeepSpeed would take the GPUs on their own.
    cpu_only = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    # Ranks take the address of their own host name for what others reach them at; on many systems that is loopback.
    network = {"GLOO_SOCKET_IFNAME": place.interface, "NCCL_SOCKET_IFNAME": place.interface} if place.interface else {}
    return {
        **network,
        **job,
        **cpu_only,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank - place.first_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(place.num_ranks),
        "MASTER_ADDR": place.master_address,
        "MASTER_PORT": str(place.master_port),
        "OMP_NUM_THREADS": str(threads_per_process),
        # Lines reach the log when they are written, not when the rank ends.
        "PYTHONUNBUFFERED": "1",
    }


def write_names(path: Path, environment: Mapping[str, str]) -> None:
    """Records which variables a job saw. Names only: values may be secret."""
    path.write_text(json.dumps(sorted(environment), indent=1) + "\n", encoding="utf-8")
