"""Composing: groups, values, and everything that is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from launcher.config.build import leaf_types
from launcher.config.compose import compose_config, compose_with_problems, group_options
from launcher.config.foreign_settings import answer, foreign_names
from launcher.config.schema import MethodKind, Precision, RunConfig, StrategyKind
from launcher.config.shipped_files import share_dir
from launcher.errors import ConfigErrors, Problem

DATA = "data=next_number"


def problems_of(*overrides: str) -> list[Problem]:
    with pytest.raises(ConfigErrors) as caught:
        compose_config([DATA, *overrides])
    return caught.value.problems


def test_the_quickstart_composes_to_typed_values() -> None:
    config = compose_config(["experiment=quickstart"])
    assert isinstance(config, RunConfig)
    assert config.method.kind is MethodKind.full
    assert config.strategy.precision is Precision.bf16
    assert config.data.path == "builtin:next_number"
    assert config.experiment_name == "quickstart"


def test_what_is_typed_wins_over_the_experiment() -> None:
    config = compose_config(["experiment=quickstart", "method=lora", "batch.global_sequences=4", "optim.lr=2e-4"])
    assert config.method.kind is MethodKind.lora
    assert config.batch.global_sequences == 4
    assert config.optim.lr == 2e-4


def test_a_group_that_is_typed_wins_over_the_values_of_the_experiment() -> None:
    config = compose_config(["experiment=quickstart", "batch=tokens"])
    assert (config.batch.global_sequences, config.batch.global_tokens) == (None, 65536)
    moved = compose_config(["experiment=llama3_70b_full_zero3_8nodes", "data=next_number", "cluster=one_node_8gpu"])
    assert moved.cluster.nodes == 1
    assert moved.checkpoint.keep_last == 1  # what no typed group names stays as the experiment says


def test_a_whole_number_is_a_number_but_not_the_other_way_round() -> None:
    assert compose_config([DATA, "optim.epochs=2"]).optim.epochs == 2.0
    assert [problem.key for problem in problems_of("seed=1.5")] == ["seed"]


@pytest.mark.parametrize("commit", ["0012345", "12e3456", "1234567", "null0"])
def test_a_commit_that_looks_like_a_number_stays_text(commit: str) -> None:
    assert compose_config([DATA, "model=llama3_1_8b", f"model.revision={commit}"]).model.revision == commit


@pytest.mark.parametrize(
    "text", ["Answer briefly.", "Gr\u00f6\u00dfe = 1 (m): 100%", "a: b; c", "say 'hi'", "[INST] {x}", "true", "1e5"]
)
def test_text_settings_take_what_was_typed(text: str) -> None:
    assert compose_config([DATA, f"data.system_prompt={text}"]).data.system_prompt == text


def test_quotes_protect_a_comma_in_text() -> None:
    assert compose_config([DATA, "data.system_prompt='One, two'"]).data.system_prompt == "One, two"


def test_null_takes_an_optional_value_away() -> None:
    config = compose_config([DATA, "batch.global_sequences=null", "batch.global_tokens=4096"])
    assert config.batch.global_sequences is None


def test_a_mapping_for_a_section_is_merged_into_it() -> None:
    config = compose_config([DATA, "model.architecture={head_dim: 64}"])
    assert (config.model.architecture.head_dim, config.model.architecture.hidden_size) == (64, 576)


def test_examples_can_be_given_inline() -> None:
    config = compose_config(["data.inline=[{prompt: one, completion: '2, or two'}]"])
    assert config.data.inline == [{"prompt": "one", "completion": "2, or two"}]


def test_a_mixture_is_typed_item_by_item(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    found = problems_of("data.path=null", f"data.mixture=[{{path: '{path}'}}, {{weight: 2}}, {{path: x, wieght: 1}}]")
    assert {"data.mixture[1].path", "data.mixture[2].wieght"} <= {problem.key for problem in found}


def test_naming_another_model_drops_the_figures_of_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = compose_config([DATA, f"model.name_or_path={tmp_path}"])
    assert config.model.architecture.hidden_size == 0
    kept = compose_config([DATA, f"model.name_or_path={tmp_path}", "model.architecture.num_layers=30"])
    assert kept.model.architecture.hidden_size == 576


def test_all_problems_come_at_once_with_key_value_and_advice() -> None:
    found = problems_of(
        "optim.lrr=1e-4",
        "model=llama3_1_8x",
        "seed=abc",
        "strategy.kind=zero4",
        "strategy.offload_params=true",
        "optim.early_stopping_patience=-1",
        "name=../../etc",
    )
    text = {problem.key: str(problem) for problem in found}
    assert set(text) == {
        "optim.lrr",
        "model",
        "seed",
        "strategy.kind",
        "strategy.offload_params",
        "optim.early_stopping_patience",
        "name",
    }
    assert "Did you mean optim.lr?" in text["optim.lrr"]
    assert "Did you mean llama3_1_8b?" in text["model"]
    assert "'abc'" in text["seed"] and "whole number" in text["seed"]
    assert "single, ddp, zero1, zero2, zero3" in text["strategy.kind"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=1", "optim.lr"),
        ("epochs=1", "optim.epochs"),
        ("learning.lr=1", "optim.lr"),
        ("modle=x", "model"),
        ("batch.micro_sequence=1", "batch.micro_sequences"),
        ("data.seq_len=1", "data.seq_len_tokens"),
        ("optim.warmup_step=1", "optim.warmup_steps"),
        ("model.architecture.hidden=1", "model.architecture.hidden_size"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(typed: str, meant: str) -> None:
    (problem,) = problems_of(typed)
    assert f"Did you mean {meant}?" in problem.hint


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optim.learning_rate=1e-4", "optim.lr"),
        ("learning_rate=1e-4", "optim.lr"),
        ("optim.leraning_rate=1e-4", "optim.lr"),
        ("--learning-rate=1e-4", "optim.lr"),
        ("num_train_epochs=3", "optim.epochs"),
        ("hyperparameters.n_epochs=3", "optim.epochs"),
        ("learning_rate_multiplier=1", "optim.lr_multiplier"),
        ("warmup_ratio=0.1", "optim.warmup_ratio"),
        ("weight_decay=0.1", "optim.weight_decay"),
        ("optim.batch_size=8", "batch.global_sequences"),
        ("data.max_length=512", "data.seq_len_tokens"),
        ("max_seq_length=512", "data.seq_len_tokens"),
        ("packing=true", "data.packing"),
        ("train_file=x", "data.path"),
        ("model_name_or_path=x", "model.name_or_path"),
        ("method.r=8", "method.rank"),
        ("lora.r=8", "method.rank"),
        ("lora_r=8", "method.rank"),
        ("lora_alpha=8", "method.alpha"),
        ("strategy.bf16=true", "strategy.precision"),
        ("bf16.enabled=true", "strategy.precision"),
        ("fp16=true", "strategy.precision"),
        ("gradient_checkpointing=true", "strategy.activation_checkpointing"),
        ("save_steps=5", "checkpoint.save_every_steps"),
        ("checkpoint.eval_steps=5", "track.eval_every_steps"),
        ("report_to=wandb", "track.wandb"),
        ("output_dir=x", "runs_dir"),
        ("trainer.devices=8", "cluster.devices_per_node"),
        ("train.seed=1", "seed"),
        ("load_in_4bit=true", "method=qlora"),
    ],
)
def test_a_name_from_another_program_is_answered_with_ours(typed: str, meant: str) -> None:
    (problem,) = problems_of(typed)
    assert problem.hint == f"Did you mean {meant}?"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("batch.gradient_accumulation_steps=4", "is derived: give batch.global_sequences"),
        ("per_device_train_batch_size=4", "batch.micro_sequences"),
        ("strategy.zero_stage=3", "strategy=zero3"),
        ("deepspeed=ds.json", "strategy=zero3"),
        ("logging_steps=10", "Every step is logged"),
        ("optim.min_lr=1e-6", "Give it as a fraction of the peak: optim.min_lr_ratio"),
        ("min_learning_rate=1e-6", "Give it as a fraction of the peak: optim.min_lr_ratio"),
        ("batch.tokens=4096", "Give batch.global_tokens"),
        ("data.mixture[0].name=x", "Give the whole list: data.mixture="),
    ],
)
def test_what_has_no_single_counterpart_is_explained(typed: str, told: str) -> None:
    (problem,) = problems_of(typed)
    assert told in problem.hint


@pytest.mark.parametrize(
    ("field", "told"), [("name: x", "Choose from: path, "), ("wieght: 2", "Did you mean data.mixture[0].weight?")]
)
def test_a_field_of_a_part_is_compared_with_those_of_a_part(field: str, told: str) -> None:
    problems = problems_of("data.path=null", f"data.mixture=[{{path: builtin:next_number, {field}}}]")
    assert [problem.hint.startswith(told) for problem in problems] == [True]


@pytest.mark.parametrize(
    "typed", ["foo.bar=1", "optim.x=1", "optim.momentum=1", "model.tokenizer=x", "track.wandb.x=1", "model.type=x"]
)
def test_a_key_like_no_other_gets_no_suggestion(typed: str) -> None:
    (problem,) = problems_of(typed)
    assert problem.hint == "`launcher check --cfg` lists every setting"


def test_every_answer_to_a_foreign_name_leads_to_something_that_exists() -> None:
    keys = [key for key, _ in leaf_types(RunConfig)]
    for name in foreign_names():
        assert name == "seed" or name not in keys
        for word in re.findall(r"[a-z_]+[.=][a-z0-9_]+|(?<=mean )[a-z_]+(?=\?)", answer(name)):
            group, is_option, option = word.partition("=")
            assert option in group_options(group, [share_dir("conf")]) if is_option else word in keys, (name, word)


HOSTILE = [
    # Hydra itself
    "hydra.run.dir=/tmp/x",
    "hydra/launcher=submitit",
    "hydra.searchpath=[file:///tmp]",
    "hydra.searchpath=[pkg://os]",
    "hydra=x",
    "+hydra.job.chdir=true",
    "hydra@x=y",
    # code
    "_target_=os.system",
    "model._target_=os.system",
    "+model._target_=os.system",
    "++optim._target_=torch.optim.Adam",
    "data.inline=[{_target_: os.system}]",
    "model.architecture={_target_: os.system}",
    # interpolation and resolvers
    "name=${oc.env:HOME}",
    "name=${oc.env:WANDB_API_KEY}",
    "seed=${seed}",
    "data.system_prompt='${oc.decode:x}'",
    "data.inline=[{prompt: '${oc.env:HF_TOKEN}'}]",
    "data.path=${hydra:runtime.cwd}/x",
    "model=${model}",
    # additions, deletions, packages
    "+model.extra=1",
    "++optim.lr=1e-3",
    "~optim.lr",
    "~model",
    "~data=next_number",
    "+experiment=quickstart",
    "model@optim=smollm2_135m",
    "optim@_global_=default",
    # forms
    "",
    "=",
    "=1",
    "seed",
    "--seed=1",
    "seed =",
    "optim.lr",
    "optim..lr=1",
    ".optim.lr=1",
    "optim.=1",
    "optim.lr.x=1",
    "optim[lr]=1",
    "data.mixture.0.path=x",
    "data.mixture[0].path=x",
    "optim/lr=1",
    # groups
    "model=nope",
    "model=../../etc/passwd",
    "model=/etc/passwd",
    "model=",
    "model=null",
    "model=[smollm2_135m]",
    "model={name_or_path: x}",
    "model=smollm2_135m,mistral_7b",
    "experiment=nope",
    "experiment=[quickstart]",
    # types
    "seed=true",
    "seed='1'",
    "seed=[1]",
    "seed={a: 1}",
    "seed=null",
    "seed=???",
    "seed=1,2",
    "seed=range(1,3)",
    "seed=choice(1,2)",
    "seed=glob(*)",
    "seed=1e400",
    "optim.lr=nan",
    "optim.lr=inf",
    "optim.lr=-inf",
    "optim.lr=1e999",
    "optim.lr='1e-4'",
    "optim.lr=fast",
    "optim.epochs=999999999999999999999999999999999999999999999999999" + "9" * 400,
    "strategy.compile=1",
    "strategy.compile=yes",
    "strategy.compile=None",
    "strategy.kind=Zero3",
    "strategy.kind=StrategyKind.zero3",
    "strategy.kind=4",
    "track.tags=a",
    "track.tags=[1]",
    "track.tags={a: 1}",
    "data.inline={a: 1}",
    "data.inline=[1]",
    "data.inline=[{1: 2}]",
    "data.mixture=[x]",
    "method.target_modules=q_proj",
    "model.architecture=5",
    "runs_dir=null",
    "name=a/b",
    "name=..",
    "name=-rf",
    "name=",
    "name=a\nb",
]


@pytest.mark.parametrize("override", HOSTILE)
def test_a_hostile_override_is_a_reported_problem(override: str) -> None:
    config, problems = compose_with_problems([DATA, override])
    assert problems
    assert all(str(problem) for problem in problems)
    assert isinstance(config, RunConfig)


def test_a_key_given_twice_is_refused() -> None:
    assert "twice" in problems_of("seed=1", "seed=2")[0].why
    assert "twice" in problems_of("method=lora", "method=full")[0].why


def test_a_value_that_would_overrule_another_typed_one_is_refused() -> None:
    assert [problem.key for problem in problems_of("optim.max_steps=3", "optim.epochs=2")] == ["optim.epochs"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method=full", "method.rank=64"], "method.rank"),
        (["method.alpha=64"], "method.alpha"),
        (["method.target_modules=[q_proj]"], "method.target_modules"),
        (["method=lora", "method.double_quantization=false"], "method.double_quantization"),
        (["optim.schedule=constant", "optim.min_lr_ratio=0.5"], "optim.min_lr_ratio"),
        (["optim.decay_ratio=0.1"], "optim.decay_ratio"),
        (["optim.early_stopping_min_delta=0.1"], "optim.early_stopping_min_delta"),
        (["optim.warmup_steps=3", "optim.warmup_ratio=0.1"], "optim.warmup_ratio"),
        (["batch.micro_sequences=1", "batch.micro_tokens=512"], "batch.micro_tokens"),
        (["data.hub_split=test"], "data.hub_split"),
        (["data.validation_fraction=0.1"], "data.validation_fraction"),
        (["data.path=null", "data.mixture=[{path: builtin:next_number}]", "data.format=messages"], "data.format"),
        (["model.revision=abc"], "model.revision"),
        (["cluster.partition=gpu"], "cluster.partition"),
        (["cluster=slurm", "strategy=ddp", "cluster.container_image=x.sif"], "cluster.container_image"),
        (["cluster.tokens_per_s_per_device=9", "cluster.device_tflops=9"], "cluster.device_tflops"),
    ],
)
def test_a_typed_value_that_would_do_nothing_is_refused(overrides: list[str], key: str) -> None:
    (problem,) = problems_of(*overrides)
    assert problem.key == key and problem.hint


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=lora", "method.rank=64", "method.target_modules=[q_proj]"],
        ["method=qlora", "method.double_quantization=false"],
        ["optim=wsd", "optim.decay_ratio=0.1", "optim.min_lr_ratio=0.1"],
        ["optim=constant", "optim.warmup_steps=3"],
        ["optim.early_stopping_patience=2", "optim.early_stopping_min_delta=0.1"],
        ["data.validation_fraction=0", "method.dropout=0.0", "cluster.exclusive=false"],
        ["cluster.container=none", "cluster.prepare=auto", "cluster.gpu_request=gpus_per_node"],
        ["cluster=slurm", "strategy=ddp", "cluster.partition=gpu"],
        ["optim.max_steps=null", "optim.epochs=2"],
    ],
)
def test_a_typed_value_that_counts_or_switches_nothing_passes(overrides: list[str]) -> None:
    compose_config([DATA, *overrides])


def test_a_value_typed_against_a_recipe_that_decides_otherwise_is_refused(tmp_path: Path) -> None:
    own = own_conf(tmp_path, "experiment/mine.yaml", "# @package _global_\noptim:\n  max_steps: 5\n  epochs: 2.0\n")
    assert compose_config([DATA, "experiment=mine"], extra_dir=own).optim.max_steps == 5
    _, problems = compose_with_problems([DATA, "experiment=mine", "optim.epochs=3"], extra_dir=own)
    assert [(problem.key, problem.hint) for problem in problems] == [
        ("optim.epochs", "Give optim.max_steps=null, or leave it out")
    ]


def test_a_programs_own_hydra_is_left_as_it_was() -> None:
    with initialize_config_dir(str(share_dir("conf")), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose_config([DATA])
        assert GlobalHydra.instance().hydra is before
        compose("config")
    compose_config([DATA])
    assert not GlobalHydra.instance().is_initialized()


def test_composing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose_config([DATA])
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def own_conf(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_options_of_an_own_folder_are_offered_beside_the_shipped_ones(tmp_path: Path) -> None:
    own = own_conf(
        tmp_path / "my conf",
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /strategy: zero2\nseed: 7\n",
    )
    config = compose_config([DATA, "experiment=mine"], extra_dir=own)
    assert (config.seed, config.strategy.kind) == (7, StrategyKind.zero2)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("lrr: 1\n", "optim.lrr"),
        ("lr: high\n", "optim.lr"),
        ("lr: ${oc.env:HOME}\n", "optim.lr"),
        ("_target_: os.system\n", "optim._target_"),
        ("schedule: cosin\n", "optim.schedule"),
    ],
)
def test_mistakes_in_an_own_file_are_reported_by_key(tmp_path: Path, text: str, key: str) -> None:
    own = own_conf(tmp_path, "optim/mine.yaml", text)
    with pytest.raises(ConfigErrors) as caught:
        compose_config([DATA, "optim=mine"], extra_dir=own)
    assert key in [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize("text", ["a: [1\n", "defaults:\n  - nothing: here\n", "\tx: 1\n"])
def test_an_own_file_that_cannot_be_composed_is_a_problem(tmp_path: Path, text: str) -> None:
    own = own_conf(tmp_path, "optim/mine.yaml", text)
    with pytest.raises(ConfigErrors, match="cannot be composed"):
        compose_config([DATA, "optim=mine"], extra_dir=own)


def test_a_missing_value_says_how_to_give_it() -> None:
    (problem,) = problems_of("model=from_path")
    assert (problem.key, problem.hint) == ("model.name_or_path", "Add model.name_or_path=VALUE")


def test_a_folder_of_options_that_is_not_there_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    _, problems = compose_with_problems(["data=next_number", "optim.epoch=3"], extra_dir=tmp_path / "gone")
    assert {problem.key for problem in problems} == {"--conf-dir", "optim.epoch"}
