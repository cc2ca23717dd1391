"""Every setting of a run: type, allowed range, default and meaning. Defaults live here and nowhere else.

Rules across settings are in checks.py. `???` (MISSING) marks what the user must give.
Settings of the cluster and of fault handling: cluster_schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from omegaconf import MISSING

from launcher.config.cluster_schema import ClusterConfig, FaultConfig
from launcher.config.limits import (
    Limits,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Ratio,
    RatioBelowOne,
    Seed,
)
from launcher.config.sharding import StrategyKind as StrategyKind

SCHEMA_VERSION = 3


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class MethodKind(Enum):
    full = "full"
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"


class OverLength(Enum):
    error = "error"
    drop = "drop"
    truncate = "truncate"


class DataFormat(Enum):
    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    instruction = "instruction"
    conversations = "conversations"
    text_input_output = "text_input_output"
    contents = "contents"
    question_answer = "question_answer"
    text = "text"


class TaskKind(Enum):
    general = "general"
    classification = "classification"
    summarization = "summarization"
    document_search = "document_search"


class NonFinite(Enum):
    stop = "stop"
    skip = "skip"


class Attention(Enum):
    auto = "auto"
    segments = "segments"
    varlen = "varlen"
    flash_attention_2 = "flash_attention_2"


class TrackerName(Enum):
    """Each has a file launcher/tracking/NAME_tracker.py, a package and an extra of its name."""

    wandb = "wandb"
    tensorboard = "tensorboard"
    mlflow = "mlflow"


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """Dimensions of the network. They ship with each model option, so planning needs neither the Hub nor the weights.

    Any left at 0 are read from the model's config.json if it is on this host.
    """

    hidden_size: int = 0
    """Width of the residual stream."""
    intermediate_size: int = 0
    """Width of the feed-forward layer."""
    num_layers: int = 0
    """Number of decoder layers."""
    num_heads: int = 0
    """Number of query heads."""
    num_kv_heads: int = 0
    """Number of key and value heads; fewer than num_heads with grouped-query attention."""
    head_dim: int = 0
    """Width of one head; 0 means hidden_size / num_heads."""
    vocab_size: int = 0
    """Rows of the embedding matrix."""
    tied_embeddings: bool = False
    """Whether the language-model head shares the embedding matrix."""
    attention_bias: bool = False
    """Whether the query, key and value projections have biases (as in Qwen2)."""
    max_position_tokens: int = 0
    """Longest sequence the model supports."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Model to fine-tune."""

    name_or_path: str = MISSING
    """A folder with config.json and safetensors, a Hub name (owner/name), or embedded:smollm2-135m-instruct."""
    revision: str | None = None
    """Hub commit, branch or tag; give a commit to pin the weights."""
    attention: Attention = Attention.auto
    """Attention kernel. auto picks varlen on GPUs that have it, else segments; no kernel attends across examples."""
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """Dimensions used for planning."""


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One source of a mixture."""

    path: str = MISSING
    """Same as data.path."""
    weight: PositiveFloat = 1.0
    """How much of this source to use: 0.5 takes half its examples, 2 takes each twice; fractions are sampled with
    data.seed."""
    format: DataFormat = DataFormat.auto
    """Same as data.format."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Training examples, how they become tokens and labels, and what the audit rejects."""

    path: str | None = None
    """Training examples: a .jsonl, .json, .csv or .parquet file, a directory of them, hub:owner/name, or
    builtin:next_number."""
    validation_path: str | None = None
    """Validation examples; same forms as data.path."""
    validation_fraction: RatioBelowOne = 0.0
    """Fraction of the training examples to split off for validation if there is no validation_path; 0 splits off
    none."""
    inline: list[dict[str, Any]] = field(default_factory=list)
    """Examples written directly into the configuration."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Several weighted sources, instead of data.path."""
    hub_split: str = "train"
    """Split to train on if data.path is a Hub dataset."""
    hub_revision: str | None = None
    """Commit, branch or tag of the Hub dataset."""
    hub_validation_split: str | None = None
    """Split of the same Hub dataset to validate on."""
    format: DataFormat = DataFormat.auto
    """Format of the examples; auto detects it and reports what it found."""
    chat_template: str | None = None
    """File with a Jinja chat template to use instead of the model's own."""
    system_prompt: str | None = None
    """System message added to every example that has none; saved with the tuned model."""
    preamble: str | None = None
    """Text put before the first user message of every example; saved with the tuned model."""
    seq_len_tokens: Annotated[int, Limits(8, 4_194_304)] = 2048
    """Maximum length of an example, and size of a pack, in tokens."""
    over_length: OverLength = OverLength.error
    """What to do with an example longer than seq_len_tokens."""
    packing: bool = True
    """Pack several short examples into one sequence (best-fit decreasing); attention never crosses examples."""
    task: TaskKind = TaskKind.general
    """Kind of task; sets the recommended number of examples."""
    max_input_chars: PositiveInt | None = None
    """Reject examples whose input is longer than this many characters."""
    max_output_chars: PositiveInt | None = None
    """Reject examples whose output is longer than this many characters."""
    allow: list[str] = field(default_factory=list)
    """Codes of audit findings to accept instead of stopping the run."""
    num_workers: Annotated[int, Limits(0, 1024)] = 0
    """Processes that prepare data; 0 uses all cores."""
    seed: Seed = 0
    """Seed of the validation split, mixture sampling and built-in data; separate from seed, so that runs with
    different seeds can share a split."""


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Which weights are trained."""

    kind: MethodKind = MethodKind.full
    """full trains all weights; lora, dora and qlora train adapters (qlora on a 4-bit base)."""
    rank: Annotated[int, Limits(1, 4096)] = 16
    """Adapter rank."""
    alpha: PositiveFloat = 32.0
    """Adapter scale; the update is multiplied by alpha / rank."""
    dropout: RatioBelowOne = 0.0
    """Dropout on the adapter input."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get adapters; all-linear means all of them except the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rank-stabilized LoRA)."""
    double_quantization: bool = True
    """qlora: quantize the quantization constants as well."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Length of training, learning rate and AdamW."""

    epochs: PositiveFloat = 3.0
    """Passes over the training data; may be fractional. Give either this or max_steps."""
    max_steps: PositiveInt | None = None
    """Total optimizer steps; overrides epochs, including the epochs of a recipe."""
    lr: Annotated[float, Limits(0, 1, above=True)] | None = None
    """Peak learning rate. Default: computed from model size and method (shown in the plan)."""
    lr_multiplier: PositiveFloat = 1.0
    """Factor applied to the peak learning rate, given or computed."""
    schedule: Schedule = Schedule.cosine
    """Learning-rate schedule after warm-up: constant, linear, cosine, or wsd (warmup-stable-decay)."""
    warmup_steps: NonNegativeInt | None = None
    """Linear warm-up in optimizer steps, instead of warmup_ratio; capped, with a warning, at total steps - 1."""
    warmup_ratio: RatioBelowOne = 0.03
    """Warm-up as a fraction of total steps."""
    decay_ratio: Ratio = 0.2
    """wsd: final decay as a fraction of total steps."""
    min_lr_ratio: Ratio = 0.0
    """Final learning rate as a fraction of the peak."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW weight decay; not applied to norms and biases."""
    beta1: RatioBelowOne = 0.9
    """AdamW beta1."""
    beta2: RatioBelowOne = 0.999
    """AdamW beta2."""
    eps: PositiveFloat = 1e-8
    """AdamW epsilon."""
    grad_clip: NonNegativeFloat = 1.0
    """Maximum global gradient norm; 0 disables clipping."""
    on_nonfinite: NonFinite = NonFinite.stop
    """What to do if loss or gradient is not finite: stop and name the examples, or skip the step with a warning."""
    early_stopping_patience: NonNegativeInt = 0
    """Stop after this many evaluations without a lower validation loss; 0 disables early stopping."""
    early_stopping_min_delta: NonNegativeFloat = 0.0
    """Smallest decrease in validation loss that counts as an improvement."""


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """How model and optimizer are distributed over devices, and the compute precision."""

    kind: StrategyKind = StrategyKind.single
    """single device, ddp, or DeepSpeed ZeRO stage 1, 2 or 3."""
    precision: Precision = Precision.bf16
    """Compute precision; trained weights and optimizer state stay in fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the model."""
    offload_optimizer: bool = False
    """zero1 to zero3: keep optimizer state in host memory."""
    offload_params: bool = False
    """zero3: keep parameters in host memory."""


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """Size of an optimizer step; gradient accumulation is derived.

    A sequence is a pack, or a single example if packing is off.
    """

    global_sequences: PositiveInt | None = 8
    """Sequences per optimizer step, over all devices."""
    global_tokens: PositiveInt | None = None
    """Tokens per optimizer step, rounded to whole sequences; requires batch.global_sequences=null."""
    micro_sequences: PositiveInt | None = None
    """Sequences per device and micro-batch. Default: as many as fit in micro_tokens."""
    micro_tokens: PositiveInt = 8192
    """Maximum tokens per device and micro-batch if micro_sequences is not given."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, which checkpoints to keep, and the preflight check."""

    save_every_steps: NonNegativeInt = 0
    """Optimizer steps between checkpoints; 0 saves after each epoch and at the end."""
    keep_last: PositiveInt = 2
    """Number of latest checkpoints to keep; an old one is deleted only after the next is committed."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""
    rehearse: bool = True
    """Preflight: before training, run one step on the heaviest batch, one evaluation, one save and one load, then
    restore the initial state."""


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """What is recorded, and where it is sent."""

    eval_every_steps: NonNegativeInt = 0
    """Optimizer steps between evaluations on the validation set; 0 evaluates after each epoch only."""
    trackers: list[TrackerName] | None = None
    """Trackers to send metrics to: any of wandb, tensorboard and mlflow. Default: wandb, in the mode of track.wandb."""
    wandb: WandbMode = WandbMode.auto
    """auto: online if WANDB_API_KEY is set, otherwise offline. disabled writes nothing for W&B."""
    wandb_project: str = "launcher"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B user or team."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One complete run."""

    name: str | None = None
    """Name of the run directory under runs_dir. Default: experiment name and time."""
    runs_dir: str = "runs"
    """Folder that holds the run directories."""
    experiment_name: str = "custom"
    """Set by the files in conf/experiment; part of the default run name."""
    seed: Seed = 0
    """Seed of data order, dropout and adapter initialization."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)


@dataclass(kw_only=True, slots=True)
class Derived:
    """Values computed once from configuration and prepared data, and saved with them; the same on every rank."""

    run_id: str
    """Random hex: the W&B run id, and what ties checkpoints to their run."""
    model_dir: str
    """Folder with config.json, safetensors and tokenizer.json that workers load."""
    data_dir: str
    """Prepared dataset (see data/prepared.py)."""
    data_key: str
    """Content hash of the prepared data."""
    device: str
    """cpu or cuda."""
    world_size: int
    """Number of ranks; a worker that finds another number stops."""
    devices_per_node: int
    threads_per_process: int
    num_packs: int
    """Training sequences after packing."""
    global_sequences: int
    """Sequences per optimizer step."""
    micro_sequences: int
    """Maximum sequences per micro-batch."""
    grad_accum_steps: int
    """Micro-batches per optimizer step on each rank."""
    steps_per_epoch: int
    """Optimizer steps per epoch; the last one may be smaller."""
    total_steps: int
    """Optimizer steps of the whole run."""
    peak_lr: float
    """Learning rate at the end of warm-up, multiplier included."""
    warmup_steps: int
    attention: str
    """segments, varlen or flash_attention_2."""


@dataclass(kw_only=True, slots=True)
class FrozenRun:
    """config.yaml of a run directory: schema version, configuration, derived values."""

    schema_version: int = SCHEMA_VERSION
    config: RunConfig = field(default_factory=RunConfig)
    derived: Derived | None = None
