"""launcher verify: every checkpoint of a run against its manifest, byte by byte."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.checkpoint.commit import Checkpoint, verify
from launcher.checkpoint.manifest import read_manifest
from launcher.config.frozen import load_prepared
from launcher.errors import CheckpointError, ExitCode
from launcher.files import as_json
from launcher.paths import RunPaths
from launcher.runs.events import written_manifests
from launcher.runs.run_dir import find_run


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    checked = _verify_all(run_dir)
    damaged = [item for item in checked if item.problems]
    if args.json:
        document = {"run": run_dir.name, "ok": not damaged, "checkpoints": as_json(checked)}
        print(json.dumps(document, indent=2))
    else:
        _show(run_dir, checked)
    return ExitCode.CHECKPOINT if damaged else ExitCode.DONE


@dataclass(frozen=True, slots=True)
class _Checked:
    checkpoint: str
    step: int | None
    files: int
    size_bytes: int
    problems: list[str]


def _verify_all(run_dir: Path) -> list[_Checked]:
    """Every folder that looks like a checkpoint, oldest first."""
    paths = RunPaths(run_dir)
    run_id, trusted = load_prepared(paths.config)[1].run_id, written_manifests(paths.events)
    folders = sorted(path for path in paths.checkpoints.glob("step-*") if path.is_dir())
    return [_verify_one(folder, run_id, trusted) for folder in folders]


def _verify_one(folder: Path, run_id: str, trusted: set[str]) -> _Checked:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return _Checked(folder.name, None, 0, 0, [str(error)])
    problems = verify(Checkpoint(folder, manifest), run_id=run_id, trusted=trusted)
    if folder.name != f"step-{manifest.step:06d}":
        problems = [f"holds the manifest of step {manifest.step}", *problems]
    return _Checked(folder.name, manifest.step, len(manifest.files), manifest.size_bytes, problems)


def _show(run_dir: Path, checked: list[_Checked]) -> None:
    console = Console(highlight=False)
    if not checked:
        print(f"{run_dir.name} has no checkpoints")
    for item in checked:
        verdict = ("damaged", "bold red") if item.problems else ("whole", "green")
        size = f"{item.files} files, {item.size_bytes / 2**20:,.1f} MiB"
        console.print(Text.assemble(f"{item.checkpoint}  ", verdict, f"  {size}"))
        for problem in item.problems:
            console.print(Text(f"  {problem}"), soft_wrap=True)
    whole = [item for item in checked if not item.problems]
    if checked and not whole:
        print("No checkpoint is whole: this run can neither be resumed nor exported.")
    elif len(whole) < len(checked):
        print(f"Resume and export skip the damaged checkpoints and use {whole[-1].checkpoint}.")
