from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.schema import DataConfig
from launcher.errors import ExitCode, RunError
from launcher.slurm.client.container import run_folders
from launcher.slurm.job.main import main
from launcher.slurm.job.stages import stage_command, stage_folders
from tests.unit.slurm.test_srun import derived


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
    assert "this program runs inside a Slurm job" in capsys.readouterr().err


def test_an_export_goes_into_the_run_unless_told_otherwise() -> None:
    run_dir = Path("/runs/one")
    assert stage_command("export", run_dir, ["--merge"]) == [
        "export",
        "/runs/one",
        "--to",
        "/runs/one/export/hf",
        "--merge",
    ]
    assert stage_command("export", run_dir, ["--to", "/x"]) == ["export", "/runs/one", "--to", "/x"]
    assert stage_command("eval", run_dir, ["--limit", "5"]) == ["eval", "/runs/one", "--limit", "5"]


def test_a_stage_in_a_container_sees_what_it_reads_and_writes(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "models").mkdir()
    run_dir, world = Path("/runs/one"), derived()
    data = DataConfig(path=str(tmp_path / "train.jsonl"), validation_path="builtin:next_number")
    seen = run_folders(run_dir, world)
    assert {run_dir, Path("/shared/data"), Path("/shared/model"), Path.cwd()} <= set(seen)
    assert stage_folders(["eval", "/runs/one"], run_dir, data, world) == [*seen, tmp_path / "train.jsonl"]
    inside = stage_command("export", run_dir, [])
    assert stage_folders(inside, run_dir, data, world) == seen
    for outside in ([f"--to={tmp_path}/models/a/b"], ["--to", "/x", "--to", f"{tmp_path}/models/hf"]):
        words = stage_command("export", run_dir, outside)
        assert stage_folders(words, run_dir, data, world) == [*seen, tmp_path / "models"]


@pytest.mark.parametrize("target", ["../exports/hf", "link/hf"])
def test_an_export_that_only_seems_to_lie_inside_is_shown_its_folder(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be written into the container, and go with it."""
    for name in ("work", "exports"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "exports")
    monkeypatch.chdir(tmp_path / "work")
    words = stage_command("export", Path("/runs/one"), ["--to", target])
    shown = stage_folders(words, Path("/runs/one"), DataConfig(), derived())
    assert shown == [*run_folders(Path("/runs/one"), derived()), tmp_path / "exports"]


def test_an_export_that_would_need_the_root_of_the_node_in_the_container_is_refused() -> None:
    words = stage_command("export", Path("/runs/one"), ["--to", "/no-such-folder/hf"])
    with pytest.raises(RunError, match=r"--to /no-such-folder/hf.*make /no-such-folder first"):
        stage_folders(words, Path("/runs/one"), DataConfig(), derived())


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
