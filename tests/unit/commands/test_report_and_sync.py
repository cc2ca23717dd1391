from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import report
from launcher.cli import main
from launcher.paths import RunPaths
from tests.unit.report.made_runs import make_run, write_curve, write_story


def launcher(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def story(tmp_path: Path) -> RunPaths:
    paths = make_run(tmp_path / "runs" / "demo", epochs=7)
    write_curve(paths, epochs=7, steps_per_epoch=20)
    write_story(paths)
    return paths


def test_report_shows_the_curve_the_advice_and_where_things_are(
    story: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "demo"]) == 0
    shown = capsys.readouterr().out
    assert "flattens after epoch" in shown and "set optim.epochs=" in shown
    assert "runs/demo/report.html" in shown and "runs/demo/plots/loss.png" in shown
    assert "\u25cf validation" in shown
    assert story.report.is_file()


def test_report_draws_with_plain_letters_where_the_terminal_knows_no_others(story: RunPaths, tmp_path: Path) -> None:
    done = launcher("report", "demo", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "o validation" in done.stdout


def test_report_prints_one_json_document(
    story: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"]["findings"][0]["override"].startswith("optim.epochs=")
    assert (
        document["best"]["loss"] == min(shot["heldout_loss"] for shot in document["epochs"]) or document["best"]["step"]
    )
    assert Path(tmp_path, document["page"]).is_file()
    assert len(document["epochs"]) == 7


def test_report_of_an_unknown_run_exits_2(tmp_path: Path) -> None:
    done = launcher("report", "nobody", cwd=tmp_path)
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_sync_without_a_key_exits_2_and_says_where_to_get_one(story: RunPaths, tmp_path: Path) -> None:
    done = launcher("sync", "demo", cwd=tmp_path, NETRC=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "WANDB_API_KEY is not set" in done.stderr and "https://wandb.ai/authorize" in done.stderr


def test_a_dry_sync_says_what_is_there_and_sends_nothing(story: RunPaths, tmp_path: Path) -> None:
    document = json.loads(launcher("sync", "demo", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert document == {"run": "demo", "rows_recorded": 154}
    assert not story.tracker("wandb").exists()


HEAVY = "{'torch', 'transformers', 'accelerate', 'deepspeed', 'hydra', 'wandb'}"


def test_the_report_room_loads_no_torch() -> None:
    names = [path.stem for path in Path(report.__path__[0]).glob("*.py")]
    assert "report" in names
    lines = [
        "import sys",
        *(f"import launcher.report.{name}" for name in names),
        f"assert not {HEAVY} & set(sys.modules)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=180)
