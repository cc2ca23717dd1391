"""Rules of fields and across sections: each names its key, and only the broken one speaks."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from launcher.config.build import field_limits, leaf_types, setting
from launcher.config.checks import config_problems
from launcher.config.compose import compose_config, compose_with_problems
from launcher.config.devices import Gpu
from launcher.config.path_checks import machine_problems
from launcher.config.schema import RunConfig

BASE = ["experiment=quickstart"]


def keys(*overrides: str) -> list[str]:
    return [problem.key for problem in compose_with_problems([*BASE, *overrides])[1]]


def test_the_shipped_defaults_break_no_rule() -> None:
    assert config_problems(compose_config(BASE)) == []


NUMBERS = [
    key
    for key, hint in leaf_types(RunConfig)
    if hint in (int, float, int | None, float | None) and not key.startswith("model.architecture.")
]


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_of_the_schema_has_limits_and_its_default_is_within_them(key: str) -> None:
    section, _, name = key.rpartition(".")
    limits = field_limits((setting(RunConfig(), section) if section else RunConfig()).__class__)[name]  # type: ignore[arg-type]
    value = setting(RunConfig(), key)
    assert value is None or limits.complaint(float(value)) == ""  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quickstart() -> RunConfig:
    return compose_config(BASE)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_out_of_its_range_is_refused(key: str, quickstart: RunConfig) -> None:
    config = copy.deepcopy(quickstart)
    section, _, name = key.rpartition(".")
    setattr(setting(config, section) if section else config, name, -1)
    assert key in [problem.key for problem in config_problems(config)]


@pytest.mark.parametrize(
    ("overrides", "broken"),
    [
        (["strategy.offload_optimizer=true"], "strategy.offload_optimizer"),
        (["strategy=zero2", "strategy.offload_params=true"], "strategy.offload_params"),
        (["method=qlora", "strategy=zero3"], "method.kind"),
        (["cluster.nodes=2"], "strategy.kind"),
        (["cluster.devices_per_node=2"], "strategy.kind"),
        (["cluster.device=cpu", "strategy.precision=fp16"], "strategy.precision"),
        (["cluster.device=cpu", "model.attention=varlen"], "model.attention"),
        (["cluster.device=cuda", "strategy.precision=fp32", "model.attention=varlen"], "model.attention"),
        (["batch.global_tokens=4096"], "batch.global_tokens"),
        (["batch.global_sequences=null"], "batch.global_sequences"),
        (["batch.micro_sequences=17"], "batch.micro_sequences"),
        (["optim.max_steps=5", "optim.warmup_steps=6"], "optim.warmup_steps"),
        (["optim=wsd", "optim.warmup_ratio=0.5", "optim.decay_ratio=0.6"], "optim.decay_ratio"),
        (["optim.lr=2"], "optim.lr"),
        (["optim.lr=0"], "optim.lr"),
        (["optim.min_lr_ratio=1.5"], "optim.min_lr_ratio"),
        (["strategy=zero3", "strategy.compile=true"], "strategy.compile"),
        (["strategy=zero2_offload", "strategy.compile=true"], "strategy.compile"),
        (["method=lora", "method.target_modules=[]"], "method.target_modules"),
        (["method=lora", "method.target_modules=[all-linear,q_proj]"], "method.target_modules"),
        (["data.seq_len_tokens=8193"], "data.seq_len_tokens"),
        (["data.path=null"], "data.path"),
        (["data.inline=[{prompt: a, completion: b}]"], "data.path"),
        (["data.path=builtin:next_numbers"], "data.path"),
        (["data.path=hub:a/b/c"], "data.path"),
        (["data.path=nothing.jsonl"], "data.path"),
        (["data.validation_path=nothing.jsonl"], "data.validation_path"),
        (["data.chat_template=nothing.jinja"], "data.chat_template"),
        (["data.hub_revision=abc"], "data.hub_revision"),
        (["data.allow=[Not A Code]"], "data.allow"),
        (["model.name_or_path=embedded:smollm"], "model.name_or_path"),
        (["model.name_or_path=./nothing"], "model.name_or_path"),
        (["model.architecture.num_kv_heads=2"], "model.architecture.num_kv_heads"),
        (["model.architecture.num_heads=10", "model.architecture.num_kv_heads=5"], "model.architecture.num_heads"),
        (["model.architecture.vocab_size=0"], "model.architecture.vocab_size"),
        (["track.wandb=online"], "track.wandb"),
        (["track.wandb_project=a/b"], "track.wandb_project"),
        (["track.tags=['']"], "track.tags"),
        (["cluster=slurm", "strategy=ddp", "cluster.devices_per_node=null"], "cluster.devices_per_node"),
        (["name=.hidden"], "name"),
        (["name=a b"], "name"),
        (["experiment_name=../x"], "experiment_name"),
    ],
)
def test_a_contradiction_names_the_key_to_change(overrides: list[str], broken: str) -> None:
    assert keys(*overrides) == [broken]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=zero3_offload", "method=lora"],
        ["strategy=zero2", "method=qlora"],
        ["strategy=zero1", "strategy.offload_optimizer=true"],
        ["optim.early_stopping_patience=2", "track.eval_every_steps=10"],
        ["batch=tokens", "batch.global_sequences=null"],
        ["optim.max_steps=5"],
        ["cluster=slurm", "strategy=zero3", "cluster.nodes=4"],
        ["strategy.compile=true", "strategy=zero1"],
        ["track=offline", "name=run.1_a-b"],
    ],
)
def test_settings_that_fit_together_pass(overrides: list[str]) -> None:
    assert keys(*overrides) == []


def test_what_needs_held_out_examples_is_refused_without_any(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("{}\n")
    data = [f"data.path={path}", "optim.early_stopping_patience=2", "track.eval_every_steps=5"]
    assert keys(*data) == ["optim.early_stopping_patience", "track.eval_every_steps"]
    assert keys(*data, "data.validation_fraction=0.1") == []
    assert keys(*data, "data.validation_fraction=0.1", f"data.validation_path={path}") == ["data.validation_path"]


def test_a_misspelt_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    (problem,) = compose_with_problems([*BASE, f"data.path={tmp_path}/trian.jsonl"])[1]
    assert f"Did you mean {tmp_path}/train.jsonl?" in problem.hint


def test_a_runs_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert keys(f"runs_dir={tmp_path}/runs") == ["runs_dir"]
    assert keys(f"runs_dir={tmp_path}/runs/deeper") == ["runs_dir"]
    assert keys(f"runs_dir={tmp_path}/new/deeper") == []


def test_the_length_limit_is_read_from_a_local_model_too(tmp_path: Path) -> None:
    architecture = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    architecture |= {"vocab_size": 8, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    assert keys(f"model.name_or_path={tmp_path}", "data.seq_len_tokens=65") == ["data.seq_len_tokens"]


def test_the_missing_wandb_key_is_named_with_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = compose_with_problems([*BASE, "track.wandb=online"])[1]
    assert "WANDB_API_KEY" in problem.hint and "https://wandb.ai/authorize" in problem.hint
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert keys("track.wandb=online") == []


def machine_keys(*overrides: str, gpus: list[Gpu]) -> list[str]:
    return [problem.key for problem in machine_problems(compose_config([*BASE, *overrides]), gpus)]


def test_a_machine_without_gpus_cannot_run_what_asks_for_them() -> None:
    assert machine_keys("cluster=one_gpu_80gb", gpus=[]) == ["cluster.device"]
    assert machine_keys("cluster=one_gpu_80gb", gpus=[Gpu("H100", 79.6)]) == []


def test_a_machine_with_fewer_or_smaller_gpus_says_so() -> None:
    two_small = [Gpu("L4", 22.5)] * 2
    asked = ["cluster=one_gpu_80gb", "cluster.devices_per_node=4", "strategy=ddp"]
    assert machine_keys(*asked, gpus=two_small) == ["cluster.devices_per_node", "cluster.gpu_memory_gib"]


@pytest.mark.parametrize("memory_gib", [14.75, 22.5, 39.4, 79.6, 139.8])
def test_a_default_is_compared_with_no_gpu(memory_gib: float) -> None:
    assert machine_keys(gpus=[Gpu("T4 to H200", memory_gib)]) == []


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([], ["strategy.precision"]),
        (["cluster.device=cuda", "strategy.precision=fp16"], []),
        (["cluster.device=cuda", "model.attention=varlen"], ["strategy.precision", "model.attention"]),
        (["cluster.device=cpu"], []),
    ],
)
def test_what_a_gpu_before_ampere_cannot_compute_is_named(overrides: list[str], keys: list[str]) -> None:
    assert machine_keys(*overrides, gpus=[Gpu("Tesla T4", 15.0, (7, 5))]) == keys
    assert machine_keys(*overrides, gpus=[Gpu("L4", 22.5, (8, 9))]) == []


def test_a_job_is_not_judged_by_the_machine_it_is_submitted_from() -> None:
    assert machine_keys("cluster=slurm", "strategy=zero3", "method=lora", gpus=[]) == []


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else name)
    (problem,) = machine_problems(compose_config([*BASE, "method=qlora"]), [])
    assert (problem.key, problem.value) == ("method.kind", "qlora")
    assert "tunelaunch[qlora]" in problem.hint
