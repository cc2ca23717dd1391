"""A run that is stopped and continued by new processes is bitwise the run that was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.checkpoint.manifest import read_manifest
from launcher.paths import RunPaths
from launcher.errors import ExitCode
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run, new_attempt
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

STEPS = ["optim.max_steps=6", "track.eval_every_steps=3", "optim.weight_decay=0.01"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, so that a generator that is not restored shows."""
    return make_tiny_model(tmp_path_factory.mktemp("resume") / "model", dropout=0.1)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("resume") / "plain-model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("resume") / "data")


def curve(run: Path) -> list[tuple[object, ...]]:
    """Everything of the loss curve that must be equal, bit for bit."""
    metrics = read_metrics(RunPaths(run).metrics)
    steps = [(r.step, r.loss.hex(), r.lr.hex(), r.grad_norm.hex(), r.tokens, r.total_tokens) for r in metrics.steps]
    return [*steps, *((e.step, e.loss.hex()) for e in metrics.evals)]


def weights(run: Path) -> dict[str, str]:
    """Hashes of the final checkpoint's files."""
    files = read_manifest(RunPaths(run).checkpoints / "step-000006").files
    return {entry.name: entry.sha256 for entry in files}


CASES = [
    pytest.param(world_size, strategy, method, ["train"], id=f"{strategy}-{method}")
    for world_size, strategy in [(1, "single"), (2, "ddp"), (2, "zero1"), (2, "zero2"), (2, "zero3")]
    for method in ("full", "lora")
]
CASES += [
    pytest.param(2, strategy, method, ["as_on_gpu", "train"], id=f"{strategy}-{method}-as on a GPU")
    for strategy, method in [("zero2", "full"), ("zero3", "full"), ("zero3", "lora")]
]
CASES += [pytest.param(2, "zero2", "full", ["with_varlen", "train"], id="zero2-full-varlen")]


@pytest.mark.parametrize(("world_size", "strategy", "method", "train"), CASES)
def test_three_steps_and_three_more_equal_six(
    tmp_path: Path,
    ranks: Ranks,
    model: Path,
    data: Path,
    world_size: int,
    strategy: str,
    method: str,
    train: list[str],
    plain_model: Path,
) -> None:
    overrides = [*STEPS, f"strategy={strategy}", f"method={method}", "batch.micro_sequences=1"]
    if "with_varlen" in train:  # which has no dropout
        model = plain_model
    if method == "lora":
        overrides.append("method.dropout=0.1")
    golden = make_run(tmp_path / "golden", model, data, *overrides, world_size=world_size)
    ranks(*train, golden, world_size=world_size)

    run = make_run(tmp_path / "run", model, data, *overrides, world_size=world_size)
    # The flag set after step 2 is agreed on at the edge of step 3; only the last rank hears the signal. The evaluation
    # due after step 3 is left to the next attempt.
    stopped = ranks(*train, run, 1, 2, world_size - 1, world_size=world_size, check=False)
    assert [r.rc for r in stopped] == [ExitCode.PREEMPTED] * world_size
    assert (RunPaths(run).checkpoints / "step-000003").is_dir()
    ranks(*train, run, new_attempt(run), world_size=world_size)

    assert curve(run) == curve(golden)
    assert len(curve(run)) == 6 + 2
    if not strategy.startswith("zero"):  # DeepSpeed's pickles hold paths and object identities
        assert weights(run) == weights(golden)
    events = [json.loads(line) for line in RunPaths(run).events.read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "resume"] == [3]


@pytest.mark.parametrize(("world_size", "strategy"), [(1, "single"), (2, "zero2"), (2, "zero3")])
def test_a_rehearsal_leaves_no_trace(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, strategy: str
) -> None:
    curves = []
    for rehearse in ("true", "false"):
        overrides = [*STEPS, f"strategy={strategy}", f"checkpoint.rehearse={rehearse}"]
        run = make_run(tmp_path / rehearse, model, data, *overrides, world_size=world_size)
        ranks("train", run, world_size=world_size)
        curves.append(curve(run))
    assert curves[0] == curves[1]
