"""One set of full tensors from the shards of a checkpoint, on the CPU, with no process group."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from torch import Tensor

from launcher.checkpoint.manifest import damage, read_manifest
from launcher.checkpoint.shards import ZERO_TAG, read_replicated_weights
from launcher.config.sharding import StrategyKind
from launcher.errors import CheckpointError


def full_state(checkpoint_dir: Path, *, is_verified: bool = False) -> dict[str, Tensor]:
    """The trained tensors under their Hugging Face names: the whole model, or an adapter as peft saves it.

    Trained weights come back in fp32 (ZeRO keeps an fp32 master of each). Buffers and frozen weights are left out.

    Args:
        is_verified: the caller has read all of it already, as `newest_verified` does.
    Raises: CheckpointError if a file does not match the manifest; nothing is unpickled then.
    """
    manifest = read_manifest(checkpoint_dir)
    problems = [] if is_verified else damage(checkpoint_dir, manifest)
    if problems:
        raise CheckpointError(f"{checkpoint_dir} is damaged: {'; '.join(problems[:3])}")
    is_replicated = StrategyKind(manifest.strategy).sharding.is_replicated
    state = read_replicated_weights(checkpoint_dir) if is_replicated else _zero_state(checkpoint_dir)
    return {hugging_face_name(name): tensor for name, tensor in state.items()}


def _zero_state(checkpoint_dir: Path) -> dict[str, Tensor]:
    # DeepSpeed prints to stdout, where a verb writes its JSON document, and draws progress bars.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint_dir), tag=ZERO_TAG, exclude_frozen_parameters=True
        )
    return state


def hugging_face_name(name: str) -> str:
    """A parameter's name in the saved model: without the wrappers of training and peft's adapter name."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    # The magnitude of DoRA is a module in training, but a tensor in the saved adapter.
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".default.weight", ".weight")
