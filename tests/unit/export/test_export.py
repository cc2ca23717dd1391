"""Exports of whole runs: the folder answers as the run's own model; nothing half-made ever stands under its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.checkpoint.manifest import TrainState
from launcher.config.frozen import load_config
from launcher.config.schema import RunConfig
from launcher.errors import CheckpointError, RunError
from launcher.export import hf_weights
from launcher.export.export import cached_export, export
from launcher.export.source import open_source
from launcher.files import as_json
from launcher.paths import RunPaths
from tests.unit.export import finished_runs

FULL = "method.kind=full"
LORA = ("method.kind=lora", "method.rank=4", "method.alpha=8")


@pytest.fixture
def make_run(tiny_model: Path, tmp_path: Path) -> Callable[..., tuple[RunPaths, RunConfig]]:
    def make(*overrides: str, **data: str) -> tuple[RunPaths, RunConfig]:
        prepared = finished_runs.make_data(tmp_path / "data", tiny_model, **data)
        run = finished_runs.make_run(tmp_path / "runs" / "tiny", tiny_model, prepared, *overrides)
        return run, load_config(run.config).config

    return make


def greedy(model: nn.Module, tokenizer_folder: Path, question: str = "17") -> str:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)  # type: ignore[operator]
    return str(tokenizer.decode(answer[0]))


def test_a_full_export_answers_as_the_model_that_was_trained(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    tuned, weights = finished_runs.trained_model(tiny_model, config)
    finished_runs.add_checkpoint(run, config, weights, 6)
    info = export(run.root, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert greedy(loaded, tmp_path / "out") == greedy(tuned, tmp_path / "out")
    assert greedy(loaded, tmp_path / "out") != greedy(AutoModelForCausalLM.from_pretrained(tiny_model), tiny_model)
    assert (info.step, info.method, info.merged, info.dtype) == (6, "full", False, "float32")
    assert set(info.files) >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "prompt_format.json"}
    assert info.size_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert as_json(info)["path"] == str(tmp_path / "out")


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_an_adapter_export_loads_in_peft_and_merged_in_transformers(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    run, config = make_run(f"method.kind={kind}", *LORA[1:])
    tuned, weights = finished_runs.trained_model(tiny_model, config)
    finished_runs.add_checkpoint(run, config, weights, 6)
    export(run.root, tmp_path / "adapter")
    info = export(run.root, tmp_path / "merged", merge=True)
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = greedy(tuned, tmp_path / "adapter")
    assert greedy(adapter, tmp_path / "adapter") == expected
    assert greedy(merged, tmp_path / "merged") == expected
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (4, 8, kind == "dora")
    assert settings["base_model_name_or_path"] == str(tiny_model)
    assert "q_proj" in settings["target_modules"] and "lm_head" not in settings["target_modules"]
    assert info.merged and any("4-bit" in warning for warning in info.warnings) == (kind == "qlora")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_an_untrained_adapter_is_refused_with_the_reason(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(*LORA)

    def keep_b_zero(name: str, tensor: Tensor) -> None:
        if ".lora_B." in name:
            tensor.zero_()

    _, weights = finished_runs.trained_model(tiny_model, config, change=keep_b_zero)
    finished_runs.add_checkpoint(run, config, weights, 0)
    with pytest.raises(CheckpointError, match=r"14 of 14 adapter modules have lora_B = 0.*step 0: nothing was trained"):
        export(run.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_few_idle_adapter_modules_are_a_warning(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(*LORA)

    def idle_first_layer_query(name: str, tensor: Tensor) -> None:
        if "layers.0.self_attn.q_proj.lora_B" in name:
            tensor.zero_()

    _, weights = finished_runs.trained_model(tiny_model, config, change=idle_first_layer_query)
    finished_runs.add_checkpoint(run, config, weights, 6)
    assert export(run.root, tmp_path / "out", dry_run=True).warnings == [
        "1 of 14 adapter modules are still at their starting value (lora_B = 0)."
    ]


@pytest.mark.parametrize("method", [(FULL,), LORA])
def test_weights_that_are_not_numbers_are_refused(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    run, config = make_run(*method)

    def poison(name: str, tensor: Tensor) -> None:
        if "layers.1.mlp.up_proj" in name:
            tensor[0, 0] = float("nan")

    _, weights = finished_runs.trained_model(tiny_model, config, change=poison)
    finished_runs.add_checkpoint(run, config, weights, 6)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\S*: holds NaN or infinity in float32"):
        export(run.root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_target_with_something_in_it_is_never_overwritten(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    taken = tmp_path / "out"
    taken.mkdir()
    export(run.root, taken)
    before = (taken / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(RunError, match="exists and is not empty"):
        export(run.root, taken)
    assert (taken / "model.safetensors").stat().st_mtime_ns == before


def test_a_failed_export_leaves_nothing_behind(
    make_run: Callable[..., tuple[RunPaths, RunConfig]],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, config = make_run(FULL)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    # The second reading comes after everything was written.
    monkeypatch.setattr(hf_weights, "reread_full", full_disk)
    (tmp_path / "place").mkdir()
    with pytest.raises(OSError, match="No space"):
        export(run.root, tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_a_dry_run_checks_but_writes_nothing(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(*LORA)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    info = export(run.root, tmp_path / "out", merge=True, dry_run=True)
    assert info.dry_run and info.num_tensors > 14
    assert not (tmp_path / "out").exists()


def test_the_step_that_is_asked_for_is_exported(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    _, early = finished_runs.trained_model(tiny_model, config, seed=1)
    _, late = finished_runs.trained_model(tiny_model, config, seed=2)
    finished_runs.add_checkpoint(run, config, early, 3)
    best = TrainState(step=6, last_eval_step=6, last_eval_loss=1.0, best_eval_loss=0.5, best_step=3)
    finished_runs.add_checkpoint(run, config, late, 6, best)
    newest = export(run.root, tmp_path / "newest")
    assert newest.step == 6
    assert newest.warnings == [
        "Validation loss was lowest at step 3 (0.5000; 1.0000 at this step). To use that one: --step 3."
    ]
    assert export(run.root, tmp_path / "third", step=3).step == 3
    with safe_open(tmp_path / "third" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("model.norm.weight"), early["model.norm.weight"])
    with pytest.raises(CheckpointError, match="no checkpoint of step 4"):
        export(run.root, tmp_path / "fourth", step=4)


def test_a_run_without_checkpoints_says_what_to_do(make_run: Callable[..., tuple[RunPaths, RunConfig]]) -> None:
    run, _ = make_run(FULL)
    with pytest.raises(RunError, match=r"no checkpoint yet.*launcher train --run tiny"):
        open_source(run.root)


def test_a_damaged_checkpoint_is_not_exported(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    shard = run.checkpoints / "step-000006" / "model-rank00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0x10
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        export(run.root, tmp_path / "out")


def test_a_checkpoint_that_the_run_did_not_write_is_not_opened(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    run.events.unlink()
    with pytest.raises(CheckpointError, match="was not written by this run"):
        export(run.root, tmp_path / "out")


def test_system_prompt_and_preamble_are_in_the_template_once(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    from launcher.data.template import ChatFormat

    run, config = make_run(FULL, system_prompt="Be {brief}.", preamble="question: ")
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    export(run.root, tmp_path / "out")
    asked = [{"role": "user", "content": "17"}]
    expected = (
        "<|im_start|>system\nBe {brief}.<|im_end|>\n<|im_start|>user\nquestion: 17<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == expected
    assert ChatFormat.from_folder(tmp_path / "out").render(asked, add_generation_prompt=True) == expected


def test_generation_stops_at_the_end_of_turn(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path
) -> None:
    run, config = make_run(FULL)
    base_settings = json.loads((tiny_model / "generation_config.json").read_text())
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    export(run.root, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    end_of_turn = AutoTokenizer.from_pretrained(tiny_model).convert_tokens_to_ids("<|im_end|>")
    assert settings == {**base_settings, "eos_token_id": end_of_turn}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_another_dtype_is_written_where_asked(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path, tmp_path: Path, dtype: str
) -> None:
    run, config = make_run(FULL)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    export(run.root, tmp_path / "out", dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype is {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def test_the_runs_own_export_is_made_once(
    make_run: Callable[..., tuple[RunPaths, RunConfig]], tiny_model: Path
) -> None:
    run, config = make_run(*LORA)
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    source = open_source(run.root)
    folder = cached_export(source, merge=True)
    assert folder == run.export / "step-000006-merged"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert cached_export(source, merge=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert cached_export(source, merge=False) == run.export / "step-000006"
