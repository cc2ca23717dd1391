"""The rooms and what each may import: docs/architecture.md holds the table, the code holds to it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "launcher"
LIGHT_ROOMS = ("config", "data", "launch", "track", "verbs")
HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes")


def table() -> dict[str, tuple[str, str]]:
    """Room -> (what it may import of ours, what it must not load), from the table of rooms."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`launcher/"):
            for path in re.findall(r"`launcher/([\w.]+?)(?:\.py|/)?`", cells[0]):
                rows[path] = (cells[2], cells[3])
    return rows


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports anywhere, with their lines; imports for types alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_the_table_names_every_room_and_no_other() -> None:
    rooms = {room_of(path) for path in files()} - {"__init__", "__main__"}
    assert rooms == set(table())


def test_no_room_imports_against_the_arrows() -> None:
    against = []
    for path in files():
        room = room_of(path)
        if room.startswith("__") or path.name == "__main__.py":  # doors for starters, not parts of a room
            continue
        may = table()[room][0]
        allowed = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", may))) | {room, "__version__"}
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] == "launcher" and "everything" not in may and not set(parts[1:2]) <= allowed:
                against.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {name}")
    assert not against, "\n".join(against)


def test_no_room_names_a_package_it_must_not_load() -> None:
    against = []
    for path in files():
        room = room_of(path)
        if room.startswith("__"):
            continue
        forbidden = set(re.findall(r"hydra|subprocess", table()[room][1]))
        if room in ("config", "data", "launch", "track"):
            forbidden |= set(HEAVY)
        if room == "launch":
            forbidden.discard("subprocess")
        for name, line in imported(path):
            if name.split(".")[0] in forbidden:
                against.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {name}")
    assert not against, "\n".join(against)


def modules(*rooms: str) -> list[str]:
    """Modules of the rooms, packages under their own name."""
    found = []
    for path in files():
        if room_of(path) in rooms:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append(name.removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_importing_a_light_room_loads_no_torch(room: str) -> None:
    names = modules(room)
    assert names
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_command_line_starts_without_hydra_and_torch() -> None:
    code = "import sys, launcher.cli; print([name for name in ('torch', 'hydra', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.strip() == "[]"
