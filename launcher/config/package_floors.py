"""Oldest versions of the training packages that a run accepts, and why. pyproject.toml states the same ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from launcher.config.schema import RunConfig
from launcher.config.sharding import EngineKind
from launcher.errors import Problem

_UNTESTED = "older versions are not tested"
FLOORS = {
    "torch": ("2.13", _UNTESTED),
    "transformers": ("5.23", _UNTESTED),
    "accelerate": ("1.15", _UNTESTED),
    "peft": ("0.21", _UNTESTED),
    "deepspeed": (
        "0.19.6",
        "older versions can drop gradients or average them wrongly without an error: with CPU offload, with "
        "overlapping communication, or in the last micro-batch of a step",
    ),
}


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_problems(config: RunConfig, find: Callable[[str], str | None] = installed_version) -> list[Problem]:
    """Installed packages that are too old for this run. A package that is missing here may be on the nodes."""
    if config.cluster.container_image is not None:
        return []  # the image brings its own; each rank checks those
    return outdated_packages(config, find)


def outdated_packages(config: RunConfig, find: Callable[[str], str | None] = installed_version) -> list[Problem]:
    """Packages of this Python that are too old for this run."""
    engine = config.strategy.kind.sharding.engine
    problems = []
    for package, (floor, reason) in FLOORS.items():
        found = find(package)
        needed = package != "deepspeed" or engine is EngineKind.zero
        if needed and found is not None and Version(found) < Version(floor):
            key, value = ("strategy.kind", config.strategy.kind.value) if package == "deepspeed" else (package, found)
            why = f"{package} {found} is too old: {reason}"
            problems.append(Problem(key, value, why, f'pip install "{package}>={floor}"'))
    return problems
