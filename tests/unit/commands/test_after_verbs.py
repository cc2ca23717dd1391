"""launcher export, generate, eval and serve --dry-run as they are typed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands import serve
from launcher.config.devices import Gpu
from launcher.config.frozen import load_config
from launcher.config.schema import ArchitectureConfig
from launcher.errors import ExitCode
from tests.unit.evaluate.learned_runs import add_learned_checkpoint, make_run


def launcher(learned: Path, verb: str, *words: str) -> int:
    return main([verb, learned.name, "--runs-dir", str(learned.parent), *words])


def test_export_says_what_it_wrote(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "export", "--to", str(tmp_path / "out")) == ExitCode.DONE
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {tmp_path / 'out'}")
    assert "all weights of step 60" in said and "read back: every tensor is as trained" in said
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


@pytest.fixture(scope="module")
def learned_text(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on plain text, whose model goes on with `is always ok.`"""
    lines = [{"text": f"the answer to {n * 37 % 1009} is always ok."} for n in range(50)]
    run, _ = make_run(tmp_path_factory.mktemp("text"), tiny_model, train=lines[:40], validation=lines[40:])
    add_learned_checkpoint(run, tiny_model)
    return run.root


def test_a_run_on_plain_text_is_asked_to_go_on_and_says_so(
    learned_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "the answer to 5 is", "--tuned-only", "--max-new-tokens", "40")
    assert launcher(learned_text, *words) == ExitCode.DONE
    said = capsys.readouterr().out
    assert said.startswith("note: tuned on plain text: the prompt is continued as it is, without the chat format\n")
    # It stops by itself, because training puts the end of a document behind each text.
    assert said.split("tuned:\n")[1].rstrip("\n") == " always ok."
    assert launcher(learned_text, *words, "--json") == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["tuned"] == " always ok." and document["note"].startswith("tuned on plain text")


def test_a_system_message_for_a_run_on_plain_text_is_refused(
    learned_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher(learned_text, "generate", "the", "--system", "Be brief.") == ExitCode.USER
    assert "was tuned on plain text, which has no system message" in capsys.readouterr().err


def test_a_prompt_of_plain_text_begins_as_the_training_examples_do(learned_text: Path) -> None:
    from launcher.data.prepared import Prepared
    from launcher.evaluate.answer import Answerer
    from launcher.evaluate.questions import Prompt

    derived = load_config(learned_text / "config.yaml").derived
    assert derived is not None
    taught = Prepared.open(Path(derived.data_dir), "train").tokens(0).tolist()
    asked = Answerer(Path(derived.model_dir)).encode(Prompt(text="the answer to 0 is"))
    assert taught[: len(asked)] == asked and len(asked) >= len("the answer to 0 is")


def test_the_card_of_a_run_on_plain_text_shows_how_to_go_on(
    learned_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher(learned_text, "export", "--to", str(tmp_path / "out")) == ExitCode.DONE
    capsys.readouterr()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Plain text, all of it learned, from `" in card
    assert "apply_chat_template" not in card and "Tuned to answer as the assistant" not in card
    assert "tuned on plain text, without a chat template" in card and "asked at /v1/completions" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"..."', '"the answer to 5 is"')
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == " always ok.\n"


def test_generate_side_by_side_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.commands.generate import show_side_by_side

    show_side_by_side({"prompt": "[bold]question[/bold]", "base": "a " * 200, "tuned": "ok", "step": 60}, width=80)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any("base" in line and "tuned, step 60" in line for line in lines)
    assert any("[bold]question[/bold]" in line for line in lines)


def test_eval_prints_scores_losses_and_the_verdict(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "eval", "--conditions", "zero_shot,tuned", "--limit", "6") == ExitCode.DONE
    captured = capsys.readouterr()
    assert "6 validation examples, step 60" in captured.out
    assert "tuned                   exact match 100.0 % (61.0 to 100.0)" in captured.out
    assert "Too few examples to tell: exact match 100.0% against 0.0% zero-shot" in captured.out
    assert "tuned answers" in captured.err


def test_eval_in_json_is_the_content_of_eval_json(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher(learned, "eval", "--shots", "2", "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == json.loads((learned / "eval.json").read_text())


def test_a_partial_eval_leaves_the_fuller_one_and_says_where_it_went(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "--conditions", "zero_shot,tuned")
    (learned / "eval.json").unlink(missing_ok=True)
    more_conditions = ("eval", "--conditions", "zero_shot,few_shot,tuned", "--shots", "2")
    assert launcher(learned, *more_conditions, "--limit", "1") == ExitCode.DONE
    said = capsys.readouterr().out
    assert "1 validation example, step 60" in said and f"written to {learned / 'eval.json'}" in said
    # Nothing fuller was there; now it is replaced by more examples, and more is not replaced by less.
    assert launcher(learned, *words) == ExitCode.DONE
    full = (learned / "eval.json").read_text()
    assert json.loads(full)["examples"] == 12
    capsys.readouterr()
    assert launcher(learned, *words, "--limit", "1") == ExitCode.DONE
    said = capsys.readouterr().out
    assert "eval.json holds a fuller evaluation of step 60 (12 examples)" in said
    assert f"written to {learned / 'eval-partial.json'}" in said
    assert launcher(learned, "eval", "--conditions", "zero_shot", "--json") == ExitCode.DONE
    assert "was kept; this one is in" in json.loads(capsys.readouterr().out)["notes"][-1]
    assert (learned / "eval.json").read_text() == full
    assert json.loads((learned / "eval-partial.json").read_text())["conditions"].keys() == {"zero_shot"}


def test_an_eval_of_another_step_or_after_a_damaged_file_is_written_in_its_place(learned: Path) -> None:
    for before in ('{"step": 7, "examples": 99, "conditions": {"few_shot": {}}, "heldout_loss": {}}', "{", "[]"):
        (learned / "eval.json").write_text(before)
        assert launcher(learned, "eval", "--conditions", "zero_shot", "--limit", "1") == ExitCode.DONE
        assert json.loads((learned / "eval.json").read_text())["step"] == 60


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
    assert "open to other hosts, and this server asks for no key" in said
    assert launcher(learned, "serve", "--dry-run", "--json", "--server-option=--compile") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["argv"][-1] == "--compile"
    assert sorted(learned.rglob("*")) == before


@pytest.mark.parametrize(
    ("cards", "options", "expected"),
    [
        ((1024, 1024), [], []),
        ((2, 2, 2), [], ["--tensor-parallel-size=2"]),
        (
            (2, 2),
            ["--server-option=--tensor-parallel-size=1"],
            ["--tensor-parallel-size=2", "--tensor-parallel-size=1"],
        ),
        ((), [], []),
    ],
)
def test_vllm_gets_as_many_gpus_as_the_model_needs(
    cards: tuple[int, ...],
    options: list[str],
    expected: list[str],
    learned: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "visible_gpus", lambda: [Gpu("x", mib / 1024) for mib in cards])
    monkeypatch.setattr(serve, "find_architecture", lambda *args, **named: wide_model())
    assert launcher(learned, "serve", "--engine=vllm", "--dry-run", "--json", *options) == ExitCode.DONE
    argv = json.loads(capsys.readouterr().out)["argv"]
    assert [word for word in argv if word.startswith("--tensor-parallel-size")] == expected


def wide_model() -> ArchitectureConfig:
    """About 1.1 million parameters: 2.6 MiB with room for answers."""
    return ArchitectureConfig(
        hidden_size=128,
        intermediate_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=4096,
        tied_embeddings=True,
    )
