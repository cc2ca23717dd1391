"""The devices of this host, found without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")
_AMD_DRIVER = Path("/sys/class/kfd/kfd/topology/nodes")
# The name last; older drivers do not know all of the first.
_QUERIES = ("uuid,memory.total,compute_cap,mig.mode.current,name", "uuid,memory.total,name")
_MIG = re.compile(r"\s+MIG (?P<profile>\S+)\s+Device\s+\d+:\s+\(UUID: (?P<uuid>[^)\s]+)\)")
_MIG_MEMORY = re.compile(r"(\d+)gb")
_MIG_SHARE = 0.95
"""Of the memory that a MIG profile is named for: a 1g.5gb has 4.75 GiB."""
_VRAM_HEAPS = ("1", "2")
_LIMIT_S = 20.0
_HUNG: set[str] = set()
"""Programs that did not answer; not asked again by this process."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice, that a process started here would see."""

    name: str
    memory_gib: float | None
    """None where the driver does not say."""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability; None for AMD, and where the driver does not say."""
    uuid: str = ""
    slices: tuple[Gpu, ...] | None = None
    """In MIG mode, in which the GPU itself cannot be used; None out of it."""


def visible_gpus() -> list[Gpu]:
    """GPUs of this host that the environment leaves visible; empty without a driver."""
    for_cuda = os.environ.get("CUDA_VISIBLE_DEVICES")
    if nvidia := _listed_nvidia() or _unlisted_nvidia():
        return _usable(_select(nvidia, for_cuda))
    amd = _select(_installed_amd(), os.environ.get("ROCR_VISIBLE_DEVICES"))
    return _select(amd, os.environ.get("HIP_VISIBLE_DEVICES", for_cuda))


def working_gpus() -> list[Gpu]:
    """GPUs that a working driver of this host lists, visible or not."""
    return _listed_nvidia() or _installed_amd()


def smallest_memory_gib(gpus: list[Gpu]) -> float | None:
    """Memory of the smallest GPU; None where the driver does not say."""
    return min((gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None), default=None)


def _select(gpus: list[Gpu], chosen: str | None) -> list[Gpu]:
    """Those that a list of numbers and UUIDs names, in its order."""
    if chosen is None or not gpus:
        return gpus
    by_uuid = [gpu for whole in gpus for gpu in (whole, *(whole.slices or ()))]
    selected: list[Gpu] = []
    for entry in (part.strip() for part in chosen.split(",")):
        named = [gpu for gpu in by_uuid if entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)]
        if entry.isdecimal() and int(entry) < len(gpus):
            selected.append(gpus[int(entry)])
        elif named:
            selected.append(named[0])
        elif entry.startswith(("GPU-", "MIG-")) and not all(gpu.uuid for gpu in by_uuid):
            selected.append(Gpu(entry, None, uuid=entry))
        else:  # as CUDA does: the first entry that names no device ends the list
            break
    return selected


def _usable(gpus: list[Gpu]) -> list[Gpu]:
    """CUDA shows a process one slice at most, and no whole GPU beside it."""
    slices = [part for gpu in gpus for part in ([gpu] if gpu.uuid.startswith("MIG-") else gpu.slices or ())]
    return slices[:1] or [gpu for gpu in gpus if gpu.slices is None]


def _listed_nvidia() -> list[Gpu]:
    """NVIDIA's, in the order of nvidia-smi."""
    # nvidia-smi first: inside a container it lists only what the container may use, unlike /proc.
    for fields in _QUERIES:
        gpus = [gpu for line in query_gpus(fields) if (gpu := _parse_gpu(fields.split(","), line)) is not None]
        if any(gpu.slices is not None for gpu in gpus):
            slices = _mig_slices()
            return [gpu if gpu.slices is None else _sliced(gpu, slices.get(gpu.uuid, [])) for gpu in gpus]
        if gpus:
            return gpus
    return []


def _unlisted_nvidia() -> list[Gpu]:
    """NVIDIA's where there is no nvidia-smi, or it fails."""
    return [Gpu(path.name, None) for path in sorted(_NVIDIA_DRIVER.iterdir())] if _NVIDIA_DRIVER.is_dir() else []


def query_gpus(fields: str) -> tuple[str, ...]:
    """The answer of nvidia-smi, one line for each GPU; empty without it."""
    return _nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits")


def _nvidia_smi(*options: str) -> tuple[str, ...]:
    """Lines of its answer; none where it is missing, fails or hangs, as it does with a broken driver."""
    program = shutil.which("nvidia-smi")
    return _answer_of(program, options) if program is not None and program not in _HUNG else ()


@lru_cache  # a call takes a second on a large node, and a command needs the answer several times
def _answer_of(program: str, options: tuple[str, ...]) -> tuple[str, ...]:
    try:
        answer = subprocess.run([program, *options], capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    except subprocess.TimeoutExpired:
        _HUNG.add(program)
        return ()
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(answer.stdout.splitlines())


def _parse_gpu(fields: list[str], line: str) -> Gpu | None:
    values = dict(zip(fields, (part.strip() for part in line.split(",", len(fields) - 1)), strict=False))
    if "name" not in values:
        return None
    memory_mib, capability = values["memory.total"], re.fullmatch(r"(\d+)\.(\d+)", values.get("compute_cap", ""))
    return Gpu(
        name=values["name"],
        memory_gib=int(memory_mib) / 1024 if memory_mib.isdecimal() else None,
        capability=(int(capability[1]), int(capability[2])) if capability else None,
        uuid=values["uuid"],
        slices=() if values.get("mig.mode.current") == "Enabled" else None,
    )


def _mig_slices() -> dict[str, list[tuple[str, str]]]:
    """Profile and UUID of each slice, by the UUID of its GPU."""
    slices: dict[str, list[tuple[str, str]]] = {}
    uuid = ""
    for line in _nvidia_smi("-L"):
        if whole := re.match(r"GPU \d+: .*\(UUID: ([^)\s]+)\)", line):
            uuid = whole[1]
        elif match := _MIG.match(line):
            slices.setdefault(uuid, []).append((match["profile"], match["uuid"]))
    return slices


def _sliced(gpu: Gpu, slices: list[tuple[str, str]]) -> Gpu:
    made = []
    for profile, uuid in slices:
        nominal = _MIG_MEMORY.search(profile)
        memory = _MIG_SHARE * int(nominal[1]) if nominal else None
        made.append(Gpu(f"{gpu.name} MIG {profile}", memory, gpu.capability, uuid))
    return Gpu(gpu.name, gpu.memory_gib, gpu.capability, gpu.uuid, tuple(made))


def _installed_amd() -> list[Gpu]:
    """AMD's, in the order of the driver; needs no tool of ROCm."""
    nodes = sorted(_AMD_DRIVER.glob("[0-9]*"), key=lambda node: int(node.name))
    return [gpu for node in nodes if (gpu := _amd_gpu(node)) is not None]


def _amd_gpu(node: Path) -> Gpu | None:
    properties = _properties(node / "properties")
    if properties.get("simd_count", "0") == "0":  # a CPU
        return None
    # 90402 is gfx942, 90010 is gfx90a.
    version = int(properties.get("gfx_target_version", "0"))
    banks = [_properties(bank) for bank in node.glob("mem_banks/*/properties")]
    size = sum(int(bank.get("size_in_bytes", "0")) for bank in banks if bank.get("heap_type") in _VRAM_HEAPS)
    unique_id = int(properties.get("unique_id", "0"))
    return Gpu(
        name=f"AMD gfx{version // 10000}{version // 100 % 100}{version % 100:x}",
        memory_gib=size / 2**30 if size else None,
        uuid=f"GPU-{unique_id:016x}" if unique_id else "",
    )


def _properties(path: Path) -> dict[str, str]:
    """Lines of a name and a value; empty where they cannot be read."""
    with suppress(OSError):
        return dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if " " in line)
    return {}


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def host_memory_gib() -> float:
    """Physical memory of this host."""
    return float(psutil.virtual_memory().total) / 2**30
