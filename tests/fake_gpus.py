"""Hosts with GPUs that are not there: an nvidia-smi that answers as the real one, and the files of AMD's driver."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = """#!{python}
import sys, time
CARDS = {cards!r}
if {hangs}: time.sleep(600)
if sys.argv[1:] == ["-L"]:
    for number, card in enumerate(CARDS):
        print(f"GPU {{number}}: {{card['name']}} (UUID: {{card['uuid']}})")
        for index, profile in enumerate(card["mig"] or ()):
            print(f"  MIG {{profile:<15}} Device {{index:2}}: (UUID: MIG-{{number}}{{index}}-slice)")
    sys.exit()
(query,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--query-gpu=")]
for field in query.split(","):
    if field not in {fields!r}:
        sys.exit(f'Field "{{field}}" is not a valid field to query.')
for card in CARDS:
    card = card | {{"mig.mode.current": "[N/A]" if card["mig"] is None else "Enabled" if card["mig"] else "Disabled"}}
    print(", ".join(str(card[field]) for field in query.split(",")))
"""
FIELDS = ("name", "uuid", "memory.total", "driver_version", "compute_cap", "mig.mode.current")


@dataclass(frozen=True)
class Card:
    """A model of NVIDIA's: its name, MiB of memory and compute capability as nvidia-smi prints them."""

    name: str
    memory_mib: int | str
    capability: str
    mig: tuple[str, ...] | None = None
    """Profiles of its slices; None for a card without MIG, empty where MIG is off."""


T4 = Card("Tesla T4", 15360, "7.5")
V100 = Card("Tesla V100-SXM2-16GB", 16384, "7.0")
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24564, "8.9")
A100_40 = Card("NVIDIA A100-SXM4-40GB", 40960, "8.0", ())
A100_80 = Card("NVIDIA A100-SXM4-80GB", 81920, "8.0", ())
A100_MIG = Card("NVIDIA A100-SXM4-40GB", 40960, "8.0", ("3g.20gb", "2g.10gb"))
H100 = Card("NVIDIA H100 80GB HBM3", 81559, "9.0", ())
H200 = Card("NVIDIA H200", 143771, "9.0", ())
GH200 = Card("NVIDIA GH200 480GB", "[N/A]", "9.0", ())


def install_nvidia(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *cards: Card, knows: tuple[str, ...] = FIELDS, hangs: bool = False
) -> None:
    """Makes this host one with these cards; an older driver `knows` fewer fields."""
    described = [
        {
            "name": card.name,
            "uuid": f"GPU-{number}{number}aa-5b",
            "memory.total": card.memory_mib,
            "compute_cap": card.capability,
            "driver_version": "580.65.06",
            "mig": card.mig,
        }
        for number, card in enumerate(cards)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(SCRIPT.format(python=sys.executable, cards=described, fields=knows, hangs=hangs))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    _forget_real_gpus(monkeypatch, folder)


def install_amd(monkeypatch: pytest.MonkeyPatch, folder: Path, *, gpus: int, gfx: int = 90402, gib: int = 192) -> None:
    """Makes this host one with two CPUs and so many GPUs of AMD, as the driver describes them below /sys."""
    _forget_real_gpus(monkeypatch, folder)
    nodes = folder / "nodes"
    for number in range(2 + gpus):
        node = nodes / str(number)
        bank = node / "mem_banks" / "0" / "properties"
        bank.parent.mkdir(parents=True)
        is_cpu = number < 2
        unique_id = 0 if is_cpu else 0xABC0 + number
        node.joinpath("properties").write_text(
            f"cpu_cores_count {64 * is_cpu}\nsimd_count {0 if is_cpu else 1216}\n"
            f"gfx_target_version {0 if is_cpu else gfx}\nunique_id {unique_id}\n"
        )
        bank.write_text(f"heap_type {0 if is_cpu else 1}\nsize_in_bytes {gib * 2**30}\nflags 0\n")
    monkeypatch.setattr("launcher.config.devices._AMD_DRIVER", nodes)


def _forget_real_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("launcher.config.devices._NVIDIA_DRIVER", folder / "no-nvidia")
    monkeypatch.setattr("launcher.config.devices._AMD_DRIVER", folder / "no-amd")
