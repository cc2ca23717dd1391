"""The wheel, in an environment that has the core dependencies and nothing else: no torch, no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def build_wheel(to: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(to), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(to.glob("tunelaunch-*.whl"))


def closure(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that these requirements need, and those need."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() not in found:
            found.add(requirement.name.lower())
            extras = [*requirement.extras, ""]
            for text in metadata.requires(requirement.name) or []:
                needed = Requirement(text)
                if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                    needed.marker = None
                    waiting.append(needed)
    return found


def link_distributions(names: set[str], site_packages: Path) -> None:
    """Shows installed distributions to another environment, without downloading them again."""
    source = Path(sysconfig.get_path("purelib"))
    for name in names:
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site_packages / top).exists():
                (site_packages / top).symlink_to(source / top)


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an environment with the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder / "dist")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    site_packages = next((folder / "venv").glob("lib/python*/site-packages"))
    core = [text for text in metadata.requires("tunelaunch") or [] if "extra ==" not in text]
    link_distributions(closure(core), site_packages)
    return folder / "venv"


def run(environment: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"LAUNCHER_CACHE": str(cwd / "cache"), "PATH": f"{environment / 'bin'}:/usr/bin:/bin"}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


def test_the_environment_has_no_torch_and_takes_launcher_from_the_wheel(
    wheel_environment: Path, tmp_path: Path
) -> None:
    code = (
        "import importlib.util as u, launcher; "
        "print([u.find_spec(name) for name in ('torch', 'transformers', 'accelerate', 'deepspeed')], launcher.__file__)"
    )
    shown = run(wheel_environment, tmp_path, "python", "-c", code)
    assert shown.stdout.startswith("[None, None, None, None]"), shown.stderr
    assert str(wheel_environment) in shown.stdout


def test_conf_and_slurm_ride_in_the_wheel(wheel_environment: Path) -> None:
    share = next(wheel_environment.glob("lib/python*/site-packages/launcher/_share"))
    for folder in ("conf", "slurm"):
        shipped = {path.relative_to(share / folder) for path in (share / folder).rglob("*") if path.is_file()}
        in_checkout = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert shipped == in_checkout and shipped


@pytest.mark.parametrize("experiment", ["quickstart", "llama3_8b_full_zero3_8gpu"])
def test_check_plans_a_run_without_torch(wheel_environment: Path, tmp_path: Path, experiment: str) -> None:
    words = ["experiment=" + experiment]
    if experiment != "quickstart":
        (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 200)
        words.append("data.path=train.jsonl")
    done = run(wheel_environment, tmp_path, "launcher", "check", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["batch"]["total_steps"] > 0


def test_a_mistyped_setting_is_answered_from_the_wheel(wheel_environment: Path, tmp_path: Path) -> None:
    done = run(wheel_environment, tmp_path, "launcher", "check", "experiment=quickstart", "optim.epoch=1")
    assert done.returncode == 2
    assert "optim.epochs" in done.stderr + done.stdout


def test_training_without_torch_says_what_to_install(wheel_environment: Path, tmp_path: Path) -> None:
    done = run(wheel_environment, tmp_path, "launcher", "train", "experiment=quickstart")
    assert done.returncode == 2
    assert 'pip install "tunelaunch[train]"' in done.stderr
    assert not (tmp_path / "runs").exists()
