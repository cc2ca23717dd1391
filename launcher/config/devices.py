"""The devices of this host, found without torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that a process started here would see."""

    name: str
    memory_gib: float | None
    """None where only the driver's listing could be read."""


def visible_gpus() -> list[Gpu]:
    """GPUs of this host that CUDA_VISIBLE_DEVICES makes visible; empty without a driver."""
    gpus = installed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not gpus:
        return gpus
    visible: list[Gpu] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdecimal() and int(entry) < len(gpus):
            visible.append(gpus[int(entry)])
        elif entry.startswith(("GPU-", "MIG-")):
            visible.append(Gpu(entry, None))
        else:  # as CUDA does: the first entry that names no device ends the list
            break
    return visible


def installed_gpus() -> list[Gpu]:
    """GPUs that the driver knows."""
    # nvidia-smi first: inside a container it lists only what the container may use, unlike /proc.
    if gpus := [_parse_gpu(line) for line in query_gpus("name,memory.total") if "," in line]:
        return gpus
    return [Gpu(path.name, None) for path in sorted(_DRIVER.iterdir())] if _DRIVER.is_dir() else []


def query_gpus(fields: str) -> list[str]:
    """The answer of nvidia-smi, one line for each GPU; empty without it."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


def _parse_gpu(line: str) -> Gpu:
    name, _, memory_mib = line.rpartition(",")
    number = memory_mib.strip()
    return Gpu(name.strip(), int(number) / 1024 if number.isdecimal() else None)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def host_memory_gib() -> float:
    """Physical memory of this host."""
    return float(psutil.virtual_memory().total) / 2**30
