"""The model card says what somebody who finds the folder needs to know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from launcher.config.frozen import load_config
from launcher.export.example_kind import ExampleKind, example_kind
from launcher.export.export import export
from launcher.export.model_card import base_licence
from tests.unit.evaluate import learned_runs
from tests.unit.evaluate.learned_runs import Record
from tests.unit.export import finished_runs


def exported_card(model: Path, tmp_path: Path, *overrides: str, evaluated: bool = True) -> str:
    data = finished_runs.make_data(tmp_path / "data", model)
    finding = {"severity": "warning", "code": "too_few_examples", "count": 4, "what": "few examples"}
    (data / "audit.json").write_text(json.dumps({"findings": [finding]}))
    run = finished_runs.make_run(tmp_path / "tiny", model, data, *overrides)
    config = load_config(run.config).config
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(model, config)[1], 6)
    finished_runs.add_metrics(run)
    if evaluated:
        scores = {"exact_match": 0.9, "exact_match_ci": [0.8, 0.95], "token_f1": 0.92, "token_f1_ci": [0.85, 0.97]}
        result = {
            "examples": 40,
            "step": 6,
            "conditions": {"tuned": scores},
            "heldout_loss": {"base": 3.0, "tuned": 0.5},
            "verdict": "Tuning helped.",
        }
        run.eval.write_text(json.dumps(result))
    export(run.root, tmp_path / "out")
    return (tmp_path / "out" / "README.md").read_text()


def test_the_header_is_what_the_hub_reads(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    card = exported_card(base, tmp_path, "method.kind=lora", "method.rank=4")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "license": "apache-2.0",
        "base_model": str(base),
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["launcher", "sft", "lora"],
    }
    assert "published under: apache-2.0" in card


def test_the_card_tells_data_settings_losses_results_use_and_limits(tiny_model: Path, tmp_path: Path) -> None:
    card = exported_card(tiny_model, tmp_path)
    assert "| train | 4 | 26 | 26 |" in card
    assert "- warning: 4 x few examples (`too_few_examples`)" in card
    assert "| peak learning rate | 0.001, cosine," in card
    assert "Training loss went from 2.7500 (step 1) to 1.5000 (step 6)." in card
    assert "| 6 | 2.00 | 1.3000 |" in card
    assert "Tuning helped." in card and "| tuned | 90.0 % (80.0 to 95.0) | 92.0 % (85.0 to 97.0) |" in card
    assert "Validation loss: 3.0000 before, 0.5000 after tuning." in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "at most 64 tokens (the base model allows 512 tokens)" in card
    assert "Its licence is not stated" in card
    assert "|  |" not in card.replace("|  | e", "| e")


def test_a_run_that_was_not_evaluated_has_no_results(tiny_model: Path, tmp_path: Path) -> None:
    assert "## Results" not in exported_card(tiny_model, tmp_path, evaluated=False)


def test_the_python_in_the_card_is_python(tiny_model: Path, tmp_path: Path) -> None:
    card = exported_card(tiny_model, tmp_path)
    compile(card.split("```python\n")[1].split("```")[0], "README.md", "exec")


TEXT = [{"text": f"the answer to {n} is ok"} for n in range(20)]
CHAT = [{"prompt": f"question {n}?", "completion": "ok"} for n in range(20)]


@pytest.mark.parametrize(
    ("train", "validation", "kind"),
    [(TEXT, CHAT, ExampleKind.text), (CHAT, TEXT, ExampleKind.chat), (TEXT, TEXT, ExampleKind.text)],
)
def test_the_kind_is_that_of_the_training_examples_and_not_of_the_validation_ones(
    tiny_model: Path, tmp_path: Path, train: list[Record], validation: list[Record], kind: ExampleKind
) -> None:
    _, info = learned_runs.make_run(tmp_path, tiny_model, train=train, validation=validation)
    assert example_kind(info.folder) is kind


def test_conversations_and_plain_text_together_are_called_so_on_the_card(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    for name, records in (("a.jsonl", TEXT), ("b.jsonl", CHAT)):
        learned_runs.write_jsonl(folder / name, records)
    run, info = learned_runs.make_run(tmp_path, tiny_model, f"data.path={folder}", train=[], validation=None)
    assert example_kind(info.folder) is ExampleKind.mixed
    config = load_config(run.config).config
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    export(run.root, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Supervised examples, and plain text that is all learned, from" in card
    assert "It was tuned on plain text as well" in card and "and to go on with texts like its own" in card


def test_a_data_set_without_an_audit_counts_as_conversations(tiny_model: Path, tmp_path: Path) -> None:
    assert example_kind(finished_runs.make_data(tmp_path / "data", tiny_model)) is ExampleKind.chat


def test_a_licence_is_found_in_front_matter_and_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# M\n\nLicense: Apache-2.0. Model by nobody.\n")
    assert base_licence(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text('---\nlicense: "mit"\n---\n')
    assert base_licence(tmp_path) == "mit"
    assert base_licence(tmp_path / "none") is None
