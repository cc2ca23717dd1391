"""Run directories: made once, found by name, numbered attempts, one runner at a time."""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path

from launcher import __version__
from launcher.config.frozen import save_config
from launcher.config.schema import Derived, FrozenRun, RunConfig
from launcher.errors import RunError
from launcher.files import replacing, try_lock, write_json
from launcher.paths import RunPaths
from launcher.runs.events import write_event

LATEST = "latest"
SWEEP_FILE = "sweep.json"
"""In a folder of runs that were submitted together (slurm/client/sweep.py)."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "datasets",
    "pyarrow",
    "numpy",
    "hydra-core",
    "wandb",
    "tensorboard",
    "mlflow-skinny",
    "bitsandbytes",
)


def create_run(config: RunConfig, derived: Derived | None, plan: object) -> Path:
    """A new run directory (mode 0700): config.yaml, plan.json, versions.json, the link to the data, a first event.

    Nothing is ever overwritten. config.yaml comes last: a folder without it is not a run. Without `derived` the data is
    still to be prepared (plan.create.complete_run).

    Raises: RunError: the name is taken or is not a file name.
    """
    root = make_folder(Path(config.runs_dir), config.name, config.experiment_name)
    paths = RunPaths(root)
    try:
        write_json(paths.plan, plan, indent=2)
        write_json(paths.versions, versions(), indent=2)
        paths.attempts.mkdir()
        paths.checkpoints.mkdir()
        if derived is not None:
            link_data(root, derived)
        config.name = root.name
        save_config(paths.config, FrozenRun(config=config, derived=derived))
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    write_state(root, "validating")
    return root


def link_data(run_dir: Path, derived: Derived) -> None:
    """data/ of the run directory leads to the prepared data; what it led to before no longer counts."""
    link = RunPaths(run_dir).data
    with replacing(link, durable=False) as draft:
        draft.symlink_to(Path(derived.data_dir).resolve(), target_is_directory=True)


def write_state(run_dir: Path, state: str, *, attempt: int = 0, **fields: object) -> None:
    """Appends a state event, as the launcher."""
    write_event(RunPaths(run_dir).events, attempt, "state", state=state, **fields)


def refuse_taken_name(config: RunConfig) -> None:
    """Refuses early what create_run would refuse at the end.

    Raises: RunError: the name is taken or is not a file name.
    """
    if config.name is not None:
        _check_name(config.name)
        root = Path(config.runs_dir) / config.name
        if root.exists():
            raise _taken(root)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RunError(
            f"name = {name!r}: a run name is letters, digits, '.', '_' and '-', at most 100, not '.' or '-' first"
        )


def _taken(root: Path) -> RunError:
    return RunError(
        f"{root} exists already and is never overwritten. To continue it: launcher train --run {root.name}. "
        "For a new run give another name=NAME, or leave name out"
    )


def make_folder(runs_dir: Path, name: str | None, experiment: str) -> Path:
    """A new folder (mode 0700) under `runs_dir`: `name`, or experiment and time.

    Raises: RunError: the name is taken or is not a file name.
    """
    base = name if name is not None else f"{experiment}-{datetime.now():%Y%m%d-%H%M%S}"
    _check_name(base)
    runs_dir.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        root = runs_dir / (base if number == 1 else f"{base}-{number}")
        try:
            # mkdir is what decides between two starters that want the same name in the same second.
            root.mkdir(mode=0o700)
            return root
        except FileExistsError:
            if name is not None:
                break
    raise _taken(root)


def versions() -> dict[str, str | None]:
    """Versions of launcher, Python and the main packages (None: not installed); git revision of this checkout."""
    found: dict[str, str | None] = {"launcher": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["git_revision"] = _git_revision(Path(__file__).resolve().parents[2])
    return found


def _git_revision(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def all_runs(runs_dir: str | Path = "runs") -> list[Path]:
    """Run directories in a folder, members of sweeps among them (NAME/00), oldest first."""
    folder = Path(runs_dir)
    members = [path for path in folder.glob("*/[0-9]*/config.yaml") if (path.parents[1] / SWEEP_FILE).is_file()]
    found = [path.parent for path in [*folder.glob("*/config.yaml"), *members]]
    return sorted(found, key=lambda path: ((path / "config.yaml").stat().st_mtime, path.name))


def run_name(run_dir: Path) -> str:
    """The name of a run on the command line: its folder; NAME/00 for a member of a sweep."""
    parent = run_dir.absolute().parent
    return f"{parent.name}/{run_dir.name}" if (parent / SWEEP_FILE).is_file() else run_dir.name


def find_run(text: str, runs_dir: str = "runs") -> Path:
    """The run directory meant by a name under `runs_dir`, a path, or `latest`.

    Raises: RunError: there is none, or it is a sweep of several; names the nearest ones.
    """
    known = all_runs(runs_dir)
    if text == LATEST and known:
        return known[-1]
    candidates = (Path(runs_dir) / text, Path(text))
    for candidate in candidates:
        if RunPaths(candidate).config.is_file():
            return candidate
    for candidate in candidates:
        if (candidate / SWEEP_FILE).is_file():
            raise _several_runs(candidate)
    if not known:
        raise RunError(f"there is no run {text!r}, and no run at all in {runs_dir}/; launcher train makes one")
    near = difflib.get_close_matches(text, [run_name(path) for path in known], n=3, cutoff=0.4)
    names = near or [run_name(path) for path in reversed(known[-3:])]
    label = "did you mean" if near else "the newest are"
    raise RunError(f"there is no run {text!r} in {runs_dir}/; {label}: {', '.join(names)} (launcher status lists all)")


def _several_runs(sweep: Path) -> RunError:
    names = [run_name(path.parent) for path in sorted(sweep.glob("[0-9]*/config.yaml"))]
    listed = ", ".join(names if len(names) <= 4 else [*names[:3], "...", names[-1]])
    name = sweep.absolute().name
    return RunError(
        f"{name} is a sweep of {len(names)} runs, and this works on one run: give one of {listed} "
        f"(launcher status {name} shows them all)"
    )


def new_attempt(run_dir: Path) -> int:
    """The number of a new attempt, its folder made; two callers never get the same one."""
    attempts = RunPaths(run_dir).attempts
    attempts.mkdir(exist_ok=True)
    number = last_attempt(run_dir) + 1
    while True:
        try:
            RunPaths(run_dir).attempt(number).mkdir(mode=0o700)
            return number
        except FileExistsError:
            number += 1


def last_attempt(run_dir: Path) -> int:
    """Number of the newest attempt; 0 before the first."""
    return RunPaths(run_dir).newest_attempt()


@contextmanager
def lock_run(run_dir: Path) -> Iterator[int]:
    """Holds the run for one starter on this host; gives the descriptor, which ranks inherit.

    The lock lasts until the starter and all its ranks are gone, so nobody resumes while ranks still save.

    Raises: RunError: somebody else holds it.
    """
    # Not at the first try: `launcher status` holds it for a moment, to see whether somebody else does.
    for pause_s in (0.0, 0.05, 0.1, 0.2):
        time.sleep(pause_s)
        if (descriptor := try_lock(RunPaths(run_dir).lock)) is not None:
            break
    else:
        raise RunError(
            f"{run_dir} is running already; watch it with: launcher logs -f {run_dir.name}, "
            f"stop it with: launcher cancel {run_dir.name}"
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(run_dir: Path) -> bool:
    """Whether somebody on this host runs this directory now."""
    try:
        descriptor = try_lock(RunPaths(run_dir).lock, create=False)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None
