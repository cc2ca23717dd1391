"""Loads the model, freezes it where adapters are trained, and puts the adapters on."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from launcher.config.schema import Derived, MethodConfig, MethodKind, Precision, RunConfig
from launcher.errors import ModelError
from launcher.train.attention import implementation, register_attention
from launcher.train.optimizer import trainable_parameters
from launcher.train.world import World

logger = logging.getLogger(__name__)

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def load_dtype(config: RunConfig) -> torch.dtype:
    """dtype of the loaded weights: fp32 where the optimizer updates them directly, otherwise the compute precision.

    Under ZeRO, DeepSpeed keeps its own fp32 master of the trained weights; a frozen base needs none.
    """
    if config.strategy.kind.sharding.is_replicated and config.method.kind is MethodKind.full:
        return torch.float32
    return DTYPES[config.strategy.precision]


def load_model(config: RunConfig, derived: Derived, world: World) -> nn.Module:
    """The model ready to train, on this rank's device (partitioned while loading under ZeRO-3).

    Raises: ModelError when a folder is not a causal language model or no layer takes adapters.
    Ranks: all, after the accelerator was made.
    """
    register_attention()
    disable_progress_bar()  # a rank's output is a log file
    quantized = config.method.kind is MethodKind.qlora
    options: dict[str, object] = {}
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.method.double_quantization,
            bnb_4bit_compute_dtype=DTYPES[config.strategy.precision],
        )
        options["device_map"] = {"": world.device}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            derived.model_dir,
            dtype=load_dtype(config),
            attn_implementation=implementation(derived.attention),
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load {config.model.name_or_path} from {derived.model_dir}: {error}") from error
    model.config.use_cache = False
    if quantized:
        _keep_one_kernel(model)
    if config.strategy.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if config.method.kind is not MethodKind.full:
            # A frozen embedding outputs activations without gradient, and a checkpointed block would pass none on.
            model.enable_input_require_grads()
    module: nn.Module = model
    if config.method.kind is not MethodKind.full:
        module = add_adapters(model, config.method, seed=config.seed)
    if config.strategy.compile:
        module.compile(dynamic=True)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainable_parameters(module).values())
    logger.info("model=%s trained_parameters=%d", config.model.name_or_path, trained)
    return module


def _keep_one_kernel(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU.

    Repacked weights go through another kernel that rounds differently, so results would depend on whether the run has
    evaluated yet.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_adapters(model: PreTrainedModel, method: MethodConfig, *, seed: int) -> nn.Module:
    """Freezes the base and adds LoRA or DoRA layers, initialised alike on every rank."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(seed)
    targets = method.target_modules
    adapter = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=method.rank,
        # peft types the scale as an integer; a whole number stays one in adapter_config.json.
        lora_alpha=int(method.alpha) if float(method.alpha).is_integer() else method.alpha,
        lora_dropout=method.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else list(targets),
        use_rslora=method.rslora,
        use_dora=method.kind is MethodKind.dora,
    )
    try:
        return get_peft_model(model, adapter)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"method.target_modules = {list(targets)}: {error}\n  linear layers of this model: {', '.join(linear)}"
        ) from error
