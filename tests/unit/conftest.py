"""Runs without training: a frozen configuration, and worker scripts that do what a test needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests import made

MakeRun = Callable[..., Path]

# How long an example takes says something about the machine only.
settings.register_profile("launcher", deadline=None)
settings.load_profile("launcher")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name="one", world_size=2) -> run_dir`, under tmp_path/runs (tests/made.py)."""

    return partial(made.make_run, tmp_path / "runs")


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
