"""docs/configuration.md and docs/commands.md are what the code says, and what they show works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.build import leaf_types
from launcher.config.compose import compose_config, group_options
from launcher.config.schema import RunConfig
from launcher.config.shipped_files import share_dir

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_generated_pages_are_up_to_date() -> None:
    script = ROOT / "scripts" / "gen-config-docs"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_has_its_line() -> None:
    documented = set(re.findall(r"^\| `([\w.]+)` \|", TEXT, flags=re.MULTILINE))
    assert {key for key, _ in leaf_types(RunConfig)} <= documented


def test_the_recipe_list_is_complete() -> None:
    listed = set(
        re.findall(r"^\| `(\w+)` \| ", TEXT.partition("## Recipes")[2].partition("## ")[0], flags=re.MULTILINE)
    )
    assert listed == set(group_options("experiment", [share_dir("conf")]))


@pytest.mark.parametrize(
    "command", re.findall(r"^launcher (?:check|train) (.*?)(?:\s+#.*)?$", TEXT, flags=re.MULTILINE)
)
def test_every_command_shown_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").touch()
    compose_config([word for word in command.split() if not word.startswith("--")])


@pytest.mark.parametrize("override", ["optim.lr=2e-4", "cluster.price_per_device_hour=2.5", "strategy=zero3"])
def test_every_override_shown_composes(override: str) -> None:
    assert override in TEXT
    compose_config(["data=next_number", override])
