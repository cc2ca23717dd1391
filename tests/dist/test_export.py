"""What is exported answers as the model that was in memory when training ended, under every strategy and method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from launcher.export.export import export
from launcher.export.hf_weights import ADAPTER_FILE
from launcher.config.frozen import load_config
from launcher.paths import RunPaths
from launcher.config.schema import MethodKind
from launcher.data.template import ChatFormat
from launcher.train.model import add_adapters
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

PROMPTS = torch.arange(60).reshape(3, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = make_data(tmp_path_factory.mktemp("export") / "data")
    ChatFormat.from_folder(model).save(folder)
    return folder


def greedy(model: nn.Module) -> list[list[int]]:
    model.eval()
    with torch.inference_mode():
        output = model.generate(input_ids=PROMPTS, max_new_tokens=24, do_sample=False, eos_token_id=None)  # type: ignore[operator]
    return [list(row) for row in output.tolist()]


def in_memory(run: RunPaths, model: Path, weights: Path) -> nn.Module:
    """The run's own model: its network with the weights that were in memory."""
    config = load_config(run.config).config
    network: nn.Module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if config.method.kind is not MethodKind.full:
        network = add_adapters(network, config.method, seed=5)
    missing, unexpected = network.load_state_dict(load_file(weights), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight", "base_model.model.lm_head.weight"}
    return network


CASES = [
    pytest.param(world_size, strategy, method, id=f"{strategy}-{method}")
    for world_size, strategy in [(1, "single"), (2, "ddp"), (2, "zero2"), (2, "zero3")]
    for method in ("full", "lora", "dora")
    if method != "dora" or strategy in ("single", "ddp")
]


@pytest.mark.parametrize(("world_size", "strategy", "method"), CASES)
def test_the_export_answers_as_the_model_in_memory(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, strategy: str, method: str
) -> None:
    overrides = ["optim.max_steps=4", "optim.lr=3e-2", f"strategy={strategy}", f"method={method}"]
    root = make_run(tmp_path / "run", model, data, *overrides, "checkpoint.rehearse=false", world_size=world_size)
    ranks("train_and_keep_weights", root, tmp_path / "live.safetensors", world_size=world_size)
    expected = greedy(in_memory(RunPaths(root), model, tmp_path / "live.safetensors"))
    assert expected != greedy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))

    info = export(root, tmp_path / "out")
    assert info.step == 4 and info.warnings == []
    loader = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    assert greedy(loader.from_pretrained(tmp_path / "out", dtype=torch.float32)) == expected
    if method != "full":
        export(root, tmp_path / "merged", merge=True)
        assert greedy(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == expected


def test_an_export_of_shards_prints_nothing_of_its_own(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verb's --json document must stand alone on stdout."""
    root = make_run(tmp_path / "run", model, data, "optim.max_steps=1", "strategy=zero3", "checkpoint.rehearse=false")
    ranks("train_and_keep_weights", root, tmp_path / "live.safetensors", world_size=1)
    capsys.readouterr()
    export(root, tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_a_qlora_adapter_is_exported_as_it_was_in_memory(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    """Over the 4-bit base answers differ from those over the base itself, so tensors are compared."""
    overrides = ["optim.max_steps=4", "optim.lr=3e-2", "method=qlora", "checkpoint.rehearse=false"]
    root = make_run(tmp_path / "run", model, data, *overrides)
    ranks("train_and_keep_weights", root, tmp_path / "live.safetensors", world_size=1)
    export(root, tmp_path / "out")
    live = {name: tensor for name, tensor in load_file(tmp_path / "live.safetensors").items() if ".lora_" in name}
    written = load_file(tmp_path / "out" / ADAPTER_FILE)
    assert len(live) == len(written) == 2 * 7 * 2
    assert all(torch.equal(written[name.replace(".default", "")], tensor) for name, tensor in live.items())
    merged = export(root, tmp_path / "merged", merge=True)
    assert "trained over a 4-bit base" in merged.warnings[0]
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert greedy(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == greedy(adapter)
