"""Weight files: what is refused before writing, and that what was written is what transformers and peft load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from launcher.config.schema import MethodConfig, MethodKind
from launcher.errors import CheckpointError
from launcher.export import hf_weights

State = dict[str, Tensor]


def base_state(folder: Path) -> State:
    return {name: tensor.clone() for name, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()}


def trained_adapter(base: Path, method: MethodConfig) -> tuple[PeftModel, State]:
    """A peft model with random, non-zero adapters, and its tensors under peft's names."""
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = hf_weights.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        use_rslora=method.rslora,
        use_dora=method.kind is MethodKind.dora,
        target_modules=method.target_modules[0] if method.target_modules == ["all-linear"] else method.target_modules,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, plain)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return tuned.eval(), {name: tensor.clone() for name, tensor in get_peft_model_state_dict(tuned).items()}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits.float()


def test_whole_and_sound_weights_are_accepted(tiny_model: Path) -> None:
    state = base_state(tiny_model)
    assert hf_weights.full_problems(state, hf_weights.empty_model(tiny_model)) == []


def test_a_tied_head_may_be_left_out_but_not_differ(tiny_model: Path) -> None:
    model = hf_weights.empty_model(tiny_model)
    state = base_state(tiny_model)
    head = state.pop("lm_head.weight")
    assert hf_weights.full_problems(state, model) == []
    state["lm_head.weight"] = head + 1
    assert hf_weights.full_problems(state, model) == [
        "lm_head.weight: differs from model.embed_tokens.weight, but the model ties the two"
    ]


def test_every_wrong_tensor_is_named_at_once(tiny_model: Path) -> None:
    state = base_state(tiny_model)
    del state["model.norm.weight"]
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(0)
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    state["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    problems = hf_weights.full_problems(state, hf_weights.empty_model(tiny_model))
    assert sorted(problems) == [
        "model.layers.0.mlp.up_proj.weight: shape (0,), the base needs (128, 64)",
        "model.layers.1.mlp.up_proj.weight: holds NaN or infinity in float32",
        "model.layers.9.mlp.up_proj.weight: the base model has no such tensor",
        "model.norm.weight: missing",
    ]
    with pytest.raises(CheckpointError, match="nothing was written: 4 tensors are wrong"):
        hf_weights.refuse_problems(problems, "nothing was written")


def test_a_value_too_large_for_fp16_is_found_after_the_cast(tiny_model: Path) -> None:
    state = base_state(tiny_model)
    state["model.norm.weight"][0] = 1e6
    problems = hf_weights.full_problems(hf_weights.cast(state, torch.float16), hf_weights.empty_model(tiny_model))
    assert problems == ["model.norm.weight: holds NaN or infinity in float16"]


@pytest.mark.parametrize("tied", [True, False])
def test_full_weights_load_in_transformers_as_they_were_trained(
    make_tiny_model: object, tmp_path: Path, tied: bool
) -> None:
    base = make_tiny_model(tmp_path / "base", tied_embeddings=tied)  # type: ignore[operator]
    state = {name: tensor + 0.01 for name, tensor in base_state(base).items()}
    if tied:
        del state["lm_head.weight"]
    (tmp_path / "out").mkdir()
    hf_weights.write_full(state, hf_weights.empty_model(base), tmp_path / "out", torch.float32)
    hf_weights.reread_full(tmp_path / "out", state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"]) == tied


def test_large_weights_are_sharded_with_an_index(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_weights, "MAX_SHARD_SIZE", "100KB")
    state = base_state(tiny_model)
    hf_weights.write_full(state, hf_weights.empty_model(tiny_model), tmp_path, torch.float32)
    hf_weights.reread_full(tmp_path, state)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2


def test_a_file_that_changed_on_disk_does_not_pass_the_second_reading(tiny_model: Path, tmp_path: Path) -> None:
    state = base_state(tiny_model)
    hf_weights.write_full(state, hf_weights.empty_model(tiny_model), tmp_path, torch.float32)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not read back as it was written"):
        hf_weights.reread_full(tmp_path, state)


@pytest.mark.parametrize("kind", [MethodKind.lora, MethodKind.dora])
def test_an_adapter_loads_in_peft_with_the_same_answers(tiny_model: Path, tmp_path: Path, kind: MethodKind) -> None:
    method = MethodConfig(kind=kind, rank=4, alpha=8.0)
    tuned, state = trained_adapter(tiny_model, method)
    config = hf_weights.adapter_config(method, state, hf_weights.empty_model(tiny_model), str(tiny_model))
    assert hf_weights.adapter_problems(state, config, hf_weights.empty_model(tiny_model)) == []
    hf_weights.write_adapter(state, config, tmp_path)
    hf_weights.reread_adapter(tmp_path, state)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded), logits(tuned), atol=1e-6)


@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize("kind", [MethodKind.lora, MethodKind.dora, MethodKind.qlora])
def test_merging_gives_the_answers_of_base_and_adapter(tiny_model: Path, kind: MethodKind, rslora: bool) -> None:
    method = MethodConfig(kind=kind, rank=4, alpha=8.0, rslora=rslora)
    tuned, state = trained_adapter(tiny_model, method)
    model = hf_weights.empty_model(tiny_model)
    config = hf_weights.adapter_config(method, state, model, str(tiny_model))
    merged = hf_weights.merged_state(state, config, tiny_model, torch.float32)
    assert hf_weights.full_problems(merged, model) == []
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits(plain)
    plain.load_state_dict(merged)
    assert torch.allclose(logits(plain), logits(tuned), atol=1e-5)
    assert not torch.allclose(logits(plain), before, atol=1e-3)


def test_merging_into_bf16_rounds_each_weight_once(tiny_model: Path) -> None:
    method = MethodConfig(kind=MethodKind.lora, rank=4, alpha=8.0)
    _, state = trained_adapter(tiny_model, method)
    config = hf_weights.adapter_config(method, state, hf_weights.empty_model(tiny_model), str(tiny_model))
    name = "model.layers.1.self_attn.o_proj"
    merged = hf_weights.merged_state(state, config, tiny_model, torch.bfloat16)[f"{name}.weight"]
    base = base_state(tiny_model)[f"{name}.weight"].to(torch.bfloat16).float()
    lora_a, lora_b = (state[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert torch.equal(merged, (base + 2.0 * (lora_b @ lora_a)).to(torch.bfloat16))


def test_adapters_of_some_modules_only_name_just_those(tiny_model: Path) -> None:
    method = MethodConfig(kind=MethodKind.lora, rank=4, target_modules=["layers.0.self_attn.q_proj"])
    _, state = trained_adapter(tiny_model, method)
    config = hf_weights.adapter_config(method, state, hf_weights.empty_model(tiny_model), str(tiny_model))
    assert config.target_modules == {"model.layers.0.self_attn.q_proj"}
    assert hf_weights.adapter_problems(state, config, hf_weights.empty_model(tiny_model)) == []


def test_missing_empty_and_broken_adapter_tensors_are_all_named(tiny_model: Path) -> None:
    method = MethodConfig(kind=MethodKind.lora, rank=4)
    _, state = trained_adapter(tiny_model, method)
    prefix = "base_model.model.model.layers.0.self_attn"
    del state[f"{prefix}.k_proj.lora_B.weight"]
    state[f"{prefix}.q_proj.lora_A.weight"].zero_()
    state[f"{prefix}.v_proj.lora_A.weight"] = torch.zeros(0)
    state[f"{prefix}.o_proj.lora_B.weight"][0, 0] = float("inf")
    config = hf_weights.adapter_config(method, state, hf_weights.empty_model(tiny_model), str(tiny_model))
    problems = hf_weights.adapter_problems(state, config, hf_weights.empty_model(tiny_model))
    assert sorted(problems) == [
        f"{prefix}.k_proj.lora_B.weight: missing",
        f"{prefix}.o_proj.lora_B.weight: holds NaN or infinity in float32",
        f"{prefix}.q_proj.lora_A.weight: empty, all zero",
        f"{prefix}.v_proj.lora_A.weight: empty, all zero",
        f"{prefix}.v_proj.lora_A.weight: shape (0,), the base needs (4, 64)",
    ]


def test_a_checkpoint_without_any_adapter_is_refused(tiny_model: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapter"):
        hf_weights.adapter_config(
            MethodConfig(kind=MethodKind.lora), {}, hf_weights.empty_model(tiny_model), str(tiny_model)
        )
