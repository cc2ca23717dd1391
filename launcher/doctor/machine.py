"""What `launcher doctor` looks at on this machine: Python, packages, GPUs."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from launcher import __version__
from launcher.config.devices import host_memory_gib, usable_cores, visible_gpus
from launcher.doctor.findings import CheckResult, fail, ok, warn

_PROJECT = "tunelaunch"
_OLDEST_PYTHON = (3, 11)
_TORCH_SEES = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


def machine_findings() -> list[CheckResult]:
    """Everything about this machine that a run here, or the submission of one, stands on."""
    found = [_python(), *_packages(), *_gpus()]
    found.append(ok("machine", f"{usable_cores()} cores, {host_memory_gib():.1f} GiB of memory"))
    return found


def _python() -> CheckResult:
    text = f"Python {platform.python_version()}, launcher {__version__} ({sys.executable})"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return fail("python", text, f"Use Python {_OLDEST_PYTHON[0]}.{_OLDEST_PYTHON[1]} or newer")
    return ok("python", text)


def _packages() -> Iterator[CheckResult]:
    try:
        wanted = [Requirement(text) for text in metadata.requires(_PROJECT) or []]
    except metadata.PackageNotFoundError:
        yield warn(
            "packages", f"{_PROJECT} is not installed as a package, so versions were not compared", "pip install ."
        )
        return
    core = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    train = [
        one for one in wanted if one not in core and one.marker is not None and one.marker.evaluate({"extra": "train"})
    ]
    yield from compare_packages("packages", core, "", f"pip install {_PROJECT}")
    if _version("torch") is None:
        text = "torch is not installed here: enough to check and submit; ranks need it where they run"
        yield ok("training packages", text)
        return
    yield from compare_packages("training packages", train, " for training", f'pip install "{_PROJECT}[train]"')


def compare_packages(check: str, wanted: list[Requirement], why: str, hint: str) -> Iterator[CheckResult]:
    """Installed versions against those the project asks for; one line if all is well."""
    wrong = []
    for requirement in wanted:
        version = _version(requirement.name)
        if version is None:
            wrong.append(fail(check, f"{requirement.name} is needed{why} and not installed", hint))
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is installed, {requirement.specifier} is needed{why}"
            wrong.append(fail(check, text, hint))
    shown = ", ".join(f"{one.name} {_version(one.name)}" for one in wanted)
    yield from wrong or [ok(check, shown)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> Iterator[CheckResult]:
    gpus = visible_gpus()
    if not gpus:
        yield ok("gpu", "no GPU is visible here; runs on this machine use the CPU")
        return
    names = ", ".join(sorted({gpu.name for gpu in gpus}))
    if _version("torch") is None:
        yield ok("gpu", f"{len(gpus)} x {names}")
        return
    # In a process of its own: torch takes seconds to load, and a broken driver may end the process that asks.
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_SEES], capture_output=True, text=True, timeout=180, check=True
        )
        count, _, cuda = done.stdout.strip().partition(" ")
    except (OSError, subprocess.SubprocessError) as error:
        yield fail("gpu", f"{len(gpus)} x {names}, but torch could not look: {error}", "Try: python -c 'import torch'")
        return
    if not count.isdigit() or int(count) < len(gpus):
        text = f"{len(gpus)} x {names}, but torch (CUDA {cuda}) sees {count}"
        yield fail("gpu", text, "Install a torch that fits the driver (nvidia-smi shows the newest CUDA it takes)")
    else:
        yield ok("gpu", f"{len(gpus)} x {names}, all seen by torch (CUDA {cuda})")
