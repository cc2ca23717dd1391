"""The documents are right: their commands, options, settings, paths and links exist, and the site builds."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.cli import VERBS, make_parser
from launcher.config.build import leaf_types
from launcher.config.compose import GROUPS, compose_with_problems
from launcher.config.schema import RunConfig
from launcher.errors import ExitCode, Problem
from launcher.slurm.client.sweep import expand

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "AGENTS.md", "slurm/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh", "console")
PROGRAMS = ("launcher", "sbatch", "accelerate", "torchrun", "srun", "source", "echo", "curl", "pip")
# Words that stand for something of the reader's own.
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\.\.\.")
SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=\S.*")
# What only the reader's machine can settle.
NOT_HERE = ("does not exist", "no such folder", "no examples were given", "must be given", "there is no W&B key")


@dataclass(frozen=True)
class Command:
    """One command line of a document."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: Path) -> list[Command]:
    """Every line of a shell block that calls a program, and every `launcher ...` in running text."""
    text = page.read_text(encoding="utf-8")
    found = []
    for language, block in FENCE.findall(text):
        if language in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ")
                if line.startswith((*(f"{name} " for name in PROGRAMS), "scripts/")):
                    found.append(line)
    prose = FENCE.sub("", text)
    found += [span for span in re.findall(r"`([^`\n]+)`", prose) if re.match(r"launcher [a-z]+\b", span)]
    return [Command(page.name, tuple(shlex.split(line, comments=True))) for line in found]


def settings_in_text(page: Path) -> list[tuple[str, str]]:
    """Every `key=value` and `group=option` in running text, with the page's name."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = re.findall(r"`([^`\n]+)`", prose)
    sections = {*GROUPS, *RunConfig.__dataclass_fields__}
    return [(page.name, span) for span in spans if SETTING.fullmatch(span) and re.split(r"[.=]", span)[0] in sections]


ALL = [command for page in PAGES for command in commands(page)]
LAUNCHER = sorted(
    {Command(command.page, tail) for command in ALL for tail in [command.words] if "launcher" in tail}, key=str
)


def launcher_words(command: Command) -> tuple[str, list[str]]:
    """The verb and its words; what a pipe feeds it is left out."""
    words = list(command.words)[command.words.index("launcher") + 1 :]
    return words[0], words[1:]


def parsed(command: Command) -> argparse.Namespace:
    verb, words = launcher_words(command)
    # `--step N` names a number and `--conditions LIST` a text: 1 is both.
    words = ["1" if PLACEHOLDER.fullmatch(word) else word for word in words]
    return make_parser(verb).parse_intermixed_args(words)


def refusals(overrides: list[str]) -> list[str]:
    """What is wrong with settings, apart from what the reader has and we have not."""
    _, problems = compose_with_problems(overrides)
    return [str(problem) for problem in problems if not _is_the_readers(problem)]


def _is_the_readers(problem: Problem) -> bool:
    return any(text in problem.why for text in NOT_HERE)


def without_placeholders(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not PLACEHOLDER.fullmatch(override.partition("=")[2].strip("[]"))]


def test_commands_are_found_in_the_documents() -> None:
    assert len(LAUNCHER) > 40
    assert {"README.md", "data.md", "after-training.md", "troubleshooting.md", "configuration.md"} <= {
        command.page for command in LAUNCHER
    }


@pytest.mark.parametrize("command", LAUNCHER, ids=str)
def test_a_command_shown_is_one_the_launcher_takes(command: Command) -> None:
    verb, words = launcher_words(command)
    assert verb in VERBS
    if words:
        args = parsed(command)
        given = [override for override in vars(args).get("overrides", []) if override != "1"]
        runs = expand(given) if verb == "submit" else [given]
        assert [refusal for run in runs for refusal in refusals(without_placeholders(run))] == []


@pytest.mark.parametrize("command", [command for command in ALL if "launcher.train" in command.words], ids=str)
def test_what_a_starter_is_given_composes(command: Command) -> None:
    overrides = list(command.words[command.words.index("launcher.train") + 1 :])
    assert overrides and refusals(without_placeholders(overrides)) == []


@pytest.mark.parametrize("command", [command for command in ALL if command.words[0] == "sbatch"], ids=str)
def test_a_job_shown_composes(command: Command) -> None:
    script = command.words.index("slurm/train.sbatch")
    assert all(word.startswith("--") for word in command.words[1:script])
    overrides = command.words[script + 1 :]
    if overrides[0] != "--run":
        assert refusals(without_placeholders(list(overrides))) == []


@pytest.mark.parametrize(("page", "override"), [pair for page in PAGES for pair in settings_in_text(page)])
def test_a_setting_in_running_text_exists(page: str, override: str) -> None:
    override = shlex.split(override)[0]
    key, _, value = override.partition("=")
    if PLACEHOLDER.fullmatch(value.strip("[]")) or value == "[code]":
        assert key in {*GROUPS, *(leaf for leaf, _ in leaf_types(RunConfig))}
        return
    # Alone it may want a second setting beside it; that it exists and has the right type is what counts here.
    wrong = [problem for problem in refusals([override]) if problem.startswith(f"{key} = ")]
    assert not [problem for problem in wrong if re.search(r"no such|must be|given twice", problem)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"\w+://", target)]
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_the_checkout_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])(?:scripts|slurm|conf|launcher|tests|docs)/[\w./-]+", text)
    # launcher/_share is what conf/ and slurm/ are called in the wheel.
    paths = [name.rstrip(".") for name in named if not re.search(r"[A-Z]{3}|launcher/_share", name)]
    assert [name for name in paths if not (ROOT / name).exists()] == []


def test_the_table_of_exit_codes_is_complete() -> None:
    table = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}


def test_the_site_builds_strictly_and_every_page_is_in_its_navigation(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_verb_is_in_the_documents() -> None:
    assert set(VERBS) == {launcher_words(command)[0] for command in LAUNCHER}


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Modules")[2]
    named = set()
    for section in text.split("\n### ")[1:]:
        folder, _, table = section.partition("\n")
        named |= {folder + name for name in re.findall(r"^\| `(\w+\.py)` \|", table, flags=re.MULTILINE)}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "launcher").rglob("*.py") if path.name != "__init__.py"}
    missing, gone = sorted(modules - named), sorted(named - modules)
    assert named == modules, f"run scripts/gen-config-docs: add {missing}, remove {gone}"
