"""The command line itself: quick, helpful, and honest in its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import __version__, cli
from launcher.errors import (
    CheckpointError,
    ConfigErrors,
    DataError,
    LauncherError,
    Problem,
    RunError,
    SlurmError,
    SlurmMissing,
    SlurmUnavailable,
)

ROOT = Path(__file__).resolve().parents[2]


def launcher(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # From elsewhere, so that the installed package answers and not the folder we stand in.
    command = [sys.executable, "-m", "launcher", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A verb that raises what its `error` holds."""
    verb = SimpleNamespace(error=None)

    def run(args: argparse.Namespace) -> int:
        raise verb.error

    monkeypatch.setattr(cli, "load_verb", lambda name: run)
    return verb


def test_help_answers_within_300_ms(tmp_path: Path) -> None:
    times = []
    for _ in range(20):  # other tests run beside this one; what counts is how fast it can be
        started = time.perf_counter()
        assert launcher("--help", cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - started)
        if times[-1] <= 0.3:
            return
    assert min(times) <= 0.3


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.VERBS)


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_exists_and_says_of_itself_what_the_list_says(name: str) -> None:
    assert callable(cli.load_verb(name))
    shown = cli.make_parser(name).format_help()
    assert f"launcher {name}" in shown
    assert " ".join(cli.VERBS[name].split()) in " ".join(shown.split())


def test_no_verb_loads_anything_heavy_before_it_runs() -> None:
    """`launcher VERB --help` and a mistyped option answer at once."""
    code = (
        "import sys\nfrom launcher import cli\n"
        "for name in cli.VERBS:\n"
        "    try: cli.main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'accelerate', 'deepspeed', 'peft', 'wandb', 'hydra', 'omegaconf', 'numpy', "
        "'pyarrow', 'rich', 'datasets', 'yaml', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"launcher {__version__}\n"


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tarin", "did you mean launcher train?"),
        ("experiment=quickstart", "settings come after a verb: launcher check experiment=quickstart"),
        ("xyzzy", "launcher --help lists them"),
    ],
)
def test_an_unknown_verb_gets_a_hint_and_exit_code_2(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunError("gone"), 2),
        (ConfigErrors([Problem("a.b", 1, "is wrong", "Fix it")]), 2),
        (CheckpointError("torn"), 3),
        (LauncherError("odd"), 1),
        (SlurmUnavailable("sinfo did not answer within 30 s"), 8),
        (SlurmError("squeue: Access/permission denied"), 8),
        (SlurmMissing("sinfo is not installed here"), 2),
        (KeyboardInterrupt(), 130),
        (ValueError("surprise"), 1),
    ],
)
def test_each_error_has_its_exit_code(failing_verb: SimpleNamespace, error: BaseException, code: int) -> None:
    failing_verb.error = error
    assert cli.main(["check"]) == code


def test_all_problems_are_listed_without_a_traceback(
    failing_verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb.error = ConfigErrors(
        [Problem("optim.lr", "fast", "must be a number", "Write 1e-4"), Problem("seed", -1, "must be at least 0")]
    )
    cli.main(["check"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "error: 2 problems",
        "  - optim.lr = 'fast': must be a number. Write 1e-4",
        "  - seed = -1: must be at least 0",
    ]


def test_a_data_error_keeps_its_headline(failing_verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    failing_verb.error = DataError("the audit refuses the data", [Problem("train.jsonl", 3, "is empty")])
    cli.main(["check"])
    assert capsys.readouterr().err == "error: the audit refuses the data\n  - train.jsonl = 3: is empty\n"


def test_with_json_an_error_is_one_json_document(
    failing_verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb.error = ConfigErrors([Problem("seed", -1, "must be at least 0", "Give 0")])
    assert cli.main(["check", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"] == "ConfigErrors"
    assert document["exit_code"] == 2
    assert document["problems"] == [{"key": "seed", "value": -1, "why": "must be at least 0", "todo": "Give 0"}]


def test_debug_shows_where_an_error_came_from(
    failing_verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb.error = RunError("gone")
    cli.main(["check", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_called_a_bug(failing_verb: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    failing_verb.error = ZeroDivisionError("oops")
    assert cli.main(["check"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in shown
    assert "this is a bug in launcher" in shown


def test_settings_and_options_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    monkeypatch.setattr(cli, "load_verb", lambda name: run)
    assert cli.main(["check", "a=1", "--json", "b=2"]) == 0
    assert (seen[0].overrides, seen[0].json) == (["a=1", "b=2"], True)


def test_a_reader_that_leaves_early_causes_no_second_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m launcher --help | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.stderr == ""


def test_a_reader_that_leaves_early_ends_a_verb_as_the_shell_expects(tmp_path: Path) -> None:
    from tests.tiny_model import make_tokenizer

    make_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    lines = [json.dumps({"prompt": f"question {n} {'so ' * 600}", "completion": "ok"}) for n in range(120)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    # More is shown than a pipe holds, and nobody reads it.
    command = (
        f"{sys.executable} -m launcher prepare model.name_or_path=model data.path=train.jsonl data.num_workers=1 "
        "data.seq_len_tokens=4096 --show 120 | true; echo ${PIPESTATUS[0]}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAUNCHER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment)
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("preparing: ")]
    assert (done.stdout.strip(), complaints) == ("141", [])
