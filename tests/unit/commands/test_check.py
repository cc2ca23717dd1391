"""launcher check: problems, plan, JSON, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.config.build import build
from launcher.config.schema import RunConfig


@pytest.fixture
def quickstart(tiny_model: Path) -> list[str]:
    """The quickstart with a model that lies here."""
    return ["experiment=quickstart", f"model.name_or_path={tiny_model}"]


def check_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object]]:
    code = main(["check", *words, "--json"])
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, document


def test_a_good_run_shows_its_plan_and_the_next_command(
    quickstart: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *quickstart]) == 0
    shown = capsys.readouterr().out
    for fact in (
        "600 training and 100 validation examples",
        "76 steps: 2 epochs of 38",
        "1 x 16 x 1",
        "this run can start  launcher train",
    ):
        assert fact in shown
    assert all(ord(letter) < 128 for letter in shown)


def test_counts_are_those_of_the_prepared_data(quickstart: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, document = check_json(capsys, *quickstart)
    plan = document["plan"]
    assert isinstance(plan, dict)
    assert code == 0 and document["ok"] is True and document["problems"] == []
    assert plan["data"]["is_estimate"] is False and plan["data"]["num_packs"] == 600
    assert plan["batch"]["total_steps"] == 76


def test_everything_wrong_is_reported_at_once_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optim.lrr=1", "seed=x", "model=nope", "strategy.offload_params=true", "name=a/b"]
    code, document = check_json(capsys, *words)
    problems = document["problems"]
    assert isinstance(problems, list)
    assert code == 2 and document["ok"] is False and document["plan"] is None
    keys = ["optim.lrr", "model", "seed", "name", "data.path", "strategy.offload_params"]
    assert sorted(problem["key"] for problem in problems) == sorted(keys)


def test_problems_are_shown_on_a_terminal_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "data=next_number", "optim.lrr=1"]) == 2
    shown = capsys.readouterr().out
    assert "optim.lrr = '1': there is no such setting. Did you mean optim.lr?" in shown
    assert "1 problem: this run should not start" in shown


def test_data_the_audit_refuses_stops_the_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "complet\n' * 20)
    code, document = check_json(
        capsys, f"model.name_or_path={tiny_model}", "data.seq_len_tokens=128", f"data.path={path}", "name=-bad"
    )
    problems = document["problems"]
    assert isinstance(problems, list)
    assert code == 2
    assert [problem["key"] for problem in problems] == ["name", "data: broken_json"]
    assert f"{path}:2" in problems[1]["why"]


def test_an_allow_code_nobody_knows_is_a_problem(quickstart: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, document = check_json(capsys, *quickstart, "data.allow=[duplicates]")
    assert code == 2
    assert [problem["key"] for problem in document["problems"]] == ["data.allow"]  # type: ignore[attr-defined]


def test_a_model_that_is_not_here_is_planned_from_shipped_figures(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = check_json(capsys, "model=qwen2_5_7b", "method=lora", "cluster=one_gpu_80gb", "data=next_number")
    plan = document["plan"]
    assert isinstance(plan, dict)
    assert code == 0
    assert plan["parameters"] == 7_615_616_512 and plan["data"]["is_estimate"] is True
    assert any("not prepared" in warning for warning in document["warnings"])  # type: ignore[attr-defined]


NOT_HERE = ["model=qwen2_5_7b", "method=lora", "cluster=one_gpu_80gb"]


def write_examples(path: Path, count: int, *more: str, chars: int = 10) -> str:
    """A file of good examples and further lines; as the setting that names it."""
    lines = [json.dumps({"prompt": f"{n} " + "x" * chars, "completion": "y" * chars}) for n in range(count)]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return f"data.path={path}"


def test_broken_data_is_refused_before_the_model_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_examples(tmp_path / "mine.jsonl", 30, '{"prompt": "a", "compl', '{"prompt": "a", "completion": " "}')
    code, document = check_json(capsys, *NOT_HERE, data)
    problems = document["problems"]
    assert isinstance(problems, list)
    assert code == 2
    assert [problem["key"] for problem in problems] == ["data: broken_json", "data: empty_output"]
    assert f"{tmp_path}/mine.jsonl:31" in problems[0]["why"] and f"{tmp_path}/mine.jsonl:32" in problems[1]["why"]
    allowed = check_json(capsys, *NOT_HERE, data, "data.allow=[broken_json,empty_output]")
    assert allowed[0] == 0


def test_held_out_copies_and_unknown_fields_are_refused_before_the_model_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_examples(tmp_path / "mine.jsonl", 30)
    (tmp_path / "odd.jsonl").write_text('{"q": 1}\n')
    code, document = check_json(capsys, *NOT_HERE, data, f"data.validation_path={tmp_path}/mine.jsonl")
    assert code == 2
    assert [problem["key"] for problem in document["problems"]] == ["data: train_validation_overlap"]  # type: ignore[attr-defined]
    code, document = check_json(capsys, *NOT_HERE, f"data.path={tmp_path}/odd.jsonl")
    assert code == 2
    assert "data: unknown_format" in [problem["key"] for problem in document["problems"]]  # type: ignore[attr-defined]


def test_examples_are_counted_before_the_model_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_examples(tmp_path / "mine.jsonl", 30, "")
    _, document = check_json(capsys, *NOT_HERE, data, "data.validation_fraction=0.2", "data.packing=false")
    plan = document["plan"]
    assert isinstance(plan, dict)
    assert (plan["data"]["examples"], plan["data"]["validation_examples"]) == (24, 6)
    assert plan["data"]["is_counted"] is True and plan["batch"]["steps_per_epoch"] == 3


def test_the_quickstart_is_planned_exactly_before_its_model_is_converted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "experiment=quickstart"]) == 0
    shown = capsys.readouterr().out
    assert "600 training and 100 validation examples; about " in shown and "76 steps: 2 epochs of 38" in shown
    assert "this run can start" not in shown
    assert "the audit has not run on all of it" in shown
    assert "(the model was not converted yet). launcher prepare experiment=quickstart runs it" in shown


def test_a_check_without_the_model_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert main(["check", "experiment=quickstart"]) == 0
    assert not (tmp_path / "cache").exists() and not any((tmp_path / "scratch").iterdir())


def test_examples_that_look_too_long_are_warned_of_without_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_examples(tmp_path / "mine.jsonl", 3, chars=2000)
    _, document = check_json(capsys, *NOT_HERE, data, "data.seq_len_tokens=256")
    assert any("about 3 of the examples read look longer" in warning for warning in document["warnings"])  # type: ignore[attr-defined]


def large_file(path: Path) -> tuple[str, int]:
    count = 21 * 2**20 // 1000
    return write_examples(path, count, chars=490), count


def test_of_large_data_a_part_is_audited_and_that_is_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, count = large_file(tmp_path / "large.jsonl")
    words = [f"model.name_or_path={tiny_model}", "data.seq_len_tokens=128", data]
    started = time.monotonic()
    code, document = check_json(capsys, *words)
    plan = document["plan"]
    assert isinstance(plan, dict)
    assert code == 0 and plan["data"]["is_estimate"] is True
    assert plan["data"]["examples"] == count and plan["data"]["is_counted"] is True
    assert time.monotonic() - started < 60
    assert "examples, 20 of 21 MiB, were read" in str(document["unaudited"])
    assert main(["check", *words]) == 0
    shown = capsys.readouterr().out
    assert "this run can start" not in shown and "launcher prepare model.name_or_path" in shown


def test_what_is_wrong_in_the_part_of_large_data_that_is_read_refuses_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = large_file(tmp_path / "large.jsonl")
    path = tmp_path / "large.jsonl"
    path.write_text('{"prompt": \n' + path.read_text())
    code, document = check_json(capsys, f"model.name_or_path={tiny_model}", "data.seq_len_tokens=128", data)
    (problem,) = document["problems"]  # type: ignore[misc]
    assert code == 2 and problem["key"] == "data: broken_json" and f"{path}:1" in problem["why"]


def test_a_share_to_hold_out_of_a_folder_that_has_its_own_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_examples(tmp_path / "train.jsonl", 30)
    write_examples(tmp_path / "validation.jsonl", 3, chars=7)
    _, document = check_json(capsys, *NOT_HERE, f"data.path={tmp_path}", "data.validation_fraction=0.1")
    told = "data.validation_fraction = 0.1 has no effect"
    assert any(warning.startswith(told) for warning in document["warnings"])  # type: ignore[attr-defined]


def test_a_plan_that_does_not_fit_exits_2_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = check_json(capsys, "model=llama3_1_8b", "cluster=one_gpu_24gb", "data=next_number")
    (problem,) = document["problems"]  # type: ignore[misc]
    assert code == 2 and problem["key"] == "cluster.gpu_memory_gib"
    assert document["plan"]["problems"] == [problem] and problem["todo"]  # type: ignore[index]
    assert "brings it to" in problem["todo"]


def test_cfg_prints_every_setting_as_yaml(quickstart: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *quickstart, "--cfg", "seed=5"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    problems: list[object] = []
    config = build(RunConfig, values, problems, complete=True)  # type: ignore[arg-type]
    assert problems == [] and config.seed == 5


def test_cfg_inside_json_is_the_same_document(quickstart: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, document = check_json(capsys, *quickstart, "--cfg")
    assert document["config"]["strategy"]["kind"] == "single"  # type: ignore[index]


def test_options_of_an_own_folder_work(
    tmp_path: Path, quickstart: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("epochs: 1.0\n")
    code, document = check_json(capsys, *quickstart, "optim=mine", "--conf-dir", str(tmp_path))
    assert code == 0
    assert document["plan"]["batch"]["total_steps"] == 38  # type: ignore[index]
    assert main(["check", *quickstart, "optim=mine", "--conf-dir", str(tmp_path)]) == 0
    assert f"launcher train --conf-dir {tmp_path} " in " ".join(capsys.readouterr().out.split())


def test_a_second_check_takes_less_than_two_seconds_and_no_torch(quickstart: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "launcher", "check", *quickstart]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    after = os.times()
    # Processor time, which a busy machine does not stretch much; nothing in a check waits.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2.0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not {"torch", "transformers", "datasets"} & loaded
