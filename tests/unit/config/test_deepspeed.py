"""The DeepSpeed dict: complete, explicit, and left alone by Accelerate."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest

from launcher.config.compose import compose_config
from launcher.config.deepspeed import deepspeed_config
from launcher.config.topology import Topology
from launcher.errors import LauncherError
from launcher.plan.batch import derive
from tests.made import make_facts

STRATEGIES = ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]


def dict_of(*overrides: str, device: str = "cpu") -> dict[str, object]:
    config = compose_config(["experiment=quickstart", "cluster=slurm", *overrides])
    derived = derive(
        config,
        make_facts(600, pack_tokens=40.0, longest=64),
        Topology(device, 2, config.cluster.nodes),
        run_id="a",
    )
    return deepspeed_config(config, derived)


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_left_to_auto_and_all_is_plain(strategy: str, precision: str, device: str) -> None:
    values = dict_of(f"strategy={strategy}", f"strategy.precision={precision}", device=device)
    assert "auto" not in [value for _, value in leaves(values)]
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_key_accelerate_would_fill_is_there(strategy: str) -> None:
    """The keys of DeepSpeedPlugin's mapping from its own fields and ACCELERATE_* variables to the dict."""
    present = dict(leaves(dict_of(f"strategy={strategy}")))
    assert {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "zero_optimization.stage",
        "zero_optimization.offload_optimizer.device",
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_param.device",
        "zero_optimization.offload_param.nvme_path",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_allow_untested_optimizer",
        "communication_data_type",
        "bf16.enabled",
        "fp16.enabled",
    } <= set(present)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accelerates_plugin_changes_nothing_but_how_often_it_prints(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import DeepSpeedPlugin

    hostile = {
        "GRADIENT_CLIPPING": "7.0",
        "GRADIENT_ACCUMULATION_STEPS": "13",
        "DEEPSPEED_ZERO_STAGE": "1",
        "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme",
        "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme",
        "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    values = dict_of(f"strategy={strategy}")
    after = copy.deepcopy(DeepSpeedPlugin(hf_ds_config=copy.deepcopy(values)).deepspeed_config)
    values.pop("steps_per_print"), after.pop("steps_per_print")
    assert after == values


def test_the_batch_product_is_what_deepspeed_asks_for() -> None:
    values = dict_of("strategy=zero2", "batch.micro_sequences=2", "batch.global_sequences=16")
    assert values["gradient_accumulation_steps"] == 4
    assert values["train_batch_size"] == 2 * 4 * 1
    assert values["train_micro_batch_size_per_gpu"] == 1


def test_clipping_is_as_set_even_when_off() -> None:
    assert dict_of("strategy=zero2", "optim.grad_clip=0.5")["gradient_clipping"] == 0.5
    assert dict_of("strategy=zero2", "optim.grad_clip=0")["gradient_clipping"] == 0.0


@pytest.mark.parametrize(("precision", "on"), [("fp32", ()), ("bf16", ("bf16",)), ("fp16", ("fp16",))])
def test_one_precision_is_on_and_the_others_are_off(precision: str, on: tuple[str, ...]) -> None:
    values = dict(leaves(dict_of("strategy=zero2", f"strategy.precision={precision}")))
    assert tuple(name for name in ("bf16", "fp16") if values[f"{name}.enabled"]) == on


def test_offload_is_named_for_both() -> None:
    values = dict(leaves(dict_of("strategy=zero3_offload", device="cuda")))
    assert values["zero_optimization.offload_optimizer.device"] == "cpu"
    assert values["zero_optimization.offload_param.device"] == "cpu"
    assert values["zero_optimization.offload_param.pin_memory"] is True


@pytest.mark.parametrize("strategy", ["zero3", "zero3_offload"])
def test_accelerate_may_not_exchange_our_optimizer_for_one_with_default_settings(strategy: str) -> None:
    assert dict_of(f"strategy={strategy}")["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_strategy_without_deepspeed_has_no_dict(strategy: str) -> None:
    with pytest.raises(LauncherError, match="does not use DeepSpeed"):
        dict_of(f"strategy={strategy}", "cluster.devices_per_node=1")
