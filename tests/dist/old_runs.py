"""The runs in tests/fixtures/runs, made by an earlier version: unpacked, begun anew, and their curves compared."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / "tests" / "fixtures" / "runs"
GOLDENS: dict[str, Any] = json.loads((PACKED / "goldens.json").read_text())

Curve = dict[str, list[str]]
"""By "train STEP" and "eval STEP": loss, learning rate and gradient norm as exact hex."""


def unpack(root: Path) -> Path:
    """A copy of all of them, in which every path and host is of this machine."""
    shutil.copytree(PACKED, root)
    words = {"@ROOT@": str(root), "@CHECKOUT@": str(ROOT), "@VENV@": sys.prefix, "@HOST@": socket.gethostname()}
    for path in root.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            packed = text = path.read_bytes()
            for word, meaning in words.items():
                text = text.replace(word.encode(), meaning.encode())
            if text != packed:
                path.write_bytes(text)
    for link in root.glob("*/data.link"):
        link.with_name("data").symlink_to(link.read_text().strip())
        link.unlink()
    return root


def begin_anew(run: Path, to: Path) -> Path:
    """The same run before its first attempt."""
    to.mkdir(parents=True)
    for name in ("config.yaml", "plan.json", "versions.json", "data"):
        shutil.copy2(run / name, to / name, follow_symlinks=False)
    (to / "attempts").mkdir()
    (to / "checkpoints").mkdir()
    return to


def curve(run: Path) -> Curve:
    """What metrics.jsonl says; of a step that was done again, the last time."""
    found = {}
    for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        figures = [record[key] for key in ("loss", "lr", "grad_norm") if key in record]
        found[f"{record['kind']} {record['step']}"] = [float(figure).hex() for figure in figures]
    return found


def assert_goes_on_undisturbed(name: str, resumed: Path, anew: Path) -> None:
    """The resumed run has the curve of the one begun anew, which nobody disturbed, and that of the earlier version.

    Bit for bit where this machine computes as the one that made the runs did. Where its processor, or its torch, is
    another, the steps before the stop tell: they then differ in the last digits.
    """
    before = curve(PACKED / name)
    undisturbed = curve(anew)
    exact = {key: undisturbed.get(key) for key in before} == before
    assert exact or not _made_here(), "on this very machine the earlier version had other losses"
    for expected in (undisturbed, GOLDENS[name]["curve"]):
        found = curve(resumed)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        others = {key: (found[key], expected[key]) for key in found if not _equal(found[key], expected[key], exact)}
        assert not others, f"other than undisturbed: {others}"


def _equal(found: list[str], expected: list[str], exact: bool) -> bool:
    return found == expected or (not exact and _numbers(found) == pytest.approx(_numbers(expected), rel=1e-4))


def _numbers(figures: list[str]) -> list[float]:
    return [float.fromhex(figure) for figure in figures]


def _made_here() -> bool:
    """Whether processor and torch are those that made the runs."""
    facts = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))
    ]
    return hashlib.sha256("\n".join([*facts[:2], torch.__version__]).encode()).hexdigest() == GOLDENS["made_on"]


def keys(value: object, at: str = "") -> set[str]:
    """Every key in a JSON document, as a.b.c; elements of lists count as one."""
    if isinstance(value, list):
        return set().union(*(keys(item, at) for item in value))
    if not isinstance(value, dict):
        return set()
    return set().union(*({at + key} | keys(item, f"{at}{key}.") for key, item in value.items()))


def files_of(run: Path) -> list[str]:
    """Names of all files and links in a run directory; job numbers are left out."""
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_symlink() or path.is_file()}
    return sorted({re.sub(r"slurm-\d+", "slurm-N", name) for name in names})
