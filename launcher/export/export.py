"""One Hugging Face folder from a run's checkpoint: all weights, an adapter, or the adapter merged into its base.

Order of work: verify the checkpoint, check every tensor against the base, write into a hidden folder, read it all
back, and only then give the folder its name. What exists under the asked name is therefore whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from launcher.checkpoint.commit import Checkpoint, step_dir
from launcher.checkpoint.manifest import MANIFEST
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import MethodKind
from launcher.errors import CheckpointError, RunError
from launcher.export import hf_format, hf_weights, model_card
from launcher.export.source import ExportInfo, ExportSource, cached_folder, open_source

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Weights:
    """Checked tensors, ready to be written."""

    state: hf_weights.State
    model: PreTrainedModel
    adapter: LoraConfig | None
    dtype: torch.dtype
    warnings: list[str]


def export(
    run_dir: Path,
    to: Path,
    *,
    step: int | None = None,
    merge: bool = False,
    dtype: str | None = None,
    dry_run: bool = False,
) -> ExportInfo:
    """Writes the trained model of a run to `to` and says what was written.

    Args:
        to: a folder that does not exist or is empty.
        step: which checkpoint; left out, the newest that verifies.
        merge: add adapters to the base and write all weights; a full run is written whole anyway.
        dtype: fp32, bf16 or fp16; left out, the base model's for all weights, fp32 for an adapter.
        dry_run: do everything but write.
    Raises: RunError (no such run, target taken), CheckpointError (nothing trustworthy to export). One process, CPU.
    """
    source = open_source(run_dir, step)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError(f"{to} exists and is not empty; nothing is overwritten. Choose another --to, or remove it.")
    weights = _checked_weights(source, merge=merge, dtype=DTYPES[dtype] if dtype else None)
    info = ExportInfo(
        path=to,
        step=source.checkpoint.step,
        method=source.config.method.kind.value,
        merged=source.is_adapter and merge,
        dtype=str(weights.dtype).removeprefix("torch."),
        num_tensors=len(weights.state),
        num_parameters=sum(tensor.numel() for tensor in weights.state.values()),
        base_model=source.config.model.name_or_path,
        warnings=weights.warnings,
        dry_run=dry_run,
    )
    return info if dry_run else _write(source, weights, info)


def _write(source: ExportSource, weights: _Weights, info: ExportInfo) -> ExportInfo:
    """Writes the folder under a hidden name, reads it back, and gives it its own name."""
    staging = info.path.absolute().parent / f".{info.path.name}.partial-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if weights.adapter is None:
            hf_weights.write_full(weights.state, weights.model, staging, weights.dtype)
            hf_weights.reread_full(staging, weights.state)
        else:
            hf_weights.write_adapter(weights.state, weights.adapter, staging)
            hf_weights.reread_adapter(staging, weights.state)
        hf_format.write_format(staging, base_dir=source.base_dir, format_dir=Path(source.derived.data_dir))
        (staging / "README.md").write_text(model_card.model_card(source, info), encoding="utf-8")
        files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        info = replace(info, files=files, size_bytes=sum((staging / name).stat().st_size for name in files))
        staging.rename(info.path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.debug("exported step=%d to=%s bytes=%d", info.step, info.path, info.size_bytes)
    return info


def cached_export(source: ExportSource, *, merge: bool) -> Path:
    """The run's own export of that checkpoint under RUN/export/, made if missing or older than the checkpoint."""
    folder = cached_folder(source, merge=merge)
    saved = (source.checkpoint.path / MANIFEST).stat().st_mtime
    if folder.is_dir() and folder.stat().st_mtime < saved:
        shutil.rmtree(folder)
    if not folder.is_dir():
        try:
            export(source.paths.root, folder, step=source.checkpoint.step, merge=merge)
        except (OSError, RunError):
            # Another process made it meanwhile; it is whole, because it got its name last.
            if not folder.is_dir():
                raise
    return folder


def _checked_weights(source: ExportSource, *, merge: bool, dtype: torch.dtype | None) -> _Weights:
    # Imported here: it loads DeepSpeed, which takes seconds, and an export that exists already needs none of it.
    from launcher.checkpoint.consolidate import full_state

    checkpoint, config = source.checkpoint, source.config

    def refuse(problems: list[str]) -> None:
        hf_weights.refuse_problems(problems, f"{checkpoint.path} cannot be exported; nothing was written")

    state = full_state(checkpoint.path, is_verified=True)
    model = hf_weights.empty_model(source.base_dir)
    wanted = dtype or (torch.float32 if source.is_adapter and not merge else hf_weights.base_dtype(model))
    warnings = _best_step_warning(checkpoint)
    if not source.is_adapter:
        state = hf_weights.cast(hf_weights.with_base_buffers(state, model, source.base_dir), wanted)
        refuse(hf_weights.full_problems(state, model))
        return _Weights(state, model, None, wanted, warnings)
    adapter = hf_weights.adapter_config(config.method, state, model, source.base_name)
    if config.model.revision and model_source(config.model.name_or_path) is ModelSource.hub:
        adapter.revision = config.model.revision
    refuse(hf_weights.adapter_problems(state, adapter, model))
    warnings += _untrained_warning(state, checkpoint)
    if not merge:
        state = hf_weights.cast(state, wanted)
        refuse(hf_weights.unusable_values(state))
        return _Weights(state, model, adapter, wanted, warnings)
    if config.method.kind is MethodKind.qlora:
        warnings.append(
            "This adapter was trained over a 4-bit base and is merged into the full-precision one, so answers may "
            "differ slightly from those during training; compare with `launcher eval`."
        )
    merged = hf_weights.merged_state(state, adapter, source.base_dir, wanted)
    plain = hf_weights.empty_model(source.base_dir)
    refuse(hf_weights.full_problems(merged, plain))
    return _Weights(merged, plain, None, wanted, warnings)


def _untrained_warning(state: hf_weights.State, checkpoint: Checkpoint) -> list[str]:
    """Refuses an adapter that changes nothing, as each does at first (lora_B = 0); warns of a few idle modules."""
    is_idle = [not tensor.any() for name, tensor in state.items() if ".lora_B." in name]
    idle, modules = sum(is_idle), len(is_idle)
    if 2 * idle > modules:
        why = ": nothing was trained yet" if checkpoint.step == 0 else "; check the learning rate and the loss curve"
        raise CheckpointError(
            f"{checkpoint.path}: {idle} of {modules} adapter modules have lora_B = 0, the value they start with, so "
            f"this adapter is the base model. It was saved at step {checkpoint.step}{why}. Nothing was written."
        )
    return [f"{idle} of {modules} adapter modules are still at their starting value (lora_B = 0)."] if idle else []


def _best_step_warning(checkpoint: Checkpoint) -> list[str]:
    state, loss = checkpoint.manifest.state, checkpoint.manifest.eval_loss
    if state.best_step is None or state.best_eval_loss is None or loss is None or state.best_step == checkpoint.step:
        return []
    kept = step_dir(checkpoint.path.parent, state.best_step).is_dir()
    return [
        f"Validation loss was lowest at step {state.best_step} ({state.best_eval_loss:.4f}; {loss:.4f} at this step). "
        + (f"To use that one: --step {state.best_step}." if kept else "That checkpoint was not kept.")
    ]
