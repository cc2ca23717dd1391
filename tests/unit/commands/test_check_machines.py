"""`launcher check` and the shipped recipes on ten kinds of host: a plan that fits, or an error that says what helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.shipped_files import share_dir
from launcher.errors import ExitCode
from tests.fake_gpus import (
    A100_40,
    A100_80,
    A100_MIG,
    GH200,
    H100,
    H200,
    RTX_4090,
    T4,
    Card,
    install_amd,
    install_nvidia,
)

MACHINES: dict[str, tuple[Card, ...]] = {
    "1 x T4": (T4,),
    "2 x RTX 4090": (RTX_4090, RTX_4090),
    "A100 in slices": (A100_MIG,),
    "4 x A100-40": (A100_40,) * 4,
    "8 x A100-80": (A100_80,) * 8,
    "8 x H100": (H100,) * 8,
    "8 x H200": (H200,) * 8,
    "GH200": (GH200,),
}
Machine = Callable[[str], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this host the named one."""

    def install(name: str) -> None:
        if name == "8 x MI300X":
            install_amd(monkeypatch, tmp_path, gpus=8)
        else:
            install_nvidia(monkeypatch, tmp_path, *MACHINES.get(name, ()))
        monkeypatch.setattr("launcher.plan.plan.host_memory_gib", lambda: 1500.0)

    return install


def check(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    main(["check", *words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


NAMES = [*MACHINES, "8 x MI300X", "no GPU"]
RECIPES = sorted(path.stem for path in (share_dir("conf") / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_the_quickstart_is_planned_for_what_is_there(
    name: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(name)
    document = check(capsys, "experiment=quickstart")
    problems = document["problems"]
    assert isinstance(problems, list)
    assert problems == []
    plan = document["plan"]
    assert isinstance(plan, dict)
    batch, memory = plan["batch"], plan["memory"]
    assert batch["device"] == ("cpu" if name == "no GPU" else "cuda")
    expected = {"no GPU": None, "A100 in slices": 19.0, "GH200": 80.0, "8 x MI300X": 192.0}
    stated = [card.memory_mib / 1024 for card in MACHINES.get(name, ()) if isinstance(card.memory_mib, int)]
    wanted = expected[name] if name in expected else stated[0]
    assert memory["device_limit"] == (None if wanted is None else pytest.approx(wanted, abs=0.01))


def test_a_card_that_cannot_compute_in_the_default_precision_is_refused_with_the_way_out(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("1 x T4")
    assert main(["train", "experiment=quickstart"]) == ExitCode.USER
    assert "Use strategy.precision=fp16" in capsys.readouterr().err
    assert "this machine cannot run it" not in str(check(capsys, "experiment=quickstart", "strategy.precision=fp16"))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_asks_for_a_card_without_saying_what_helps(
    name: str, recipe: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(name)
    document = check(capsys, f"experiment={recipe}", "data=next_number")
    problems = document["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        assert problem["key"] and problem["why"] and problem["todo"], problem
