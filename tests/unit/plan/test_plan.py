"""The plan: figures, verdicts, advice, time and cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.compose import compose_config
from launcher.config.model_files import _USUAL_MODULES, find_architecture
from launcher.config.schema import ArchitectureConfig
from launcher.config.topology import resolve_topology
from launcher.config.unused_settings import unused_warnings
from launcher.files import as_json
from launcher.plan.batch import derive
from launcher.plan.cost import expected_speed
from launcher.plan.parameters import module_shapes
from launcher.plan.plan import DataFacts, Plan, make_plan

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
    topology = replace(resolve_topology(config, []), device=device, devices_per_node=ranks)
    return make_plan(config, derive(config, facts, topology, run_id="a"), topology, facts)


EIGHT_B = ["model=llama3_1_8b", "strategy=zero3"]


def test_a_plan_is_plain_json() -> None:
    made = plan(*EIGHT_B)
    assert json.loads(json.dumps(as_json(made)))["parameters"] == 8_030_261_248


def test_a_problem_keeps_the_field_names_that_scripts_read() -> None:
    (problem,) = as_json(plan("model=llama3_1_8b", "strategy=ddp"))["problems"]
    assert list(problem) == ["key", "value", "why", "todo"]


def test_a_run_that_fits_has_no_problem_and_no_advice() -> None:
    made = plan(*EIGHT_B)
    assert made.problems == []
    assert made.memory is not None and made.memory.advice == []


def test_a_run_that_does_not_fit_is_refused_with_settings_that_make_it_fit() -> None:
    made = plan("model=llama3_1_8b", "strategy=ddp")
    (problem,) = made.problems
    assert problem.key == "cluster.gpu_memory_gib"
    assert problem.hint == "strategy.kind=zero2 brings it to 60.1 GiB"
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
    assert "use a smaller model" in made.problems[0].hint


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
    architecture = find_architecture(config.model)
    speeds = [expected_speed(one, architecture, resolve_topology(one, []), 1) for one in (config, lora)]
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


def test_made_up_figures_are_no_ground_to_call_data_small() -> None:
    made_up = replace(FACTS, num_packs=306, is_estimate=True, is_counted=False)
    for size in ("batch.global_sequences=512", "batch.global_tokens=100000000"):
        settings = ["batch=tokens", size] if "tokens" in size else [size]
        assert "the data has only" not in " ".join(plan(*EIGHT_B, *settings, facts=made_up).warnings)
        assert "the data has only" in " ".join(plan(*EIGHT_B, *settings, facts=replace(FACTS, num_packs=306)).warnings)


def test_tokens_and_packs_that_were_not_counted_are_no_ground_either() -> None:
    """Examples are; without packing they are the sequences."""
    skimmed = replace(FACTS, examples=7, num_packs=7, tokens=1000, is_estimate=True)
    warned = "the data has only"
    assert warned not in " ".join(
        plan(*EIGHT_B, "data.packing=true", "batch.global_sequences=8", facts=skimmed).warnings
    )
    by_tokens = ["batch=tokens", "batch.global_tokens=16384"]
    assert warned not in " ".join(plan(*EIGHT_B, *by_tokens, facts=skimmed).warnings)
    assert warned in " ".join(plan(*EIGHT_B, "data.packing=false", "batch.global_sequences=8", facts=skimmed).warnings)


def test_an_unknown_model_is_planned_without_memory() -> None:
    made = plan("model=from_path", "model.name_or_path=someone/unknown-model", "strategy=zero3")
    assert made.memory is None and made.disk is None and made.bill is None
    assert any("dimensions of this model are not known" in warning for warning in made.warnings)


SMALL = DataFacts(
    examples=24,
    validation_examples=4,
    tokens=2400,
    supervised_tokens=600,
    num_packs=24,
    max_pack_tokens=200,
    max_pack_supervised=50,
)
THREE_STEPS = ["model=smollm2_135m", "strategy=ddp", "optim.epochs=1"]


def small_plan(*overrides: str) -> Plan:
    return plan(*THREE_STEPS, *overrides, facts=SMALL, ranks=2)


@pytest.mark.parametrize("names", ["[foo]", "[q_proj,foo]", "[mlp.q_proj]", "[self_attn]", "[proj]"])
def test_modules_the_model_does_not_have_are_refused_with_those_it_has(names: str) -> None:
    (problem,) = small_plan("method=lora", f"method.target_modules={names}").problems
    assert problem.key == "method.target_modules"
    assert isinstance(problem.value, list) and problem.value[-1] in problem.why
    assert "all-linear, or some of: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in problem.hint


@pytest.mark.parametrize("names", ["[q_proj,v_proj]", "[mlp.up_proj]", "[layers.3.self_attn.q_proj]", "[lm_head]"])
def test_modules_are_named_as_peft_matches_them(names: str) -> None:
    made = small_plan("method=lora", f"method.target_modules={names}")
    assert made.problems == [] and made.trained_parameters
    assert made.disk is not None and made.disk.checkpoint > 0


def model_folder(folder: Path, model_type: str) -> str:
    architecture = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    architecture |= {"vocab_size": 64, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps({**architecture, "model_type": model_type}))
    return f"model.name_or_path={folder}"


def test_names_are_judged_by_the_config_json_of_a_model_too(tmp_path: Path) -> None:
    named = [model_folder(tmp_path, "qwen3"), "method=lora", "method.target_modules=[c_attn]"]
    assert [problem.key for problem in small_plan(*named).problems] == ["method.target_modules"]


def test_names_of_an_architecture_that_is_not_known_are_not_refused(tmp_path: Path) -> None:
    named = [model_folder(tmp_path, "phi3"), "method=lora", "method.target_modules=[qkv_proj]"]
    made = small_plan(*named)
    assert made.problems == []
    assert any("qkv_proj could not be checked" in warning for warning in made.warnings)


@pytest.mark.parametrize("model_type", sorted(_USUAL_MODULES))
def test_the_names_counted_on_are_those_of_the_architecture(model_type: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 96, "head_dim": 8, "pad_token_id": 0}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    real = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    architecture = ArchitectureConfig(
        hidden_size=48, intermediate_size=80, num_layers=3, num_heads=6, num_kv_heads=2, vocab_size=96, head_dim=8
    )
    assert set(module_shapes(architecture)) == real


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["optim.warmup_steps=1000"],
            "optim.warmup_steps = 1,000 is more than this run of 3 steps has room for: cut to 2",
        ),
        (["optim=wsd", "optim.decay_ratio=1.0", "optim.warmup_steps=2"], "optim.decay_ratio = 1 asks for 3 steps"),
        (["checkpoint.save_every_steps=50"], "only the end is saved"),
        (["track.eval_every_steps=50"], "validation runs after each epoch only"),
        (["batch.micro_sequences=8"], "batch.micro_sequences = 8 is more than a step has for one device: each takes 4"),
        (["batch=tokens"], "fewer than batch.global_tokens = 65,536"),
    ],
)
def test_a_setting_that_is_cut_or_comes_to_nothing_is_warned_of(overrides: list[str], told: str) -> None:
    made = small_plan(*overrides)
    assert made.problems == []
    assert [warning for warning in made.warnings if told in warning]


def test_settings_that_fit_are_not_warned_of() -> None:
    fitting = ["optim.warmup_steps=2", "checkpoint.save_every_steps=3", "track.eval_every_steps=1"]
    (only,) = small_plan(*fitting, "batch.micro_sequences=4").warnings
    assert only.startswith("only 3 optimizer steps")


def test_what_a_file_says_in_vain_is_warned_of_not_refused(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("kind: full\nrank: 64\n")
    config = compose_config(["data=next_number", "method=mine"], extra_dir=tmp_path)
    assert unused_warnings(config) == ["method.rank = 64 has no effect: it is for adapters, and method.kind is full"]


def test_the_memory_of_a_gpu_means_nothing_to_a_plan_for_a_cpu() -> None:
    asked = [*THREE_STEPS, "cluster.gpu_memory_gib=24"]
    assert any("cluster.device=cuda plans for GPUs" in warning for warning in plan(*asked, device="cpu").warnings)
    assert not any("plans for GPUs" in warning for warning in plan(*asked).warnings)


@pytest.mark.parametrize(
    ("cluster", "source"),
    [
        ("one_node_8gpu", "35% of 989 TFLOP/s (cluster.device_tflops)"),
        ("slurm_example_containers", "35% of 989 TFLOP/s (cluster.device_tflops)"),
        ("slurm_example_university", "35% of 312 TFLOP/s (cluster.device_tflops)"),
        ("one_gpu_80gb", "35% of 312 TFLOP/s (bf16 on a card like A100)"),
        ("slurm", "35% of 312 TFLOP/s (bf16 on a card like A100)"),
    ],
)
def test_time_is_planned_for_the_card_a_cluster_file_names(cluster: str, source: str) -> None:
    config = compose_config(["model=llama3_1_8b", "data=next_number", "strategy=ddp", f"cluster={cluster}"])
    speed = expected_speed(config, find_architecture(config.model), resolve_topology(config, []), 1)
    assert speed is not None and speed.source.endswith(source)


def test_a_stated_16_bit_rate_is_not_taken_for_one_of_fp32() -> None:
    base = ["model=llama3_1_8b", "data=next_number", "strategy=ddp", "cluster=one_node_8gpu"]
    config = compose_config([*base, "strategy.precision=fp32"])
    topology = resolve_topology(config, [])
    speed = expected_speed(config, find_architecture(config.model), topology, 1)
    half = expected_speed(compose_config(base), find_architecture(config.model), topology, 1)
    assert speed is not None and half is not None
    assert half.tokens_per_s / speed.tokens_per_s == pytest.approx(312 / 19.5)


@pytest.mark.parametrize(
    ("overrides", "capability", "attention"),
    [
        pytest.param([], (8, 0), "varlen", id="Ampere"),
        pytest.param([], None, "varlen", id="not known, or AMD"),
        pytest.param(["strategy.precision=fp16"], (7, 5), "segments", id="Turing"),
        pytest.param(["strategy.precision=fp32"], (9, 0), "segments", id="fp32"),
        pytest.param(["model.architecture.head_dim=100"], (9, 0), "segments", id="a head that no kernel takes"),
        pytest.param(["model.architecture.head_dim=512"], (9, 0), "segments", id="a head too wide"),
    ],
)
def test_the_attention_kernel_is_one_that_the_gpu_has(
    overrides: list[str], capability: tuple[int, int] | None, attention: str
) -> None:
    config = compose_config(["model=llama3_1_8b", "data=next_number", "cluster=one_gpu_80gb", *overrides])
    topology = replace(resolve_topology(config, []), capability=capability)
    assert derive(config, FACTS, topology, run_id="a").attention == attention
