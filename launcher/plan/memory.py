"""Memory and disk space of a run, item by item; docs/configuration.md states the same formulas.

An estimate of the peak, by arithmetic. It follows train/: weights the optimizer updates are fp32 unless ZeRO keeps an
fp32 master of them, a frozen base is kept in the compute precision, logits exist at supervised
positions only, and attention saves no T x T matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from launcher.config.deepspeed import LIVE_ELEMENTS, bucket_elements
from launcher.config.schema import ArchitectureConfig, MethodKind, Precision, RunConfig
from launcher.config.topology import Topology
from launcher.plan.parameters import (
    adapter_inputs,
    attention_widths,
    count_parameters,
    count_trained,
    linear_shapes,
)

GIB = 2**30
_FP32 = 4
_ADAM_STATE = 8  # two fp32 moments
_NF4 = 0.5
_NF4_CONSTANTS = 4 / 64  # one fp32 scale for 64 weights
_NF4_CONSTANTS_DOUBLE = 1 / 64 + 4 / (64 * 256)
_LOSS_CHUNK_TOKENS = 1024  # train/loss.py turns so many rows to fp32 at once
_GPU_RESERVE = 1.5 * GIB
_PROCESS = {"cpu": 1.0 * GIB, "cuda": 2.0 * GIB}  # interpreter and libraries
_INFERENCE_FACTOR = 1.2
"""Memory for answering, as a multiple of the weights."""
_LARGEST_SHARD = 5 * GIB


@dataclass(frozen=True, slots=True)
class Load:
    """The heaviest micro-batch of one device."""

    tokens: int
    supervised_tokens: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by item. `device` is one GPU (or one process on a CPU), `host` is one node."""

    device: dict[str, float]
    host: dict[str, float]

    @property
    def device_total(self) -> float:
        return sum(self.device.values())

    @property
    def host_total(self) -> float:
        return sum(self.host.values())


@dataclass(frozen=True, slots=True)
class _State:
    """Bytes one rank holds for weights and optimizer, before offload."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    step_temporaries: float


def estimate(config: RunConfig, architecture: ArchitectureConfig, topology: Topology, load: Load) -> MemoryEstimate:
    """Peak memory per device and node."""
    rank_state = _replicated_state if config.strategy.kind.sharding.is_replicated else _zero_state
    state = rank_state(config, architecture, topology)
    stored, transient = _activations(config, architecture, load)
    logits = _logits(config, architecture, load)
    # As in micro_batch_bytes. Between steps activations are gone, and the optimizer's temporaries need memory instead.
    activations = stored + max(0.0, transient - logits)
    activations = max(activations, state.step_temporaries - logits)
    device = {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "activations": activations,
        "logits": logits,
        "buffers": state.buffers,
    }
    offloaded = 0.0
    if config.strategy.offload_optimizer:
        offloaded += device["optimizer"] + device["gradients"]
        device["optimizer"] = device["gradients"] = 0.0
    if config.strategy.offload_params:
        offloaded += device["weights"]
        device["weights"] = 0.0
    host = _host(config, architecture, topology, offloaded)
    if topology.device == "cuda":
        device["reserve"] = _GPU_RESERVE
    else:
        host["training"] = topology.devices_per_node * sum(device.values())
    return MemoryEstimate(device=device, host=host)


def micro_batch_bytes(config: RunConfig, architecture: ArchitectureConfig, load: Load) -> float:
    """Peak memory of a forward and backward pass, beside what does not depend on the micro-batch."""
    stored, transient = _activations(config, architecture, load)
    return stored + max(transient, _logits(config, architecture, load))


def compute_bytes(config: RunConfig) -> int:
    """Bytes of one number in the compute precision."""
    return _FP32 if config.strategy.precision is Precision.fp32 else 2


def base_bytes(config: RunConfig, architecture: ArchitectureConfig) -> float:
    """The frozen base of adapters: in the compute precision, or 4 bit in its decoder layers for QLoRA."""
    total = count_parameters(architecture)
    if config.method.kind is not MethodKind.qlora:
        return float(compute_bytes(config) * total)
    linear = architecture.num_layers * sum(inputs * outputs for inputs, outputs in linear_shapes(architecture).values())
    constants = _NF4_CONSTANTS_DOUBLE if config.method.double_quantization else _NF4_CONSTANTS
    return linear * (_NF4 + constants) + (total - linear) * compute_bytes(config)


def _replicated_state(config: RunConfig, architecture: ArchitectureConfig, topology: Topology) -> _State:
    """single and ddp: every rank holds everything."""
    trained = count_trained(architecture, config.method)
    is_full = config.method.kind is MethodKind.full
    is_half = config.strategy.precision is not Precision.fp32
    weights = _FP32 * trained + (0.0 if is_full else base_bytes(config, architecture))
    return _State(
        weights=weights,
        gradients=_FP32 * trained,
        optimizer=_ADAM_STATE * trained,
        # autocast keeps a 16-bit copy of every fp32 weight until backward is done; DDP keeps flat gradient buckets
        buffers=(2.0 * trained if is_full and is_half else 0.0) + (_FP32 * trained if topology.world_size > 1 else 0.0),
        step_temporaries=_FP32 * trained if topology.device == "cuda" else 0.0,
    )


def _zero_state(config: RunConfig, architecture: ArchitectureConfig, topology: Topology) -> _State:
    """zero1 to zero3: what is trained has an fp32 master and Adam moments, divided among ranks."""
    sharding, ranks, width = config.strategy.kind.sharding, topology.world_size, compute_bytes(config)
    trained, total = count_trained(architecture, config.method), count_parameters(architecture)
    is_full = config.method.kind is MethodKind.full
    weights = float(width * total) if is_full else base_bytes(config, architecture) + width * trained
    bucket = min(bucket_elements(topology.device), trained)
    buffers = 2.0 * bucket * (width + _FP32)  # two buckets in flight, each with its fp32 copy for the reduction
    if sharding.weights:
        weights /= ranks
        buffers += width * min(total, LIVE_ELEMENTS)  # weights gathered for the layers at work
    share = trained / ranks
    return _State(
        weights=weights,
        gradients=width * trained + _FP32 * share if not sharding.gradients else _FP32 * share,
        optimizer=(_FP32 + _ADAM_STATE) * share,
        buffers=buffers,
        step_temporaries=_FP32 * share if topology.device == "cuda" and not config.strategy.offload_optimizer else 0.0,
    )


def layer_bytes_per_token(config: RunConfig, architecture: ArchitectureConfig) -> float:
    """Saved for backward by one decoder layer, per token; a test counts saved tensors against it."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query, key_value = attention_widths(architecture)
    replicated = config.strategy.kind.sharding.is_replicated
    if config.strategy.precision is Precision.fp32:
        return 24.0 * hidden + 4 * (3 * query + 2 * key_value) + 16 * inner
    attention_and_mlp = 2 * (3 * query + 2 * key_value) + 8 * inner
    if config.method.kind is MethodKind.full:
        # under autocast the norms compute in fp32, under ZeRO they store 16-bit results
        return (24.0 if replicated else 16.0) * hidden + attention_and_mlp
    saved = 16.0 * hidden + attention_and_mlp
    if replicated:  # frozen layers keep no input, but every adapter keeps a cast of its own
        saved += 2 * adapter_inputs(architecture, config.method) - (4 * hidden + 2 * query + 2 * inner)
    return saved


def _activations(config: RunConfig, architecture: ArchitectureConfig, load: Load) -> tuple[float, float]:
    """Bytes kept from forward to backward, and bytes that exist only while one layer is worked on."""
    layer = load.tokens * layer_bytes_per_token(config, architecture)
    ends = load.tokens * 12.0 * architecture.hidden_size  # embedding and last norm
    if not config.strategy.activation_checkpointing:
        return architecture.num_layers * layer + ends, 0.0
    in_fp32 = config.strategy.kind.sharding.is_replicated and config.method.kind is MethodKind.full
    width = _FP32 if in_fp32 else compute_bytes(config)
    return architecture.num_layers * load.tokens * width * architecture.hidden_size + ends, layer


def _logits(config: RunConfig, architecture: ArchitectureConfig, load: Load) -> float:
    """Logits and their gradient at supervised positions, and a chunk of them in fp32."""
    rows = load.supervised_tokens
    chunk = min(rows, _LOSS_CHUNK_TOKENS) * architecture.vocab_size * 2 * _FP32
    return float(rows * architecture.vocab_size * 2 * compute_bytes(config) + chunk)


def _host(
    config: RunConfig, architecture: ArchitectureConfig, topology: Topology, offloaded: float
) -> dict[str, float]:
    """One node: processes, offloaded state, and the weights on their way to the GPUs."""
    ranks = topology.devices_per_node
    host = {"processes": _PROCESS[topology.device] * ranks, "offloaded": offloaded * ranks}
    if topology.device == "cuda":
        full_fp32 = config.strategy.kind.sharding.is_replicated and config.method.kind is MethodKind.full
        copy = float(count_parameters(architecture) * (_FP32 if full_fp32 else compute_bytes(config)))
        in_shards = config.strategy.kind.sharding.weights or config.method.kind is MethodKind.qlora
        loading = ranks * (min(copy, _LARGEST_SHARD) if in_shards else copy)
        # Optimizer state is offloaded after loading; parameters while loading.
        host["loading"] = max(0.0, loading - (0.0 if config.strategy.offload_params else host["offloaded"]))
    return host


def checkpoint_bytes(config: RunConfig, architecture: ArchitectureConfig) -> float:
    """One checkpoint: trained weights and Adam moments in fp32; ZeRO-1 and -2 add weights in the compute precision."""
    trained, sharding = count_trained(architecture, config.method), config.strategy.kind.sharding
    extra = 0 if sharding.is_replicated or sharding.weights else compute_bytes(config)
    return float(trained * (_FP32 + _ADAM_STATE + extra))


def inference_gpus(architecture: ArchitectureConfig, gpu_memory_gib: float, *, at_most: int) -> int:
    """GPUs of one node that hold a model in 16 bits, with room for its answers."""
    needed = _INFERENCE_FACTOR * 2 * count_parameters(architecture) / GIB / gpu_memory_gib
    return max(1, min(math.ceil(needed), at_most))


def tensor_parallel_size(architecture: ArchitectureConfig, needed: int, *, at_most: int) -> int:
    """The number of GPUs next to `needed` among which vLLM can divide the model."""
    heads, shared, width = architecture.num_heads, architecture.num_kv_heads, architecture.intermediate_size
    sizes = [
        size
        for size in range(1, at_most + 1)
        if heads % size == 0 and width % size == 0 and (shared % size == 0 or size % shared == 0)
    ]
    return next((size for size in sizes if size >= needed), sizes[-1])


def with_settings(config: RunConfig, **changes: object) -> RunConfig:
    """A copy with settings changed, written section__key=value; for asking what something else would need."""
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})  # type: ignore[arg-type]
    return config
