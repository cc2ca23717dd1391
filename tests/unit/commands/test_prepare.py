"""`launcher prepare`: what it prints for people and for programs, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import ExitCode
from tests.unit.data.chat_models import CHATML, make_folder


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a configuration with a model and 110 good examples."""
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "model", CHATML)
    records = [{"text_input": f"input {i}", "output": f"output {i}"} for i in range(110)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [f"model.name_or_path={folder}", f"data.path={tmp_path / 'a.jsonl'}"]


def test_it_shows_three_examples_with_what_is_taught_marked(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *settings]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.count(">>>") == 3 and ">>>output 2<|im_end|><<<" in out
    assert "text_input_output format" in out and "examples read 110, used 110" in out and "nothing found" in out


def test_plain_text_is_shown_with_the_end_token_that_is_taught(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Once upon a time"}) + "\n")
    assert main(["prepare", *settings, "--show", "1"]) == ExitCode.DONE
    assert ">>>Once upon a time<|im_end|><<<" in capsys.readouterr().out
    assert main(["prepare", *settings, "--show", "1", "--json"]) == ExitCode.DONE
    (example,) = json.loads(capsys.readouterr().out)["examples"]
    assert example["text"] == "Once upon a time<|im_end|>" == example["supervised_text"][0]
    assert example["supervised_spans"] == [[0, 26]]


def test_json_is_one_document_with_text_ids_mask_and_spans(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *settings, "--json", "--show", "2"]) == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["train"]["num_examples"] == 110 and not document["audit"]["vetoed"]
    assert len(document["examples"]) == 2
    for number, example in enumerate(document["examples"]):
        [[start, end]] = example["supervised_spans"]
        assert example["text"][start:end] == f"output {number}<|im_end|>" == example["supervised_text"][0]
        assert len(example["token_ids"]) == len(example["mask"]) and sum(example["mask"]) > 0
        assert example["line"] == number + 1


def test_what_the_audit_refuses_is_shown_and_ends_with_exit_code_2(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"broken\n' * 8)
    assert main(["prepare", *settings, "--show", "0"]) == ExitCode.USER
    out = capsys.readouterr().out
    assert "error: broken_json: 8x not valid JSON" in out and "a.jsonl:111: " in out and "and 3 more" in out
    assert "data.allow=[broken_json]" in out and "refuses" in out
    assert main(["prepare", *settings, "--json"]) == ExitCode.USER
    assert json.loads(capsys.readouterr().out)["audit"]["findings"][0]["count"] == 8
    assert main(["prepare", *settings, "data.allow=[broken_json]", "--show", "0"]) == ExitCode.DONE
    assert "accepted: broken_json" in capsys.readouterr().out


def test_a_dry_run_does_nothing_and_says_whether_it_is_needed(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *settings, "--dry-run"]) == ExitCode.DONE
    assert "would be prepared" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "prepared").exists()
    main(["prepare", *settings])
    capsys.readouterr()
    assert main(["prepare", *settings, "--dry-run", "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["is_prepared"] is True


def test_data_cannot_command_the_terminal(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text_input": "\x1b[2J[red]x[/red]", "output": "y" * 5000}) + "\n")
    main(["prepare", *settings, "data.seq_len_tokens=8192"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J[red]x[/red]" in out
    assert "characters ..." in out and len(out) < 5000


def test_a_missing_file_is_a_user_error(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", settings[0], "data.path=gone.jsonl"]) == ExitCode.USER
    assert "data.path = 'gone.jsonl'" in capsys.readouterr().err


def test_a_terminal_gets_colour_instead_of_marks(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import io

    from rich.console import Console

    from launcher.commands.prepare import _show_example
    from launcher.config.compose import compose_config
    from launcher.data.prepare import preview_examples
    from launcher.plan.run_plan import locate_model

    config = compose_config(settings)
    screen = io.StringIO()
    shown = preview_examples(config, locate_model(config.model, weights=False), 1)
    _show_example(Console(file=screen, force_terminal=True, color_system="standard", highlight=False), shown[0])
    assert "\x1b[32moutput 0<|im_end|>\x1b[0m" in screen.getvalue() and ">>>" not in screen.getvalue()
