"""A real run on one rank inside the test process: tiny model, small data, the engine that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from launcher.config.frozen import load_config
from launcher.paths import RunPaths
from launcher.train.main import prepare_run
from launcher.train.recorder import Recorder
from launcher.train.run import Run
from launcher.train.world import World
from tests.dist.rig import make_data, make_run

OpenRun = Callable[..., Run]


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("small-data") / "data")


@pytest.fixture
def open_run(tmp_path: Path, tiny_model: Path, small_data: Path) -> Iterator[OpenRun]:
    """`open_run(*overrides)`: the run of tests/dist/rig.py, ready for its first step."""
    recorders: list[Recorder] = []

    def make(*overrides: str, model: Path = tiny_model, data: Path = small_data) -> Run:
        paths = RunPaths(make_run(tmp_path / f"run-{len(recorders)}", model, data, *overrides))
        frozen = load_config(paths.config)
        assert frozen.derived is not None
        recorders.append(Recorder(paths, frozen.derived, attempt=1))
        world = World(rank=0, size=1, device=torch.device("cpu"))
        return prepare_run(paths, frozen.config, frozen.derived, attempt=1, world=world, recorder=recorders[-1])

    yield make
    for recorder in recorders:
        recorder.close()
