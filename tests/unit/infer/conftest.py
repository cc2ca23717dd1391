"""A run whose tiny model has learnt its task, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.infer.learned_runs import add_learned_checkpoint, make_run, pairs


@pytest.fixture(scope="session")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model answers every question with `ok`, as its examples do."""
    folder = tmp_path_factory.mktemp("learned")
    run, _ = make_run(folder, tiny_model, train=pairs(40), validation=pairs(12, start=100))
    add_learned_checkpoint(run, tiny_model)
    return run.root
