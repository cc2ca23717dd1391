"""Batch, steps and learning rate: the arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.compose import compose_config
from launcher.config.schema import BatchConfig, Derived, MethodKind, OptimConfig, RunConfig
from launcher.config.topology import Topology
from launcher.plan.batch import computed_lr, derive, plan_batch, step_counts, warmup_steps
from tests.made import make_facts


def derived(*overrides: str, packs: int = 600, longest: int = 64, ranks: int = 1, device: str = "cpu") -> Derived:
    config = compose_config(["experiment=quickstart", *overrides])
    facts = make_facts(packs, pack_tokens=40.0, longest=longest)
    return derive(config, facts, Topology(device, ranks, config.cluster.nodes), run_id="a", model_dir="m")


def test_the_quickstart_takes_38_steps_an_epoch_at_1e_4() -> None:
    values = derived()
    assert (values.steps_per_epoch, values.total_steps, values.peak_lr) == (38, 76, 1e-4)
    assert (values.global_sequences, values.micro_sequences, values.grad_accum_steps) == (16, 16, 1)


@pytest.mark.parametrize(
    ("total", "ranks", "wanted", "micro", "accumulation"),
    [
        (8, 1, 8, 8, 1),
        (8, 1, 3, 3, 3),
        (12, 1, 8, 6, 2),  # 6+6, not 8+4
        (8, 2, 2, 2, 2),
        (7, 2, 2, 2, 2),  # the last micro-step is not full
        (8, 3, 8, 3, 1),
        (4, 8, 1, 1, 1),  # four ranks get nothing
        (64, 8, 1, 1, 8),
    ],
)
def test_a_step_is_divided_among_ranks_and_micro_steps(
    total: int, ranks: int, wanted: int, micro: int, accumulation: int
) -> None:
    config = RunConfig(batch=BatchConfig(global_sequences=total, micro_sequences=wanted))
    plan = plan_batch(config, make_facts(1000, pack_tokens=10, longest=10), ranks)
    assert (plan.micro_sequences, plan.grad_accum_steps) == (micro, accumulation)


@given(total=st.integers(1, 300), ranks=st.integers(1, 40), micro=st.integers(1, 40), packs=st.integers(1, 400))
def test_any_division_holds_the_whole_step_and_no_idle_micro_step(
    total: int, ranks: int, micro: int, packs: int
) -> None:
    config = RunConfig(batch=BatchConfig(global_sequences=total, micro_sequences=micro))
    plan = plan_batch(config, make_facts(packs, pack_tokens=10, longest=10), ranks)
    assert plan.global_sequences == min(total, packs)
    assert plan.micro_sequences <= micro
    assert ranks * plan.micro_sequences * plan.grad_accum_steps >= plan.global_sequences
    assert ranks * plan.micro_sequences * (plan.grad_accum_steps - 1) < plan.global_sequences


def test_a_batch_in_tokens_is_rounded_to_sequences() -> None:
    assert derived("batch.global_sequences=null", "batch.global_tokens=1000").global_sequences == 25
    assert derived("batch.global_sequences=null", "batch.global_tokens=1").global_sequences == 1


def test_micro_tokens_count_on_the_longest_sequence() -> None:
    assert derived("batch.micro_tokens=256", longest=64).micro_sequences == 4
    assert derived("batch.micro_tokens=10", longest=64).micro_sequences == 1


def test_a_fraction_of_an_epoch_is_rounded_up() -> None:
    assert step_counts(OptimConfig(epochs=0.5), num_packs=5, global_sequences=1) == (5, 3)
    assert step_counts(OptimConfig(epochs=0.1), num_packs=30, global_sequences=1) == (30, 3)
    assert step_counts(OptimConfig(epochs=0.0001), num_packs=5, global_sequences=1) == (5, 1)


def test_max_steps_overrules_epochs() -> None:
    assert derived("optim.max_steps=7").total_steps == 7


@pytest.mark.parametrize(
    ("parameters", "method", "low", "high"),
    [
        (134_515_008, MethodKind.full, 0.99e-4, 1.01e-4),
        (8_030_261_248, MethodKind.full, 7e-6, 1.2e-5),
        (70_553_706_496, MethodKind.full, 1e-6, 3e-6),
        (134_515_008, MethodKind.lora, 4.9e-4, 5.1e-4),
        (8_030_261_248, MethodKind.qlora, 0.99e-4, 2e-4),
        (10_000, MethodKind.full, 0.99e-3, 1.01e-3),
    ],
)
def test_the_computed_rate_follows_size_and_method(
    parameters: int, method: MethodKind, low: float, high: float
) -> None:
    assert low <= computed_lr(num_parameters=parameters, method=method, epoch_tokens=1e6) <= high


def test_small_data_gets_a_smaller_rate_but_not_none() -> None:
    rates = [
        computed_lr(num_parameters=135_000_000, method=MethodKind.full, epoch_tokens=tokens)
        for tokens in (10, 5_000, 10_000, 20_000, 10**9)
    ]
    assert rates == sorted(rates)
    assert math.isclose(rates[0], 3e-5) and math.isclose(rates[-1], 1e-4)


def test_the_multiplier_applies_to_a_given_and_to_a_computed_rate() -> None:
    assert math.isclose(derived("optim.lr_multiplier=0.5").peak_lr, 5e-5)
    assert math.isclose(derived("optim.lr=3e-4", "optim.lr_multiplier=2").peak_lr, 6e-4)


def test_warm_up_never_takes_the_whole_run() -> None:
    assert warmup_steps(OptimConfig(warmup_ratio=0.03), 225) == 7
    assert warmup_steps(OptimConfig(warmup_steps=50), 10) == 9
    assert warmup_steps(OptimConfig(warmup_steps=0), 10) == 0
    assert warmup_steps(OptimConfig(), 1) == 0


@pytest.mark.parametrize(
    ("overrides", "device", "attention"),
    [
        ([], "cpu", "segments"),
        ([], "cuda", "varlen"),
        (["strategy.precision=fp32"], "cuda", "segments"),
        (["cluster.device=cuda", "model.attention=flash_attention_2"], "cuda", "flash_attention_2"),
    ],
)
def test_attention_follows_the_device(overrides: list[str], device: str, attention: str) -> None:
    assert derived(*overrides, device=device).attention == attention


def test_a_job_takes_the_threads_its_task_gets() -> None:
    assert derived("cluster=slurm", "strategy=ddp", ranks=8, device="cuda").threads_per_process == 0
    assert derived("cluster.threads_per_process=3").threads_per_process == 3
    assert derived("strategy=ddp", ranks=64).threads_per_process >= 1
