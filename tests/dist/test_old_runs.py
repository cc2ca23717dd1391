"""Runs of an earlier version are shown, verified and exported, and go on as if that version still ran them.

tests/fixtures/runs/README.md says what they are and how they were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from launcher.cli import main
from tests.dist.conftest import Ranks
from tests.dist.old_runs import GOLDENS, ROOT, assert_goes_on_undisturbed, begin_anew, files_of, keys, unpack
from tests.dist.rig import new_attempt

pytestmark = pytest.mark.dist

NAMES = ["zero2-two-attempts", "lora", "slurm-verdict"]
NEWEST = {"zero2-two-attempts": 9, "lora": 6, "slurm-verdict": 4}
"""Step of the newest checkpoint."""

Launcher = Callable[..., str]


@pytest.fixture
def launcher(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """What a command line prints, where there is no Slurm; it must end well."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))

    def call(*words: str | Path) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    return call


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs; none of them goes on."""
    return unpack(tmp_path_factory.mktemp("old") / "runs")


@pytest.mark.parametrize(
    ("name", "state", "preempted", "step", "classes"),
    [
        ("zero2-two-attempts", "running", True, 9, ["preempted", "preempted"]),
        ("lora", "running", True, 6, ["preempted"]),
        ("slurm-verdict", "failed", False, 5, ["out_of_memory_host"]),
    ],
)
def test_status_shows_how_far_it_came_and_why_it_ended(
    launcher: Launcher, old: Path, name: str, state: str, preempted: bool, step: int, classes: list[str]
) -> None:
    shown = json.loads(launcher("status", old / name, "--json"))
    assert (shown["state"], shown["preempted"], shown["alive"]) == (state, preempted, False)
    assert (shown["step"], shown["of"], shown["last_checkpoint_step"]) == (step, 12, NEWEST[name])
    assert [attempt["attempt"] for attempt in shown["attempts"]] == list(range(1, len(classes) + 1))
    assert [verdict["verdict_class"] for verdict in shown["verdicts"]] == classes
    page = launcher("status", old / name)
    assert f"step {NEWEST[name]}" in page and shown["verdicts"][-1]["summary"] in page and shown["todo"] in page


def test_status_lists_all_of_them(launcher: Launcher, old: Path) -> None:
    assert {run["name"] for run in json.loads(launcher("status", "--runs-dir", old, "--json"))} == set(NAMES)


def test_the_verdict_names_the_rank_and_node_that_were_lost(launcher: Launcher, old: Path) -> None:
    shown = json.loads(launcher("status", old / "slurm-verdict", "--json"))
    verdict = shown["verdicts"][0]
    assert (verdict["rank"], verdict["node"], verdict["exit_code"], verdict["action"]) == (1, "n2", -9, "stop")
    assert verdict["setting"] == "cluster.memory_gib_per_node=0"
    assert shown["job_id"] == verdict["job_id"] == "4" and shown["not_asked"]
    assert "rank 1 on n2 was killed (SIGKILL)" in launcher("status", old / "slurm-verdict")


@pytest.mark.parametrize("name", NAMES)
def test_logs_hold_every_line_that_was_written(launcher: Launcher, old: Path, name: str) -> None:
    shown = {
        (log["attempt"], log["rank"]): log["lines"]
        for log in json.loads(launcher("logs", old / name, "--attempt", "0", "--json"))
    }
    files = sorted((old / name / "attempts").glob("*/*.log"))
    assert len(shown) == len(files) > 0
    for file in files:
        rank = "job" if file.stem == "job" else int(file.stem.removeprefix("rank-"))
        assert shown[int(file.parent.name), rank] == file.read_text().splitlines()
    assert f"step {NEWEST[name]}/12" in launcher("logs", old / name)


@pytest.mark.parametrize("name", NAMES)
def test_verify_finds_every_checkpoint_whole(launcher: Launcher, old: Path, name: str) -> None:
    checked = json.loads(launcher("verify", old / name, "--json"))
    assert checked["ok"] and checked["checkpoints"][-1]["step"] == NEWEST[name]
    folders = sorted(path.name for path in (old / name / "checkpoints").glob("step-*"))
    assert [item["checkpoint"] for item in checked["checkpoints"]] == folders
    assert launcher("verify", old / name).count("whole") == len(folders)


@pytest.mark.parametrize("name", NAMES)
def test_documents_have_the_keys_they_had(launcher: Launcher, tmp_path: Path, name: str) -> None:
    run = unpack(tmp_path / "runs") / name
    for verb in ("status", "verify", "logs", "report"):
        assert sorted(keys(json.loads(launcher(verb, run, "--json")))) == GOLDENS["keys"][verb], verb
    page = (run / "report.html").read_text()
    assert name in page and "Validation loss" in page


def hashes(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {key: hashlib.sha256(tensors[key].numpy().tobytes()).hexdigest() for key in sorted(tensors)}


@pytest.mark.parametrize("name", ["zero2-two-attempts", "slurm-verdict"])
def test_an_export_holds_the_weights_of_the_newest_checkpoint(
    launcher: Launcher, old: Path, tmp_path: Path, name: str
) -> None:
    said = json.loads(launcher("export", old / name, "--to", tmp_path / "out", "--json"))
    assert said["step"] == NEWEST[name]
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    weights.pop("lm_head.weight")  # it is model.embed_tokens.weight
    assert hashes(weights) == GOLDENS[name]["weights"]


def test_an_adapter_is_exported_alone_and_merged(launcher: Launcher, old: Path, tmp_path: Path) -> None:
    launcher("export", old / "lora", "--to", tmp_path / "adapter")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert hashes(adapter) == GOLDENS["lora"]["weights"]
    launcher("export", old / "lora", "--to", tmp_path / "merged", "--merge")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    tuned = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    expected = tuned.merge_and_unload().state_dict()
    base = AutoModelForCausalLM.from_pretrained(old / "model", dtype=torch.float32).state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[key], expected[key], atol=1e-7) for key in expected)
    assert any(not torch.equal(merged[key], base[key]) for key in base)


@pytest.fixture(scope="module", params=["zero2-two-attempts", "lora"])
def gone_on(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that went on to its end, by the command of users, and what that printed."""
    runs = unpack(tmp_path_factory.mktemp("gone-on") / "runs")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "train", "--run", request.param, "--json"],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return runs / request.param, json.loads(done.stdout)


def test_a_run_goes_on_as_if_nothing_had_been(
    gone_on: tuple[Path, dict[str, Any]], ranks: Ranks, tmp_path: Path
) -> None:
    run, said = gone_on
    assert (said["state"], said["step"], said["train_exit_code"]) == ("succeeded", 12, 0)
    anew = begin_anew(run, tmp_path / run.name)
    ranks("train", anew, new_attempt(anew), world_size=1 if run.name == "lora" else 2)
    assert_goes_on_undisturbed(run.name, run, anew)


def test_a_run_that_went_on_has_the_files_it_would_have_had(
    gone_on: tuple[Path, dict[str, Any]], launcher: Launcher
) -> None:
    run, said = gone_on
    assert files_of(run) == GOLDENS[run.name]["files_at_the_end"]
    assert sorted(keys(said)) == GOLDENS["keys"]["train"]
    checked = json.loads(launcher("verify", run, "--json"))
    assert checked["ok"] and checked["checkpoints"][-1]["step"] == 12


def test_the_run_of_a_job_goes_on_in_any_ranks(old: Path, ranks: Ranks, tmp_path: Path) -> None:
    """Through Slurm: tests/slurm/test_old_runs.py."""
    run = unpack(tmp_path / "runs") / "slurm-verdict"
    ranks("train", run, new_attempt(run), world_size=2)
    anew = begin_anew(run, tmp_path / "anew")
    ranks("train", anew, new_attempt(anew), world_size=2)
    assert_goes_on_undisturbed(run.name, run, anew)
