"""Runs on real prepared data, with a tiny model that has really learnt to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from launcher.config.compose import compose_config
from launcher.config.frozen import load_config
from launcher.data.prepare import PreparedInfo, prepare
from launcher.data.prepared import Prepared
from launcher.paths import RunPaths
from tests.unit.export import finished_runs

Record = Mapping[str, object]


def pairs(count: int, start: int = 0, answer: str = "ok") -> list[Record]:
    """Questions that differ, with one and the same answer: what a tiny model learns in a second."""
    return [{"prompt": f"question {n * 37 % 1009}?", "completion": answer} for n in range(start, start + count)]


def write_jsonl(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_run(
    folder: Path, model: Path, *overrides: str, train: Sequence[Record], validation: Sequence[Record] | None
) -> tuple[RunPaths, PreparedInfo]:
    """A run without checkpoints over data prepared from two JSONL files in `folder`, or from a data.path of its own."""
    data = ["data.seq_len_tokens=128"]
    if not any(override.startswith("data.path=") for override in overrides):
        data.append(f"data.path={write_jsonl(folder / 'train.jsonl', train)}")
    if validation is not None:
        data.append(f"data.validation_path={write_jsonl(folder / 'heldout.jsonl', validation)}")
    data += ["data.num_workers=1", "data.allow=[too_few_examples,train_validation_overlap]"]
    config = compose_config([f"model.name_or_path={model}", *data, *overrides])
    info = prepare(config, model)
    return finished_runs.make_run(folder / "runs" / "tiny", model, info.folder, *data, *overrides), info


def add_learned_checkpoint(run: RunPaths, model: Path, *, steps: int = 60) -> None:
    """Trains all weights on the run's own training examples, and commits them."""
    frozen = load_config(run.config)
    assert frozen.derived is not None
    weights = _learn(model, Prepared.open(Path(frozen.derived.data_dir), "train"), steps)
    finished_runs.add_checkpoint(run, frozen.config, weights, steps)


def _learn(model: Path, split: Prepared, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(steps):
        rows = [(step * 8 + i) % split.num_examples for i in range(8)]
        loss = torch.stack([example_loss(network, split, row) for row in rows]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def example_loss(network: torch.nn.Module, split: Prepared, row: int) -> Tensor:
    """Mean loss over the labels of one prepared example."""
    ids = torch.tensor(split.tokens(row).astype("int64"))
    wanted = torch.tensor(split.mask(row).copy())[1:]
    return cross_entropy(network(input_ids=ids[None]).logits[0, :-1][wanted], ids[1:][wanted])
