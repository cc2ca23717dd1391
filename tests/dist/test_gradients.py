"""One optimizer step has one gradient, however it is spread: ranks, ZeRO stage, accumulation, packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from launcher.data.order import Order
from launcher.data.prepared import Prepared
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

TOLERANCE = 1e-5
WHOLE_DATA = "batch.global_sequences=24"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("gradients") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("gradients") / "data")


@pytest.fixture(scope="module")
def reference(model: Path, data: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the same examples through plain transformers: padded, masked, one batch, -100 labels."""
    from transformers import LlamaForCausalLM

    split = Prepared.open(data, "train")
    examples = range(split.num_examples)
    longest = max(len(split.tokens(i)) for i in examples)
    ids = torch.full((len(examples), longest), 259)
    attention = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i in examples:
        tokens = torch.from_numpy(split.tokens(i).astype(np.int64))
        ids[i, : len(tokens)] = tokens
        attention[i, : len(tokens)] = 1
        supervised = torch.from_numpy(split.mask(i).copy())
        labels[i, : len(tokens)][supervised] = tokens[supervised]
    plain = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    loss = plain(input_ids=ids, attention_mask=attention, labels=labels).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in plain.named_parameters()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = torch.cat([g.flatten() for g in wanted.values()]).norm()
    assert scale > 1e-3
    for name in wanted:
        difference = (found[name] - wanted[name]).norm() / wanted[name].norm()
        assert difference <= TOLERANCE, f"{name}: relative difference {difference:.2e}"


LAYOUTS = [
    pytest.param(1, ["strategy=single"], 24, id="1 rank, one micro-batch"),
    pytest.param(1, ["strategy=single"], 12, id="1 rank, accumulation 2"),
    pytest.param(1, ["strategy=single"], 6, id="1 rank, accumulation 4"),
    pytest.param(1, ["strategy=single"], 5, id="1 rank, micro-batches that do not divide"),
    pytest.param(1, ["strategy=single", "strategy.activation_checkpointing=true"], 12, id="activation checkpointing"),
    pytest.param(2, ["strategy=ddp"], 12, id="DDP, 2 ranks"),
    pytest.param(2, ["strategy=ddp"], 3, id="DDP, 2 ranks, accumulation 4"),
    pytest.param(3, ["strategy=ddp"], 5, id="DDP, 3 ranks, a rank without work"),
    pytest.param(1, ["strategy=zero2"], 12, id="ZeRO-2, 1 rank"),
    *[
        pytest.param(2, [f"strategy=zero{stage}"], micro, id=f"ZeRO-{stage}, 2 ranks, accumulation {12 // micro}")
        for stage in (1, 2, 3)
        for micro in (12, 6, 3)
    ],
]


@pytest.mark.parametrize(("world_size", "overrides", "micro_sequences"), LAYOUTS)
def test_every_layout_gives_the_gradient_of_a_plain_padded_loss(
    tmp_path: Path,
    ranks: Ranks,
    model: Path,
    data: Path,
    reference: tuple[float, dict[str, Tensor]],
    world_size: int,
    overrides: list[str],
    micro_sequences: int,
) -> None:
    micro = f"batch.micro_sequences={micro_sequences}"
    run = make_run(tmp_path / "run", model, data, WHOLE_DATA, micro, *overrides, world_size=world_size)
    results = ranks("gradients", run, tmp_path / "grads.safetensors", world_size=world_size)
    loss, gradients = reference
    assert [r.value for r in results] == pytest.approx([loss] * world_size, rel=TOLERANCE)
    assert_same(load_file(tmp_path / "grads.safetensors"), gradients)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["strategy=ddp"], id="DDP"),
        pytest.param(["strategy=zero3", "strategy.activation_checkpointing=true"], id="ZeRO-3, checkpointing"),
    ],
)
def test_the_kernel_for_gpus_gives_the_same_gradient(
    tmp_path: Path,
    ranks: Ranks,
    model: Path,
    data: Path,
    reference: tuple[float, dict[str, Tensor]],
    settings: list[str],
) -> None:
    run = make_run(tmp_path / "run", model, data, WHOLE_DATA, "batch.micro_sequences=6", *settings, world_size=2)
    ranks("with_varlen", "gradients", run, tmp_path / "grads.safetensors", world_size=2)
    assert_same(load_file(tmp_path / "grads.safetensors"), reference[1])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_settings_for_gpus_give_the_same_gradient(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, reference: tuple[float, dict[str, Tensor]], stage: int
) -> None:
    settings = [WHOLE_DATA, "batch.micro_sequences=3", f"strategy=zero{stage}"]
    run = make_run(tmp_path / "run", model, data, *settings, world_size=2)
    ranks("as_on_gpu", "gradients", run, tmp_path / "grads.safetensors", world_size=2)
    assert_same(load_file(tmp_path / "grads.safetensors"), reference[1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_packing_does_not_change_the_gradient(
    tmp_path: Path, ranks: Ranks, model: Path, reference: tuple[float, dict[str, Tensor]], world_size: int
) -> None:
    packed = make_data(tmp_path / "data", packing=True)
    assert Prepared.open(packed, "train").num_packs < 24
    strategy = "strategy=ddp" if world_size > 1 else "strategy=single"
    overrides = [WHOLE_DATA, strategy, "batch.micro_sequences=2"]
    run = make_run(tmp_path / "run", model, packed, *overrides, world_size=world_size)
    ranks("gradients", run, tmp_path / "grads.safetensors", world_size=world_size)
    assert_same(load_file(tmp_path / "grads.safetensors"), reference[1])


def test_a_broken_normalisation_would_be_seen(reference: tuple[float, dict[str, Tensor]]) -> None:
    wrong = {name: g * 1.0001 for name, g in reference[1].items()}
    with pytest.raises(AssertionError, match="relative difference"):
        assert_same(wrong, reference[1])


def test_one_epoch_meets_every_pack_once_at_any_global_batch() -> None:
    for global_sequences in (1, 4, 7, 24, 30):
        order = Order(seed=3, num_packs=24, global_sequences=global_sequences)
        for epoch in range(2):
            steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            assert sorted(np.concatenate([order.step_packs(s) for s in steps]).tolist()) == list(range(24))
