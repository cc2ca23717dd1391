"""What `launcher doctor` checks on this host: Python, packages, GPUs."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from launcher import __version__
from launcher.config.devices import host_memory_gib, usable_cores, visible_gpus
from launcher.config.package_floors import installed_version
from launcher.doctor.findings import CheckResult, fail, ok, warn

_PROJECT = "tunelaunch"
_TORCH_SEES = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


def machine_findings() -> list[CheckResult]:
    """What a run on this host, or the submission of one, relies on."""
    return [
        ok("python", f"Python {platform.python_version()}, launcher {__version__} ({sys.executable})"),
        *_packages(),
        *_gpus(),
        ok("machine", f"{usable_cores()} cores, {host_memory_gib():.1f} GiB of memory"),
    ]


def _packages() -> Iterator[CheckResult]:
    try:
        wanted = [Requirement(text) for text in metadata.requires(_PROJECT) or []]
    except metadata.PackageNotFoundError:
        text = f"{_PROJECT} is not installed as a package, so versions were not compared"
        yield warn("packages", text, "pip install .")
        return
    core = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    train = [one for one in wanted if one not in core and one.marker and one.marker.evaluate({"extra": "train"})]
    yield from compare_packages("packages", core, "", f"pip install {_PROJECT}")
    if installed_version("torch") is None:
        text = "torch is not installed here: enough to check and submit, but ranks need it where they run"
        yield ok("training packages", text)
    else:
        yield from compare_packages("training packages", train, " for training", f'pip install "{_PROJECT}[train]"')


def compare_packages(check: str, wanted: list[Requirement], why: str, hint: str) -> Iterator[CheckResult]:
    """Compares installed versions with the required ones; one line if all is well."""
    wrong = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        if version is None:
            wrong.append(fail(check, f"{requirement.name} is needed{why} and not installed", hint))
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is installed, {requirement.specifier} is needed{why}"
            wrong.append(fail(check, text, hint))
    shown = ", ".join(f"{one.name} {installed_version(one.name)}" for one in wanted)
    yield from wrong or [ok(check, shown)]


def _gpus() -> Iterator[CheckResult]:
    gpus = visible_gpus()
    if not gpus:
        yield ok("gpu", "no GPU is visible here; runs on this host use the CPU")
        return
    shown = f"{len(gpus)} x {', '.join(sorted({gpu.name for gpu in gpus}))}"
    if installed_version("torch") is None:
        yield ok("gpu", shown)
        return
    # In a process of its own: torch takes seconds to load, and a broken driver may end the process.
    command = [sys.executable, "-c", _TORCH_SEES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield fail("gpu", f"{shown}, but torch could not look: {error}", "Try: python -c 'import torch'")
        return
    count, _, cuda = done.stdout.strip().partition(" ")
    if count.isdigit() and int(count) >= len(gpus):
        yield ok("gpu", f"{shown}, all seen by torch (CUDA {cuda})")
    else:
        hint = "Install a torch that fits the driver (nvidia-smi shows the newest CUDA it takes)"
        yield fail("gpu", f"{shown}, but torch (CUDA {cuda}) sees {count}", hint)
