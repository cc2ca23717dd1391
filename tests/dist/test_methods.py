"""Every method under every strategy it is allowed with: trains, saves, resumes, and the weights can be taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.checkpoint.commit import newest_verified
from launcher.checkpoint.consolidate import full_state
from launcher.config.frozen import load_config
from launcher.config.model_files import find_architecture
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.plan.memory import checkpoint_bytes
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run, new_attempt
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("methods") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("methods") / "data")


CASES = [
    (1, ["strategy=single", "method=dora"]),
    (1, ["strategy=single", "method=qlora", "strategy.precision=bf16"]),
    (1, ["strategy=single", "strategy.precision=bf16", "strategy.compile=true"]),
    (1, ["strategy=single", "method=lora", "strategy.activation_checkpointing=true", "strategy.precision=bf16"]),
    (2, ["strategy=ddp", "method=qlora", "strategy.precision=bf16"]),
    (2, ["strategy=ddp", "method=dora", "strategy.precision=bf16"]),
    (2, ["strategy=zero1", "strategy.precision=bf16"]),
    (2, ["strategy=zero2", "strategy.precision=bf16", "strategy.activation_checkpointing=true"]),
    (2, ["strategy=zero2", "strategy.precision=bf16", "strategy.offload_optimizer=true"]),
    (2, ["strategy=zero2", "method=qlora", "strategy.precision=bf16"]),
    (2, ["strategy=zero2", "method=dora", "strategy.precision=bf16"]),
    (2, ["strategy=zero3", "strategy.precision=bf16"]),
    (2, ["strategy=zero3", "method=lora", "strategy.precision=bf16", "strategy.activation_checkpointing=true"]),
    (2, ["strategy=zero3_offload", "strategy.precision=bf16"]),
]
# zero3 with LoRA and zero3_offload are above, each on its own.
LONG_CASES = [(2, ["strategy=zero3_offload", "method=lora", "strategy.precision=bf16"])]


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        *(pytest.param(*case, id=" ".join(case[1])) for case in CASES),
        *(pytest.param(*case, id=" ".join(case[1]), marks=pytest.mark.nightly) for case in LONG_CASES),
    ],
)
def test_it_trains_resumes_and_gives_its_weights(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, overrides: list[str]
) -> None:
    settings = ["optim.epochs=2", "optim.lr=1e-2", "optim.schedule=constant", "batch.micro_sequences=1", *overrides]
    golden = make_run(tmp_path / "golden", model, data, *settings, world_size=world_size)
    ranks("train", golden, world_size=world_size)
    losses = [r.loss for r in read_metrics(RunPaths(golden).metrics).steps]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])

    run = make_run(tmp_path / "run", model, data, *settings, world_size=world_size)
    stopped = ranks("train", run, 1, 4, 0, world_size=world_size, check=False)
    assert [r.rc for r in stopped] == [ExitCode.PREEMPTED] * world_size
    ranks("train", run, new_attempt(run), world_size=world_size)
    resumed = [r.loss for r in read_metrics(RunPaths(run).metrics).steps]
    assert [x.hex() for x in resumed] == [x.hex() for x in losses]

    checkpoint = newest_verified(run)
    assert checkpoint is not None and checkpoint.step == 12
    config = load_config(RunPaths(run).config).config
    architecture = find_architecture(config.model, model_dir=str(model))
    assert architecture is not None
    size = sum(path.stat().st_size for path in checkpoint.path.rglob("*") if path.is_file())
    assert 0 <= size - checkpoint_bytes(config, architecture) <= 3 * 2**16  # generators, names, the manifest, constants of 4-bit weights
    state = full_state(checkpoint.path)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    base = load_file(model / "model.safetensors")
    if "method=" in " ".join(overrides):
        assert all(name.startswith("base_model.model.model.layers.") for name in state)
        assert all(tensor.norm() > 0 for tensor in state.values())
    else:
        assert set(state) - {"lm_head.weight"} == set(base)
        assert any(not torch.equal(state[name], base[name]) for name in base)
