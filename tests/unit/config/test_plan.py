"""The plan: figures, verdicts, advice, time and cost."""

from __future__ import annotations

import json

import pytest

from launcher.config.batch import derive
from launcher.config.compose import compose_config
from launcher.config.cost import expected_speed
from launcher.config.model_files import architecture
from launcher.config.plan import DataFacts, Plan, make_plan

FACTS = DataFacts(
    examples=10_000,
    validation_examples=100,
    tokens=2_000_000,
    supervised_tokens=800_000,
    num_packs=500,
    max_pack_tokens=4096,
    max_pack_supervised=3000,
)


def plan(*overrides: str, facts: DataFacts = FACTS, device: str = "cuda", ranks: int = 8) -> Plan:
    config = compose_config(["data=next_number", "data.seq_len_tokens=4096", "cluster=slurm", *overrides])
    derived = derive(
        config,
        run_id="a",
        model_dir="",
        data_dir="d",
        data_key="k",
        num_packs=facts.num_packs,
        mean_pack_tokens=facts.mean_pack_tokens,
        max_tokens=facts.max_pack_tokens,
        device=device,
        devices_per_node=ranks,
    )
    return make_plan(config, derived, facts)


EIGHT_B = ["model=llama3_1_8b", "strategy=zero3"]


def test_a_plan_is_plain_json() -> None:
    made = plan(*EIGHT_B)
    assert json.loads(json.dumps(made.as_dict()))["parameters"] == 8_030_261_248


def test_a_run_that_fits_has_no_problem_and_no_advice() -> None:
    made = plan(*EIGHT_B)
    assert made.problems == []
    assert made.memory is not None and made.memory.advice == []


def test_a_run_that_does_not_fit_is_refused_with_settings_that_make_it_fit() -> None:
    made = plan("model=llama3_1_8b", "strategy=ddp")
    (problem,) = made.problems
    assert problem.key == "cluster.gpu_memory_gib"
    assert problem.todo == "strategy.kind=zero2 brings it to 60.1 GiB"
    assert made.memory is not None
    assert float(made.memory.advice[-1].split()[-2]) < 80


@pytest.mark.parametrize(
    ("method", "memory_gib"),
    [*(("full", size) for size in (10, 16, 24, 40, 80)), *(("lora", size) for size in (8, 10, 12, 16, 24, 40))],
)
def test_advice_that_is_followed_works(method: str, memory_gib: int) -> None:
    start = ["model=llama3_1_8b", f"cluster.gpu_memory_gib={memory_gib}"]
    advised = plan(*start, f"method={method}", "strategy=ddp")
    assert advised.memory is not None and advised.memory.advice
    words = [word for line in advised.memory.advice for word in line.split() if "=" in word]
    chosen = {"method": f"method={method}", "strategy": "strategy=ddp"} | {word.split("=")[0]: word for word in words}
    followed = plan(*start, *chosen.values())
    assert followed.problems == []
    assert followed.memory is not None and followed.memory.device_total < memory_gib


def test_what_cannot_fit_by_any_setting_says_so() -> None:
    made = plan("model=llama3_1_70b", "strategy=zero3", "cluster.gpu_memory_gib=4")
    assert "use a smaller model" in made.problems[0].todo


def test_a_near_miss_is_a_warning() -> None:
    base = plan(*EIGHT_B)
    assert base.memory is not None
    made = plan(*EIGHT_B, f"cluster.gpu_memory_gib={base.memory.device_total / 1.05:.2f}")
    assert made.problems == []
    assert any("may not fit" in warning for warning in made.warnings)


def test_too_little_host_memory_for_offload_is_refused() -> None:
    made = plan("model=llama3_1_70b", "strategy=zero3_offload", "cluster.host_memory_gib=256")
    assert [problem.key for problem in made.problems] == ["cluster.host_memory_gib"]


def test_time_follows_a_stated_speed_and_cost_a_price() -> None:
    made = plan(*EIGHT_B, "cluster.tokens_per_s_per_device=1000", "cluster.price_per_device_hour=2", "optim.epochs=1")
    assert made.bill is not None
    assert made.bill.hours == pytest.approx(2_000_000 / 8000 / 3600, rel=0.01)
    assert made.bill.cost == pytest.approx(made.bill.device_hours * 2)


def test_an_estimated_speed_says_what_it_rests_on() -> None:
    made = plan(*EIGHT_B, "cluster.device_tflops=500")
    assert made.bill is not None
    assert made.bill.speed_source == "estimate: 35% of 500 TFLOP/s (cluster.device_tflops)"
    # 8 operations a parameter with checkpointing; the embedding is looked up, not multiplied
    worked = 8_030_261_248 - 128_256 * 4096
    assert made.bill.tokens_per_s == pytest.approx(8 * 0.35 * 500e12 / (8 * worked))


def test_adapters_train_faster_than_all_weights() -> None:
    config = compose_config(["model=llama3_1_8b", "data=next_number", "cluster=one_gpu_80gb"])
    lora = compose_config(["model=llama3_1_8b", "data=next_number", "cluster=one_gpu_80gb", "method=lora"])
    figures = architecture(config.model)
    speeds = [expected_speed(one, figures, "cuda", 1) for one in (config, lora)]
    assert speeds[0] is not None and speeds[1] is not None
    assert speeds[1].tokens_per_s > speeds[0].tokens_per_s


def test_disk_counts_the_checkpoints_that_exist_at_once() -> None:
    made = plan(*EIGHT_B, "checkpoint.keep_last=3")
    assert made.disk is not None
    assert made.disk.kept == 5  # three, the best one, and the one being written
    assert made.disk.total == pytest.approx(5 * made.disk.checkpoint)
    without_best = plan(*EIGHT_B, "checkpoint.keep_best=false").disk
    assert without_best is not None and without_best.kept == 3


def test_idle_devices_and_tiny_data_are_warned_of() -> None:
    small = DataFacts(
        examples=5,
        validation_examples=0,
        tokens=500,
        supervised_tokens=100,
        num_packs=5,
        max_pack_tokens=100,
        max_pack_supervised=20,
    )
    warnings = " ".join(plan(*EIGHT_B, facts=small).warnings)
    assert "3 of 8 devices get nothing" in warnings
    assert "only 5 sequences" in warnings
    assert "optimizer steps" in warnings


def test_an_unknown_model_is_planned_without_memory() -> None:
    made = plan("model=from_path", "model.name_or_path=someone/unknown-model", "strategy=zero3")
    assert made.memory is None and made.disk is None and made.bill is None
    assert any("figures of this model are not known" in warning for warning in made.warnings)
