"""Versions of other packages that a run refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from launcher.config.compose import compose_config
from launcher.config.package_floors import FLOORS, installed_version, outdated_packages, package_problems
from launcher.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]


def config_with(*overrides: str) -> RunConfig:
    return compose_config(["data=next_number", *overrides])


def test_an_older_deepspeed_is_refused_with_the_reason_where_zero_trains() -> None:
    [problem] = package_problems(config_with("strategy=zero2"), {"deepspeed": "0.19.5"}.get)
    assert problem.key == "strategy.kind" and "0.19.5" in problem.why and "gradients" in problem.why
    assert "deepspeed>=0.19.6" in str(problem)


@pytest.mark.parametrize("found", ["0.19.6", "0.19.10", "0.20.0+cu128", None])
def test_newer_or_absent_packages_are_not_refused(found: str | None) -> None:
    assert package_problems(config_with("strategy=zero2"), {"deepspeed": found}.get) == []


def test_single_and_ddp_do_not_ask_for_deepspeed() -> None:
    assert package_problems(config_with("strategy=ddp"), {"deepspeed": "0.10"}.get) == []


def test_a_container_brings_its_own_packages_which_the_ranks_check() -> None:
    config = config_with("strategy=zero2")
    config.cluster.container_image = "image.sif"
    assert package_problems(config, {"deepspeed": "0.10"}.get) == []
    assert len(outdated_packages(config, {"deepspeed": "0.10"}.get)) == 1


def test_pyproject_states_the_same_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = {(r := Requirement(line)).name: str(r.specifier) for line in project["optional-dependencies"]["train"]}
    assert {name: stated[name] for name in FLOORS} == {name: f">={floor}" for name, (floor, _) in FLOORS.items()}


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate", "peft"])
def test_only_versions_that_the_tests_run_are_accepted(package: str) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    floor = Version(FLOORS[package][0])
    assert floor.release == Version(pins[package]).release[:2]
    [problem] = package_problems(config_with("strategy=ddp"), {package: f"{floor.major}.{floor.minor - 1}"}.get)
    assert problem.key == package and "not tested" in problem.why


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert installed_version("launcher-has-no-such-package") is None
