"""Every shipped YAML file composes, and every recipe passes the check on a machine that could not run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.compose import GROUPS, compose_config, group_options
from launcher.config.shipped_files import share_dir

CONF = share_dir("conf")
RECIPES = group_options("experiment", [CONF])
# What an option leaves for the user to give.
GIVEN = {
    "model=from_path": ["model.name_or_path=owner/name"],
    "data=hub": ["data.path=hub:owner/name"],
    "data=mixture": ["data.mixture=[{path: builtin:next_number}]"],
    "data=inline": ["data.inline=[{prompt: a, completion: b}]"],
    "data=file": ["data.path=builtin:next_number"],
    "cluster=one_node_8gpu": ["strategy=ddp"],
    "cluster=slurm": ["strategy=ddp"],
    "cluster=slurm_example_university": ["strategy=ddp"],
    "cluster=slurm_example_containers": ["strategy=ddp"],
    "cluster=slurm_example_cpu": ["strategy=ddp"],
}
OPTIONS = [f"{group}={name}" for group in GROUPS[:-1] for name in group_options(group, [CONF])]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_with_the_defaults(option: str) -> None:
    data = [] if option.startswith("data=") else ["data=next_number"]
    compose_config([option, *data, *GIVEN.get(option, [])])


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option in ("data=hub", "data=inline", "data=mixture")]
)
def test_an_option_that_needs_a_value_asks_for_it(option: str) -> None:
    with pytest.raises(Exception, match="must be given"):
        compose_config([option])


def test_every_group_has_a_default_and_no_file_lies_elsewhere() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders == set(GROUPS)
    assert [path.name for path in CONF.glob("*.yaml")] == ["config.yaml"]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# "), path


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_named_after_its_file(recipe: str) -> None:
    assert compose_config([f"experiment={recipe}", "data.path=builtin:next_number"]).experiment_name == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_the_check_offline(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = main(["check", f"experiment={recipe}", "data.path=builtin:next_number", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["problems"]) == (0, [])
    memory = document["plan"]["memory"]
    assert memory["device_limit"] is None or memory["device_total"] < 0.92 * memory["device_limit"]
    assert document["plan"]["parameters"] > 0 and document["plan"]["bill"]["hours"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_hosted_defaults_are_those_of_the_hosted_services() -> None:
    config = compose_config(["experiment=hosted_defaults", "data=next_number"])
    assert (config.optim.epochs, config.batch.global_sequences, config.optim.lr) == (5.0, 4, 0.001)


def test_the_quickstart_uses_what_is_embedded() -> None:
    config = compose_config(["experiment=quickstart"])
    assert config.model.name_or_path == "embedded:smollm2-135m-instruct"
    assert (config.data.path, config.optim.epochs, config.data.packing) == ("builtin:next_number", 2.0, False)
