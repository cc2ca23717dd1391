"""Parameter counts against real models, and the memory formulas against saved tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.config.compose import compose_config
from launcher.config.model_files import find_architecture, read_architecture
from launcher.config.schema import ArchitectureConfig, MethodConfig, MethodKind, ModelConfig, Precision, RunConfig
from launcher.config.topology import Topology
from launcher.plan.memory import GIB, Load, checkpoint_bytes, estimate, layer_bytes_per_token, tensor_parallel_size
from launcher.plan.parameters import adapter_parameters, count_parameters, count_trained

ONE_GPU = Topology("cuda", devices_per_node=1, nodes=1)
EIGHT_GPUS = Topology("cuda", devices_per_node=8, nodes=1)


def figures_of(model: str) -> ArchitectureConfig:
    architecture = find_architecture(compose_config([f"model={model}", "data=next_number"]).model)
    assert architecture is not None
    return architecture


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_1_70b", 70_553_706_496),
        ("mistral_7b", 7_248_023_552),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen2_5_coder_7b", 7_615_616_512),
        ("codellama_7b", 6_738_546_688),
    ],
)
def test_shipped_figures_give_the_published_number_of_parameters(model: str, parameters: int) -> None:
    assert count_parameters(figures_of(model)) == parameters


TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def tiny(kind: str, **changes: object) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TINY, **changes}))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_equals_that_of_a_real_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(kind, tie_word_embeddings=tied)
    model.config.save_pretrained(tmp_path)
    assert count_parameters(read_architecture(tmp_path / "config.json")) == model.num_parameters()


@pytest.mark.parametrize("kind", [MethodKind.lora, MethodKind.dora])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_the_adapter_count_equals_that_of_peft(kind: MethodKind, targets: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    method = MethodConfig(kind=kind, rank=4, target_modules=targets)
    wanted = "all-linear" if targets == ["all-linear"] else targets
    settings = LoraConfig(r=4, target_modules=wanted, use_dora=kind is MethodKind.dora, task_type="CAUSAL_LM")
    trained, _ = get_peft_model(model, settings).get_nb_trainable_parameters()
    assert adapter_parameters(read_architecture(tmp_path / "config.json"), method) == trained


def saved_bytes(model: Any, tokens: int, *, autocast: bool) -> int:
    """Bytes autograd keeps between forward and backward, weights and their copies left out."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tokens in tensor.shape:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(
            input_ids=torch.arange(tokens)[None] % 96,
            position_ids=torch.arange(tokens)[None],
            logits_to_keep=torch.arange(1),
        )
    return sum(kept.values())


@pytest.mark.parametrize(
    ("overrides", "autocast", "half", "lora"),
    [
        (["strategy.precision=fp32"], False, False, False),
        ([], True, False, False),
        (["strategy=zero2"], False, True, False),
        (["method=lora"], True, True, True),
    ],
)
def test_activations_are_estimated_within_a_fifth(
    overrides: list[str], autocast: bool, half: bool, lora: bool, tmp_path: Path
) -> None:
    tokens, layers = 512, 6
    model = tiny("llama", num_hidden_layers=layers, hidden_size=96, intermediate_size=256)
    model.config.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path / "config.json")
    if half:
        model = model.bfloat16()
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    config = compose_config(["experiment=quickstart", *overrides])
    expected = tokens * (layers * layer_bytes_per_token(config, architecture) + 12 * architecture.hidden_size)
    assert saved_bytes(model, tokens, autocast=autocast) == pytest.approx(expected, rel=0.2)


def run(*overrides: str) -> RunConfig:
    return compose_config(["model=llama3_1_8b", "data=next_number", "cluster=slurm", *overrides])


def need(*overrides: str, topology: Topology = EIGHT_GPUS, tokens: int = 8192) -> dict[str, float]:
    config = run(*overrides)
    architecture = find_architecture(config.model)
    assert architecture is not None
    made = estimate(config, architecture, topology, Load(tokens, tokens // 2))
    return {name: size / GIB for name, size in made.device.items()} | {"total": made.device_total / GIB}


def test_full_tuning_holds_16_bytes_a_parameter_and_zero3_divides_them() -> None:
    parameters = 8_030_261_248 / GIB
    ddp, zero3 = need("strategy=ddp"), need("strategy=zero3")
    assert ddp["weights"] + ddp["gradients"] + ddp["optimizer"] == pytest.approx(16 * parameters)
    assert zero3["weights"] + zero3["gradients"] + zero3["optimizer"] == pytest.approx((2 + 4 + 12) * parameters / 8)


def test_each_stage_needs_less_than_the_one_before() -> None:
    totals = [need(f"strategy={kind}")["total"] for kind in ("ddp", "zero1", "zero2", "zero3", "zero3_offload")]
    assert totals == sorted(totals, reverse=True)


def test_each_method_needs_less_than_the_one_before() -> None:
    totals = [need("strategy=ddp", f"method={kind}")["total"] for kind in ("full", "lora", "qlora")]
    assert totals == sorted(totals, reverse=True)


def test_a_4_bit_base_takes_about_a_third_of_a_16_bit_one() -> None:
    assert need("strategy=ddp", "method=qlora")["weights"] < 0.4 * need("strategy=ddp", "method=lora")["weights"]


def test_checkpointing_trades_activations_for_time() -> None:
    without = need("strategy=zero3", "strategy.activation_checkpointing=false")["activations"]
    assert need("strategy=zero3")["activations"] < 0.2 * without


def test_offload_moves_bytes_from_the_gpu_to_the_machine() -> None:
    config = run("strategy=zero3_offload")
    architecture = find_architecture(config.model)
    assert architecture is not None
    made = estimate(config, architecture, EIGHT_GPUS, Load(8192, 4096))
    assert made.device["weights"] == made.device["optimizer"] == made.device["gradients"] == 0
    assert made.host["offloaded"] == pytest.approx((2 + 12 + 4) * 8_030_261_248)


def test_a_frozen_base_is_not_saved() -> None:
    config = run("strategy=ddp", "method=lora")
    architecture = find_architecture(config.model)
    assert architecture is not None
    assert checkpoint_bytes(config, architecture) == 12 * count_trained(architecture, config.method)


@pytest.mark.parametrize("precision", list(Precision))
def test_more_tokens_need_more_memory_in_every_precision(precision: Precision) -> None:
    config = run("strategy=zero3")
    config = replace(config, strategy=replace(config.strategy, precision=precision))
    architecture = find_architecture(config.model)
    assert architecture is not None
    totals = [estimate(config, architecture, ONE_GPU, Load(n, n)).device_total for n in (1024, 8192, 65536)]
    assert totals == sorted(totals)


def test_a_model_without_shipped_or_local_figures_has_none(tmp_path: Path) -> None:
    assert find_architecture(ModelConfig(name_or_path=str(tmp_path / "nothing"))) is None


@pytest.mark.parametrize(
    ("heads", "shared", "width", "needed", "at_most", "size"),
    [
        pytest.param(32, 8, 14336, 1, 8, 1, id="one is enough"),
        pytest.param(32, 8, 14336, 3, 8, 4, id="the next that divides"),
        pytest.param(40, 8, 27648, 5, 8, 8, id="5 divides the heads, and not their keys"),
        pytest.param(40, 8, 13824, 3, 3, 2, id="the largest where none is enough"),
        pytest.param(64, 8, 29568, 9, 16, 16, id="keys are copied"),
    ],
)
def test_vllm_gets_a_number_of_gpus_that_divides_the_model(
    heads: int, shared: int, width: int, needed: int, at_most: int, size: int
) -> None:
    architecture = ArchitectureConfig(num_heads=heads, num_kv_heads=shared, intermediate_size=width)
    assert tensor_parallel_size(architecture, needed, at_most=at_most) == size
