"""Runs without training: a frozen configuration, and worker scripts that do what a test needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.schema import Derived, RunConfig
from launcher.runs.run_dir import create_run

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name="one", world_size=2) -> run_dir`, under tmp_path/runs."""

    def make(name: str | None = "one", *, world_size: int = 1, nodes: int = 1) -> Path:
        config = RunConfig(name=name, runs_dir=str(tmp_path / "runs"), experiment_name="trial")
        config.model.name_or_path = "model"
        config.cluster.nodes = nodes
        data_dir = tmp_path / "prepared"
        data_dir.mkdir(exist_ok=True)
        derived = Derived(
            run_id="abc123",
            model_dir=str(tmp_path / "model"),
            data_dir=str(data_dir),
            data_key="key",
            device="cpu",
            world_size=world_size,
            devices_per_node=world_size // nodes,
            threads_per_process=1,
            num_packs=8,
            global_sequences=4,
            micro_sequences=2,
            grad_accum_steps=1,
            steps_per_epoch=2,
            total_steps=4,
            peak_lr=1e-4,
            warmup_steps=0,
            attention="segments",
        )
        return create_run(config, derived, {"steps": 4})

    return make


@pytest.fixture
def make_worker(tmp_path: Path) -> Callable[[str], list[str]]:
    """`make_worker(body) -> command` of a script that knows rank, world_size, run (a Path) and attempt."""

    def make(body: str) -> list[str]:
        script = tmp_path / "worker.py"
        script.write_text(
            "import os, pathlib, signal, sys, time\n"
            "rank, world_size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])\n"
            "run, attempt = pathlib.Path(sys.argv[2]), int(sys.argv[4])\n"
            # As train/stop.py does once it can catch them.
            "signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())\n" + body
        )
        return [sys.executable, str(script)]

    return make


@pytest.fixture(scope="session")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model answers every question with `ok`, as its examples do."""
    from tests.unit.evaluate.learned_runs import add_learned_checkpoint, make_run, pairs  # loads torch

    folder = tmp_path_factory.mktemp("learned")
    run, _ = make_run(folder, tiny_model, train=pairs(40), validation=pairs(12, start=100))
    add_learned_checkpoint(run, tiny_model)
    return run.root
