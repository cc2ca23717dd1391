"""Full tensors out of a checkpoint, and nothing out of a damaged one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher.checkpoint.consolidate import full_state, hugging_face_name
from launcher.checkpoint.manifest import MANIFEST, seal_file
from launcher.checkpoint.shards import write_replicated
from launcher.errors import CheckpointError
from tests.unit.checkpoint.made_checkpoints import damage_file, make_manifest


@pytest.mark.parametrize(
    ("in_training", "saved"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.lm_head.weight", "lm_head.weight"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        ),
        (
            "module.base_model.model.x.lora_magnitude_vector.default.weight",
            "base_model.model.x.lora_magnitude_vector",
        ),
    ],
)
def test_names_are_those_of_the_saved_model(in_training: str, saved: str) -> None:
    assert hugging_face_name(in_training) == saved


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two ranks' files under a manifest."""
    named = {f"module.w{i}": nn.Parameter(torch.full((i + 1,), float(i))) for i in range(5)}
    optimizer = torch.optim.AdamW(named.values())
    files = [
        seal_file(tmp_path, path)
        for rank in (0, 1)
        for path in write_replicated(tmp_path, named=named, optimizer=optimizer, rank=rank, world_size=2)
    ]
    (tmp_path / MANIFEST).write_text(make_manifest(1, files).to_json())
    return tmp_path


def test_the_tensors_of_all_ranks_come_together(checkpoint: Path) -> None:
    state = full_state(checkpoint)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        f"w{i}": [float(i)] * (i + 1) for i in range(5)
    }


@pytest.mark.parametrize("name", ["model-rank00001.safetensors", "optimizer-rank00000.safetensors"])
def test_a_damaged_file_is_refused(checkpoint: Path, name: str) -> None:
    damage_file(checkpoint / name)
    with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
        full_state(checkpoint)


def test_a_missing_rank_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model-rank00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-rank00001\.safetensors: missing"):
        full_state(checkpoint)


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_no_pickle_runs_before_the_hashes_are_right(tmp_path: Path) -> None:
    folder, marker = tmp_path / "checkpoint", tmp_path / "marker"
    (folder / "zero").mkdir(parents=True)
    shards = [
        folder / "zero" / name for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    ]
    for shard in shards:
        shard.write_bytes(b"good")
    files = [seal_file(folder, shard) for shard in shards]
    text = make_manifest(1, files).to_json().replace('"single"', '"zero2"')
    (folder / MANIFEST).write_text(text)
    for shard in shards:
        shard.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match="is damaged"):
        full_state(folder)
    assert not marker.exists()
    pickle.loads(shards[0].read_bytes())
    assert marker.exists()  # it would have run
