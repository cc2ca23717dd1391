"""launcher resume and launcher train --run typed inside a job: never beside the job that has the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.run_dir import write_state
from tests.unit.slurm.test_submit import settings, tools, write

__all__ = ["settings", "tools"]


@pytest.fixture
def submitted(tools: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose job has the number 101; this shell is a job of its own."""
    assert main(["submit", *settings]) == ExitCode.DONE
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return Path("runs/one")


@pytest.mark.parametrize("words", [["resume", "one"], ["train", "--run", "one"]], ids=" ".join)
@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_a_run_in_the_hands_of_another_job_is_left_alone(
    submitted: Path, tools: Path, capsys: pytest.CaptureFixture[str], words: list[str], state: str
) -> None:
    write(tools, "squeue", f"print('101|101|N/A|{state}|main|10:00|2026-03-01T10:00:00|N/A|N/A|n1|None|x')")
    assert main(words) == ExitCode.USER
    assert f"belongs to job 101 ({state.lower()})" in capsys.readouterr().err
    assert not list(RunPaths(submitted).attempts.iterdir())


def test_nothing_is_started_while_slurm_cannot_be_asked(
    submitted: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tools, "squeue", "sys.exit('slurm_load_jobs error: Access/permission denied')")
    assert main(["resume", "one"]) == ExitCode.UNAVAILABLE
    assert "is not known, so nothing is started" in capsys.readouterr().err
    assert not list(RunPaths(submitted).attempts.iterdir())


def test_a_run_over_several_nodes_is_refused_before_it_makes_an_attempt(
    tools: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "cluster.nodes=2"]) == ExitCode.DONE
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write(tools, "squeue", "print('101|101|N/A|FAILED|main|10:00|2026-03-01T10:00:00|N/A|N/A|n1|None|x')")
    assert main(["resume", "one"]) == ExitCode.USER
    assert "was planned for 2 hosts" in capsys.readouterr().err
    assert not list(RunPaths(Path("runs/one")).attempts.iterdir())


def test_a_run_that_was_never_queued_is_in_nobodys_hands(
    submitted: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (submitted / "submission.json").unlink()
    RunPaths(submitted).events.write_text("")
    write_state(submitted, "queued")
    assert main(["resume", "one", "--dry-run"]) == ExitCode.DONE, capsys.readouterr().err
