"""Trained tensors -> weight files that plain transformers and peft load: checked before writing, read back after.

All on CPU. Memory: two copies of the weights in the export's dtype at most, because the written folder is loaded again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from launcher.config.schema import MethodConfig, MethodKind
from launcher.errors import CheckpointError

MAX_SHARD_SIZE = "5GB"
ADAPTER_FILE = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."

State = dict[str, Tensor]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides progress bars and advice of transformers and peft; errors still come through."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def empty_model(base_dir: Path) -> PreTrainedModel:
    """The base network without weights (meta tensors): names and shapes to compare with."""
    config = AutoConfig.from_pretrained(base_dir, local_files_only=True)
    with quiet_transformers(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def base_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype the base model is published in; fp32 where its config.json names none."""
    dtype = model.config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def cast(state: State, dtype: torch.dtype) -> State:
    """The floating tensors in `dtype`, the others as they are."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def with_base_buffers(state: State, model: PreTrainedModel, base_dir: Path) -> State:
    """`state` and the base's saved buffers, which training does not touch and a checkpoint leaves out."""
    buffers = dict(model.named_buffers()).keys() & model.state_dict().keys() - state.keys()
    if not buffers:
        return state
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(base_dir, local_files_only=True).state_dict()
    return {**state, **{name: base[name] for name in buffers}}


def full_problems(state: State, model: PreTrainedModel) -> list[str]:
    """Problems of `state` as all weights of `model`."""
    expected = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        groups.setdefault(id(tensor), []).append(name)
    problems = []
    for tied in groups.values():
        present = [name for name in tied if name in state]
        if not present:
            problems.append(f"{tied[0]}: missing")
        problems += [
            f"{name}: differs from {present[0]}, but the model ties the two"
            for name in present[1:]
            if not torch.equal(state[name], state[present[0]])
        ]
    return problems + _tensor_problems(state, expected)


def adapter_config(method: MethodConfig, state: State, model: PreTrainedModel, base_name: str) -> LoraConfig:
    """The peft configuration of the adapters in `state`: the modules that really have one, by their short names."""
    adapted = {name.removeprefix(_PEFT_PREFIX).split(".lora_")[0] for name in state if ".lora_" in name}
    if not adapted:
        raise CheckpointError(
            f"The checkpoint holds no adapter: none of its {len(state)} tensors is a LoRA matrix, although the method "
            f"is {method.kind.value}. Nothing was written; run `launcher verify` on the run."
        )
    short = {module.rsplit(".", 1)[-1] for module in adapted}
    matched = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in short}
    return LoraConfig(
        r=method.rank,
        # peft types the scale as an integer; a whole number stays one in adapter_config.json.
        lora_alpha=int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        lora_dropout=method.dropout,
        use_rslora=method.rslora,
        use_dora=method.kind is MethodKind.dora,
        # Short names are what people expect in the file; full ones only where short ones would match more modules.
        target_modules=sorted(short if matched == adapted else adapted),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )


def adapter_problems(state: State, config: LoraConfig, model: PreTrainedModel) -> list[str]:
    """Problems of `state` as trained adapters of `model`; `model` (meta) gets adapters and is used up."""
    with quiet_transformers(), torch.device("meta"):
        expected = get_peft_model_state_dict(get_peft_model(model, config))
    problems = [f"{name}: missing" for name in expected if name not in state] + _tensor_problems(state, expected)
    return problems + [f"{name}: empty, all zero" for name in state if ".lora_A." in name and not state[name].any()]


def write_full(state: State, model: PreTrainedModel, to: Path, dtype: torch.dtype) -> None:
    """Weight files, index and config.json in `to`; `model` (meta) takes the tensors of `state`, which has them all."""
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    with quiet_transformers():
        model.save_pretrained(to, max_shard_size=MAX_SHARD_SIZE)


def write_adapter(state: State, config: LoraConfig, to: Path) -> None:
    """adapter_model.safetensors and adapter_config.json in `to`, as peft reads them."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, to / ADAPTER_FILE, {"format": "pt"})
    config.save_pretrained(to)


def merged_state(state: State, config: LoraConfig, base_dir: Path, dtype: torch.dtype) -> State:
    """All weights of the base with the adapters of `state` added to them, under the base's names.

    Each module is merged in fp32 and rounded to `dtype` once; only one module at a time is held in fp32.
    """
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype, local_files_only=True)
        peft_model = get_peft_model(base, config)
    loaded = set_peft_model_state_dict(peft_model, state)
    if loaded.unexpected_keys:
        raise CheckpointError(f"peft does not know these adapter tensors: {', '.join(loaded.unexpected_keys[:5])}")
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            module.float()
            module.merge(safe_merge=True)
            module.get_base_layer().to(dtype)
    merged: State = peft_model.unload().state_dict()
    return merged


def reread_full(folder: Path, state: State) -> None:
    """Loads `folder` as users will and compares every tensor with `state`; CheckpointError names what differs."""
    with quiet_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True
        )
    loading = [f"{name}: {kind}" for kind, names in report.items() for name in names]
    _refuse_differences(folder, loading, state, model.state_dict())


def reread_adapter(folder: Path, state: State) -> None:
    """Opens the adapter file again and compares every tensor with `state`; CheckpointError names what differs."""
    written = load_file(folder / ADAPTER_FILE)
    _refuse_differences(folder, [f"{name}: not asked for" for name in written if name not in state], state, written)


def _refuse_differences(folder: Path, problems: list[str], state: State, written: State) -> None:
    def is_same(name: str, tensor: Tensor) -> bool:
        other = written.get(name)
        return other is not None and other.dtype == tensor.dtype and torch.equal(other, tensor)

    problems += [f"{name}: read back differently" for name, tensor in state.items() if not is_same(name, tensor)]
    refuse_problems(problems, f"{folder} does not read back as it was written")


def refuse_problems(problems: list[str], what: str) -> None:
    """CheckpointError naming the wrong tensors, if there are any."""
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{what}: {len(problems)} tensors are wrong.\n{shown}{more}")


def _tensor_problems(state: State, expected: State) -> list[str]:
    """Unknown names, wrong shapes, values that are not finite."""
    problems = [f"{name}: the base model has no such tensor" for name in state if name not in expected]
    for name, tensor in state.items():
        if name in expected and tensor.shape != expected[name].shape:
            problems.append(f"{name}: shape {tuple(tensor.shape)}, the base needs {tuple(expected[name].shape)}")
    return problems + unusable_values(state)


def unusable_values(state: State) -> list[str]:
    """Tensors with NaN or infinity in them, by name."""
    return [
        f"{name}: holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in state.items()
        if not torch.isfinite(tensor).all()
    ]
