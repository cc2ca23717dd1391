"""What `scripts/test --gpu` found, as one JSON and one page: versions, cards, and what became of each item."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "accelerate", "deepspeed", "transformers", "peft", "bitsandbytes", "trl")
Status = Literal["held", "failed", "not run"]


@dataclass(frozen=True)
class Item:
    """One property that was to be shown; `reason` says why it failed or did not run."""

    name: str
    status: Status
    time_s: float
    reason: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the items ran; `cards` is empty on a machine without GPUs."""

    cards: list[str]
    driver_cuda: str | None
    versions: dict[str, str]


def this_machine() -> Machine:
    import torch

    cards = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        cards.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}")
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return Machine(cards, torch.version.cuda or torch.version.hip, versions)


def write_report(folder: Path, machine: Machine, items: list[Item], *, dry_run: bool) -> None:
    """Writes gpu.json and gpu.md into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"dry_run": dry_run, "machine": asdict(machine), "items": [asdict(item) for item in items]}
    (folder / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(page(machine, items, dry_run=dry_run), encoding="utf-8")


def page(machine: Machine, items: list[Item], *, dry_run: bool) -> str:
    cards = "; ".join(machine.cards) or "no GPU"
    lines = ["## Run of `scripts/test --gpu`", ""]
    if dry_run:
        lines += ["Dry run on a CPU: it shows that the items run, and nothing about a GPU.", ""]
    lines += [f"Cards: {cards}.", f"torch built for CUDA or ROCm: {machine.driver_cuda or 'neither'}.", ""]
    lines += ["Versions: " + ", ".join(f"{name} {found}" for name, found in machine.versions.items()) + ".", ""]
    lines += ["| item | status | time, s |", "|---|---|---|"]
    for item in items:
        reason = " ".join(item.reason.split()).replace("|", r"\|")
        lines.append(f"| {item.name} | {item.status}{': ' + reason if reason else ''} | {item.time_s:.1f} |")
    return "\n".join(lines) + "\n"
