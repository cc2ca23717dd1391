"""launcher export, generate, eval and serve --dry-run as they are typed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import ExitCode


def launcher(learned: Path, verb: str, *words: str) -> int:
    return main([verb, learned.name, "--runs-dir", str(learned.parent), *words])


def test_export_says_what_it_wrote(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "export", "--to", str(tmp_path / "out")) == ExitCode.DONE
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {tmp_path / 'out'}")
    assert "all weights of step 60" in said and "read back and compared" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_export_in_json_is_one_document(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "export", "--to", str(tmp_path / "out"), "--dry-run", "--json") == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    assert (document["step"], document["dry_run"], document["files"]) == (60, True, [])
    assert not (tmp_path / "out").exists()


def test_export_to_a_taken_folder_is_the_users_error(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert launcher(learned, "export", "--to", str(tmp_path)) == ExitCode.USER
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_export_of_a_step_that_is_not_there_is_a_checkpoint_error(learned: Path, tmp_path: Path) -> None:
    assert launcher(learned, "export", "--to", str(tmp_path / "out"), "--step", "7") == ExitCode.CHECKPOINT


def test_generate_shows_base_and_tuned(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "generate", "question 3?", "--max-new-tokens", "8") == ExitCode.DONE
    base, tuned = capsys.readouterr().out.split("tuned:\n")
    assert base.startswith("base:\n")
    assert tuned.strip() == "ok"


def test_generate_reads_the_prompt_from_standard_input(
    learned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("question 3?\n"))
    assert launcher(learned, "generate", "-", "--tuned-only", "--json", "--max-new-tokens", "8") == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    assert document == {"run": learned.name, "step": 60, "prompt": "question 3?", "tuned": "ok"}


def test_generate_with_an_empty_prompt_is_the_users_error(learned: Path) -> None:
    assert launcher(learned, "generate", "") == ExitCode.USER


def test_generate_side_by_side_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.verbs.generate import show_side_by_side

    show_side_by_side({"prompt": "[bold]question[/bold]", "base": "a " * 200, "tuned": "ok", "step": 60}, width=80)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any("base" in line and "tuned, step 60" in line for line in lines)
    assert any("[bold]question[/bold]" in line for line in lines)


def test_eval_prints_scores_losses_and_the_verdict(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "eval", "--conditions", "zero_shot,tuned", "--limit", "6") == ExitCode.DONE
    captured = capsys.readouterr()
    assert "6 held-out examples, step 60" in captured.out
    assert "tuned                   exact match 100.0 % (61.0 to 100.0)" in captured.out
    assert "Tuning helped: exact match 100.0% against 0.0% zero-shot" in captured.out
    assert "tuned answers" in captured.err


def test_eval_in_json_is_the_content_of_eval_json(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "eval", "--shots", "2", "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == json.loads((learned / "eval.json").read_text())


@pytest.mark.parametrize(
    "words", [("--limit", "0"), ("--shots", "0"), ("--conditions", "best"), ("--max-new-tokens", "0")]
)
def test_eval_refuses_numbers_that_mean_nothing(learned: Path, words: tuple[str, ...]) -> None:
    assert launcher(learned, "eval", *words) == ExitCode.USER


def test_serve_dry_run_shows_the_command_and_writes_nothing(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(learned.rglob("*"))
    assert launcher(learned, "serve", "--dry-run", "--port", "8123", "--host", "0.0.0.0") == ExitCode.DONE
    said = capsys.readouterr().out
    assert f"model  {learned.name}/export/step-000060" in said
    assert "serve tiny/export/step-000060 --host 0.0.0.0 --port 8123" in said
    assert "open to other machines, and this server asks for no key" in said
    assert launcher(learned, "serve", "--dry-run", "--json", "--server-option=--compile") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["argv"][-1] == "--compile"
    assert sorted(learned.rglob("*")) == before
