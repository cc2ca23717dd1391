"""Batch, step and learning-rate arithmetic, from the configuration and the counts of the data. Pure.

A sequence is a pack, or one example when packing is off. Every optimizer step takes `global_sequences` of them,
whatever the number of ranks. Nothing has to divide: a rank may get fewer than another in a micro-step, or none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.config.devices import usable_cores
from launcher.config.model_files import find_architecture
from launcher.config.schema import ArchitectureConfig, Attention, Derived, MethodKind, OptimConfig, Precision, RunConfig
from launcher.config.topology import AMPERE, Topology
from launcher.plan.parameters import count_parameters, head_width
from launcher.plan.plan import DataFacts

# Reference point of the computed learning rate: full tuning of a 135M model (measured on the next-number task).
_REFERENCE_LR = 1e-4
_REFERENCE_PARAMETERS = 135e6
_SIZE_EXPONENT = 0.6
_LARGEST_FULL_LR = 1e-3
_ADAPTER_FACTOR = 10.0
_ADAPTER_LR_RANGE = (1e-4, 5e-4)
_SMALL_DATA_TOKENS = 20_000
_SMALLEST_DATA_FACTOR = 0.3


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How one optimizer step is divided among ranks and micro-steps."""

    global_sequences: int
    micro_sequences: int
    grad_accum_steps: int


def plan_batch(config: RunConfig, facts: DataFacts, world_size: int) -> BatchPlan:
    """Sequences per step, per micro-batch, and micro-batches per step."""
    batch = config.batch
    if batch.global_tokens is not None:
        wanted = max(1, round(batch.global_tokens / max(1.0, facts.mean_pack_tokens)))
    else:
        wanted = batch.global_sequences or 1
    total = max(1, min(wanted, facts.num_packs))
    # micro_tokens assumes that every sequence is as long as the longest.
    longest = max(1, min(facts.max_pack_tokens or config.data.seq_len_tokens, config.data.seq_len_tokens))
    micro = batch.micro_sequences or max(1, batch.micro_tokens // longest)
    accumulation = math.ceil(total / (world_size * micro))
    return BatchPlan(
        global_sequences=total,
        micro_sequences=math.ceil(total / (world_size * accumulation)),  # even micro-steps: 6+6 rather than 8+4
        grad_accum_steps=accumulation,
    )


def step_counts(optim: OptimConfig, *, num_packs: int, global_sequences: int) -> tuple[int, int]:
    """Optimizer steps per epoch (the last one may be smaller) and in all."""
    steps_per_epoch = max(1, math.ceil(num_packs / global_sequences))
    if optim.max_steps is not None:
        return steps_per_epoch, optim.max_steps
    # 3 epochs of 100 steps are 300 steps even where 0.1 * 30 is not quite 3
    return steps_per_epoch, max(1, math.ceil(round(optim.epochs * steps_per_epoch, 6)))


def computed_lr(*, num_parameters: int, method: MethodKind, epoch_tokens: float) -> float:
    """Default peak learning rate: lower for larger models and small datasets, ten times higher for adapters.

    full = 1e-4 * (135M / parameters)^0.6, at most 1e-3; about 1e-5 at 7B. An unknown size counts as 7B.
    adapters = 10 * full, kept within 1e-4 and 5e-4.
    Fewer than 20,000 tokens an epoch: times the square root of tokens / 20,000, but not less than 0.3.
    """
    size = num_parameters or 7_000_000_000
    rate = min(_LARGEST_FULL_LR, _REFERENCE_LR * (_REFERENCE_PARAMETERS / size) ** _SIZE_EXPONENT)
    if method is not MethodKind.full:
        low, high = _ADAPTER_LR_RANGE
        rate = min(max(rate * _ADAPTER_FACTOR, low), high)
    data_factor = min(1.0, max(_SMALLEST_DATA_FACTOR, math.sqrt(epoch_tokens / _SMALL_DATA_TOKENS)))
    return float(f"{rate * data_factor:.2g}")


def warmup_steps(optim: OptimConfig, total_steps: int) -> int:
    """Steps of linear warm-up; never the whole run."""
    wanted = optim.warmup_steps if optim.warmup_steps is not None else math.ceil(optim.warmup_ratio * total_steps)
    return min(wanted, max(0, total_steps - 1))


def derive(config: RunConfig, facts: DataFacts, topology: Topology, *, run_id: str, model_dir: str = "") -> Derived:
    """Everything ranks need to know that is not a setting; the prepared data is still to be named."""
    architecture = find_architecture(config.model, model_dir=model_dir)
    batch = plan_batch(config, facts, topology.world_size)
    steps_per_epoch, total_steps = step_counts(
        config.optim, num_packs=facts.num_packs, global_sequences=batch.global_sequences
    )
    return Derived(
        run_id=run_id,
        model_dir=model_dir,
        data_dir="",
        data_key="",
        device=topology.device,
        world_size=topology.world_size,
        devices_per_node=topology.devices_per_node,
        threads_per_process=_threads(config, topology.devices_per_node),
        num_packs=facts.num_packs,
        global_sequences=batch.global_sequences,
        micro_sequences=batch.micro_sequences,
        grad_accum_steps=batch.grad_accum_steps,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        peak_lr=peak_lr(config, architecture, epoch_tokens=facts.num_packs * facts.mean_pack_tokens),
        warmup_steps=warmup_steps(config.optim, total_steps),
        attention=_attention(config, topology, architecture),
    )


def peak_lr(config: RunConfig, architecture: ArchitectureConfig | None, *, epoch_tokens: float) -> float:
    """Learning rate at the end of warm-up: the given or computed one, times the multiplier."""
    rate = config.optim.lr
    if rate is None:
        size = count_parameters(architecture) if architecture is not None else 0
        rate = computed_lr(num_parameters=size, method=config.method.kind, epoch_tokens=epoch_tokens)
    return rate * config.optim.lr_multiplier


def _threads(config: RunConfig, devices_per_node: int) -> int:
    if config.cluster.threads_per_process is not None:
        return config.cluster.threads_per_process
    if config.cluster.is_slurm:
        return 0  # each task uses the cores that Slurm gives it, not those of this host
    return max(1, usable_cores() // devices_per_node)


def _attention(config: RunConfig, topology: Topology, architecture: ArchitectureConfig | None) -> str:
    wanted = config.model.attention
    if wanted is Attention.auto:
        is_16_bit = config.strategy.precision is not Precision.fp32
        is_old = topology.capability is not None and topology.capability < AMPERE
        # flash-attention 2, which varlen is, has no kernel for other heads.
        takes_heads = architecture is None or head_width(architecture) in range(8, 257, 8)
        has_kernel = topology.device == "cuda" and is_16_bit and not is_old and takes_heads
        wanted = Attention.varlen if has_kernel else Attention.segments
    return str(wanted.value)
