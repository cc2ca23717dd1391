from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import ExitCode
from launcher.slurm.job import main
from launcher.slurm.stages import stage_words


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["train"], id="nothing"),
        pytest.param(["train", "--run", "a", "optim.lr=1"], id="run and settings"),
        pytest.param(["train", "--run", "a", "--sweep", "b"], id="run and sweep"),
    ],
)
def test_exactly_one_way_to_name_the_run_is_given(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.USER
    assert "give one of: --run RUN, --sweep DIR, or settings" in capsys.readouterr().err


def test_only_training_makes_a_run_from_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "optim.lr=1"]) == ExitCode.USER
    assert "give --run RUN" in capsys.readouterr().err


def test_outside_of_a_job_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["train", "--run", "a"]) == ExitCode.USER
    assert "this is the inside of a Slurm job" in capsys.readouterr().err


def test_an_export_goes_into_the_run_unless_told_otherwise() -> None:
    run_dir = Path("/runs/one")
    assert stage_words("export", run_dir, ["--merge"]) == [
        "export",
        "/runs/one",
        "--to",
        "/runs/one/export/hf",
        "--merge",
    ]
    assert stage_words("export", run_dir, ["--to", "/x"]) == ["export", "/runs/one", "--to", "/x"]
    assert stage_words("eval", run_dir, ["--limit", "5"]) == ["eval", "/runs/one", "--limit", "5"]


@pytest.fixture(autouse=True)
def keep_logging() -> object:
    """main sets up logging for its own process."""
    root = logging.getLogger("launcher")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before[0], before[1], before[2]


def test_as_a_program_it_says_with_time_and_level_what_is_wrong() -> None:
    command = [sys.executable, "-m", "launcher.slurm.job", "train"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == ExitCode.USER
    assert " ERROR give one of: --run RUN" in done.stderr
