"""launcher train up to the moment ranks start; with ranks it is in tests/dist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli
from launcher.config.frozen import load_config
from launcher.paths import RunPaths
from launcher.plan.create import create_planned, plan_overrides
from launcher.runs.run_dir import write_state


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run that can be planned, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": f"What comes after {n}?", "completion": str(n + 1)}) for n in range(40)]
    Path("train.jsonl").write_text("\n".join(lines) + "\n")
    return [
        f"model.name_or_path={tiny_model}",
        "data.path=train.jsonl",
        "data.seq_len_tokens=128",
        "cluster.device=cpu",
    ]


def test_a_dry_run_shows_the_plan_and_makes_nothing(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *settings, "--dry-run"]) == 0
    assert "40 examples" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_a_dry_run_as_json_holds_the_plan(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run", *settings, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is True
    assert document["plan"]["data"]["examples"] == 40


def test_all_problems_of_the_settings_come_at_once(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *settings, "optim.epoch=3", "strategy.precision=fp17", "batch.micro_tokens=0"]) == 2
    shown = capsys.readouterr().err
    assert "error: 3 problems" in shown
    assert "optim.epochs" in shown and "fp17" in shown and "batch.micro_tokens" in shown


def test_refused_data_stops_before_a_run_is_made(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Path("train.jsonl").open("a") as file:
        file.write('{"prompt": "a", "completion":\n')
    assert cli.main(["train", *settings]) == 2
    assert "train.jsonl:41" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_planned_run_freezes_what_was_asked_and_what_follows(settings: list[str]) -> None:
    run_dir = create_planned(plan_overrides([*settings, "name=one", "optim.epochs=2"]))
    frozen = load_config(RunPaths(run_dir).config)
    assert frozen.derived is not None
    assert frozen.config.optim.epochs == 2
    assert frozen.derived.total_steps == 2 * frozen.derived.steps_per_epoch
    assert Path(frozen.derived.data_dir).is_dir() and RunPaths(run_dir).data.resolve() == Path(frozen.derived.data_dir)
    assert json.loads(RunPaths(run_dir).plan.read_text())["data"]["examples"] == 40


def test_a_taken_name_is_refused_before_data_is_read(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    create_planned(plan_overrides([*settings, "name=one"]))
    Path("train.jsonl").write_text("broken\n")
    assert cli.main(["train", *settings, "name=one"]) == 2
    assert "exists already" in capsys.readouterr().err


CONTINUE = pytest.mark.parametrize("words", [["train", "--run", "one"], ["resume", "one"]], ids=" ".join)


@CONTINUE
def test_a_finished_run_is_left_alone(
    settings: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run_dir = create_planned(plan_overrides([*settings, "name=one"]))
    write_state(run_dir, "succeeded", attempt=1)
    before = RunPaths(run_dir).events.read_text()
    assert cli.main(words) == 0
    assert "there is nothing left to do" in capsys.readouterr().out
    assert RunPaths(run_dir).events.read_text() == before


def test_settings_of_a_run_cannot_be_changed(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    create_planned(plan_overrides([*settings, "name=one"]))
    assert cli.main(["train", "--run", "one", "optim.lr=1"]) == 2
    assert "frozen when it is created and cannot be changed by optim.lr=1" in capsys.readouterr().err


@CONTINUE
def test_continuing_without_a_checkpoint_would_begin_at_the_beginning(
    settings: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    create_planned(plan_overrides([*settings, "name=one"]))
    assert cli.main([*words, "--dry-run"]) == 0
    assert "it would go on from the beginning" in capsys.readouterr().out
