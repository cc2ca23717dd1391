"""The process under any starter: what it must be given, and how it ends."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import DataError, ErrorOnMain, ExitCode, LauncherError, Preempted
from launcher.log import setup_logging
from launcher.runs.rank_environment import ranks_per_node
from launcher.worker import _chooses_ranks, _guarded, main

NAMES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_NODES")


@pytest.mark.parametrize("words", [[], ["--run", "r", "optim.lr=1"], ["--attempt", "1"], ["--nonsense"]])
def test_wrong_words_end_with_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == ExitCode.USER
    assert "usage: python -m launcher.train" in capsys.readouterr().err


def test_both_and_neither_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--run", "r", "name=x"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "either --run RUN or settings" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--run", "no-such-run"], ["optim.leraning_rate=1"]])
def test_what_cannot_be_run_is_told_without_a_traceback(tmp_path: Path, words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "launcher.train", *words], cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == ExitCode.USER, ended.stderr
    assert words[-1].partition("=")[0] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("bad"), ExitCode.USER),
        (Preempted("stopped"), ExitCode.PREEMPTED),
        (ErrorOnMain("told already", ExitCode.CHECKPOINT, "SaveFailed", {}), ExitCode.CHECKPOINT),
        (LauncherError("odd"), ExitCode.BUG),
        (ValueError("a bug"), ExitCode.BUG),
        (MemoryError(), ExitCode.BUG),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: ExitCode, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> ExitCode:
        raise error

    setup_logging()  # to the stderr of this test; an earlier one may have left a handler on a closed one
    assert _guarded(work)[0] == code
    shown = capfd.readouterr().err
    assert ("Traceback" in shown) is not isinstance(error, LauncherError)
    assert "told already" not in shown


@pytest.mark.parametrize(
    ("environment", "world_size", "per_node"),
    [
        ({}, 4, 4),
        ({"LOCAL_WORLD_SIZE": "2"}, 8, 2),
        ({"SLURM_NTASKS_PER_NODE": "4"}, 8, 4),
        ({"SLURM_STEP_NUM_NODES": "2"}, 8, 4),
        ({"SLURM_NTASKS_PER_NODE": "4(x2)", "SLURM_STEP_NUM_NODES": "2"}, 8, 4),
        ({"SLURM_STEP_NUM_NODES": "3"}, 2, 1),
    ],
)
def test_ranks_of_a_node_are_counted_under_any_starter(
    environment: dict[str, str], world_size: int, per_node: int
) -> None:
    assert ranks_per_node(environment, world_size) == per_node


@pytest.mark.parametrize(
    ("overrides", "plans"),
    [
        (["model.name_or_path=m"], False),
        (["experiment=quickstart"], False),
        (["experiment=llama3_8b_full_zero3_8gpu"], True),
        (["experiment=llama3_70b_full_zero3_8nodes"], True),
        (["experiment=quickstart", "cluster.nodes=2"], True),
        (["experiment=quickstart", "cluster.devices_per_node=1"], True),
    ],
)
def test_a_place_is_planned_where_settings_name_one(overrides: list[str], plans: bool) -> None:
    assert _chooses_ranks(argparse.Namespace(overrides=overrides, conf_dir=None)) is plans
