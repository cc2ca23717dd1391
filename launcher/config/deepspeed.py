"""The complete DeepSpeed configuration of a run.

Complete, because Accelerate fills whatever is missing from ACCELERATE_* variables and defaults of its own (clip 1.0 for
one), and DeepSpeed's defaults size buffers for the largest models. Nothing is left to "auto".
"""

from __future__ import annotations

from typing import Any

from launcher.config.schema import Derived, Precision, RunConfig, StrategyConfig
from launcher.errors import LauncherError

# Elements, not bytes. DeepSpeed's own 5e8 is 2 GB of fp32 for each of several buffers.
GPU_BUCKET_ELEMENTS = 50_000_000
CPU_BUCKET_ELEMENTS = 5_000_000
LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3: most gathered weights a device holds at once."""
_SUB_GROUP_ELEMENTS = 100_000_000


def zero_stage(strategy: StrategyConfig) -> int:
    """1, 2 or 3; 0 where DeepSpeed does not train."""
    sharding = strategy.kind.sharding
    return sharding.optimizer + sharding.gradients + sharding.weights


def bucket_elements(device: str) -> int:
    """Elements reduced or gathered in one collective."""
    return GPU_BUCKET_ELEMENTS if device == "cuda" else CPU_BUCKET_ELEMENTS


def deepspeed_config(config: RunConfig, derived: Derived) -> dict[str, Any]:
    """The dict for DeepSpeedPlugin(hf_ds_config=...); plain values only, fit for JSON.

    The loop feeds one row at a time, so a micro-batch is 1 for DeepSpeed whatever the row holds.
    Gradients are reduced in fp32, and accumulated in fp32 where DeepSpeed can: bf16 sums over many ranks and steps
    lose small updates.
    """
    stage = zero_stage(config.strategy)
    if not stage:
        raise LauncherError(f"strategy {config.strategy.kind.value} does not use DeepSpeed")
    precision = config.strategy.precision
    # Stage 1 in bf16 with fp32 accumulation would switch to another optimizer class, which neither checks gradients for
    # overflow nor saves as the others do.
    accumulation = precision if stage == 1 and not config.strategy.offload_optimizer else Precision.fp32
    return {
        "train_batch_size": derived.world_size * derived.grad_accum_steps,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": derived.grad_accum_steps,
        "gradient_clipping": config.optim.grad_clip,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": accumulation.value},
        # With check_grad_overflow all ranks agree to skip a step with a gradient that is not finite.
        "bf16": {"enabled": precision is Precision.bf16, "immediate_grad_update": False, "check_grad_overflow": True},
        "fp16": _fp16(enabled=precision is Precision.fp16),
        "torch_autocast": {"enabled": False},
        "zero_optimization": _zero(config.strategy, stage, derived.device),
        # The optimizer is ours. Forced, Accelerate would exchange it for a DeepSpeedCPUAdam of its own, with default
        # betas and eps, and with weight decay as an L2 term.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {
            "tag_validation": "Fail",
            "load_universal": False,
            "use_node_local_storage": False,
            "parallel_write": {"pipeline_stage": False},
        },
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_allgather": False,
        "dataloader_drop_last": False,
        "flops_profiler": {"enabled": False},
        "comms_logger": {"enabled": False},
    }


def _fp16(*, enabled: bool) -> dict[str, Any]:
    return {
        "enabled": enabled,
        "auto_cast": False,
        "loss_scale": 0.0,  # dynamic
        "initial_scale_power": 16,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "consecutive_hysteresis": False,
        "min_loss_scale": 1,
    }


def _zero(strategy: StrategyConfig, stage: int, device: str) -> dict[str, Any]:
    on_gpu = device == "cuda"
    bucket = bucket_elements(device)
    values: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": on_gpu,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
        "round_robin_gradients": False,
        "offload_optimizer": _offload(wanted=strategy.offload_optimizer, pin_memory=on_gpu),
        "offload_param": _offload(wanted=strategy.offload_params, pin_memory=on_gpu),
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if stage == 3:
        values |= {
            "sub_group_size": _SUB_GROUP_ELEMENTS,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_model_persistence_threshold": LIVE_ELEMENTS,
            "stage3_max_live_parameters": LIVE_ELEMENTS,
            "stage3_max_reuse_distance": LIVE_ELEMENTS,
            "stage3_module_granularity_threshold": 0,
            "stage3_use_all_reduce_for_fetch_params": False,
            "memory_efficient_linear": True,
        }
    return values


def _offload(*, wanted: bool, pin_memory: bool) -> dict[str, Any]:
    return {"device": "cpu" if wanted else "none", "nvme_path": None, "pin_memory": wanted and pin_memory}
