"""The packages and what each imports: docs/architecture.md holds the table, the code holds to it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "launcher"
HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Row:
    """One package in the table of docs/architecture.md."""

    imports: frozenset[str]
    never_loads: frozenset[str]


def _names(cell: str) -> frozenset[str]:
    return frozenset(name.strip() for name in cell.split(",") if name.strip())


def table() -> dict[str, Row]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        match = re.fullmatch(r"`launcher/([\w/]+?)(?:\.py|/)`", cells[0])
        if match is not None and len(cells) == 4:
            rows[match[1].replace("/", ".")] = Row(_names(cells[2]), _names(cells[3]))
    return rows


def package_of(dotted: str) -> str:
    """The row that a module belongs to: its package, or itself at the top level."""
    parts = dotted.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["slurm"] else 1])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


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


def checked() -> list[tuple[Path, str]]:
    """Every module with its package; doors for starters (__main__) and package docstrings belong to none."""
    found = [(path, package_of(module_of(path))) for path in files()]
    return [(path, package) for path, package in found if path.name not in ("__main__.py", "__init__.py")]


def test_the_table_names_every_package_and_no_other() -> None:
    assert {package for _, package in checked()} == set(table())


def test_no_package_imports_against_the_arrows() -> None:
    rows = table()
    against = [
        f"{path.relative_to(ROOT)}:{line}: {package} imports {name}"
        for path, package in checked()
        for name, line in imported(path)
        if name.startswith("launcher.") and name != "launcher.__version__"
        if package_of(name) not in rows[package].imports | {package}
    ]
    assert not against, "\n".join(against)


def test_every_arrow_of_the_table_is_used() -> None:
    used: dict[str, set[str]] = {}
    for path, package in checked():
        used.setdefault(package, set()).update(package_of(name) for name, _ in imported(path) if "launcher." in name)
    spare = {package: sorted(row.imports - used[package]) for package, row in table().items()}
    assert {package: names for package, names in spare.items() if names} == {}


def test_the_arrows_make_no_circle() -> None:
    left = {package: set(row.imports) for package, row in table().items()}
    while ready := [package for package, imports in left.items() if not imports & set(left)]:
        for package in ready:
            del left[package]
    assert not left, f"packages that import each other: {sorted(left)}"


def test_no_package_names_what_it_must_not_load() -> None:
    rows = table()
    against = [
        f"{path.relative_to(ROOT)}:{line}: {package} imports {name}"
        for path, package in checked()
        for name, line in imported(path)
        if name.split(".")[0] in _forbidden(rows[package])
    ]
    assert not against, "\n".join(against)


def _forbidden(row: Row) -> set[str]:
    """Whatever must not load torch must not name what loads it either."""
    return set(row.never_loads) | (set(HEAVY) if "torch" in row.never_loads else set())


def test_modules_of_ours_are_imported_at_the_top_unless_they_load_torch_or_hydra() -> None:
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.module} can be imported at the top of the file"
        for path in files()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("launcher")
        if not _loads_heavy(node.module or "")
        # A rank under torchrun composes settings only where it is to make the run.
        if not (path.name == "worker.py" and _loads_heavy(node.module or "", ("hydra",)))
    ]
    assert not hidden, "\n".join(hidden)


def _loads_heavy(name: str, heavy: tuple[str, ...] = HEAVY) -> bool:
    """Whether importing a module of ours loads one of these packages, directly or through other modules of ours."""
    seen, left = set(), [name]
    while left:
        name = left.pop()
        if name.split(".")[0] in heavy:
            return True
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name not in seen and path.is_file():
            seen.add(name)
            left += [found for found, _ in _imported_at_the_top(path)]
    return False


def _imported_at_the_top(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((name, node.lineno) for alias in node.names for name in _both(node, alias))


def _both(node: ast.ImportFrom, alias: ast.alias) -> tuple[str, str]:
    """A name behind `from` may be a module of its own."""
    return str(node.module), f"{node.module}.{alias.name}"


def light_packages() -> list[str]:
    return sorted(package for package, row in table().items() if "torch" in row.never_loads)


@pytest.mark.parametrize("package", light_packages())
def test_importing_a_light_package_loads_no_torch(package: str) -> None:
    names = [module_of(path) for path, owner in checked() if owner == package]
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
