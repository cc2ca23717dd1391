"""Every setting of a run, its type, its default and its meaning. Defaults live here and nowhere else.

Rules, of one field or across sections, live in checks.py, so that
all problems are reported at once instead of the first one. `???` (MISSING) marks what the user must give.
The place a run runs at, and how it goes on after trouble: cluster_schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from launcher.config.cluster_schema import ClusterConfig, FaultConfig

SCHEMA_VERSION = 2


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class StrategyKind(Enum):
    single = "single"
    ddp = "ddp"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"


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


class Task(Enum):
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


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """Figures of the network, shipped with the model so that planning needs neither hub nor weights.

    Left at 0, they are read from the model's config.json where that lies on this machine.
    """

    hidden_size: int = 0
    """Width of the residual stream."""
    intermediate_size: int = 0
    """Width of the feed-forward layer."""
    num_layers: int = 0
    """Decoder layers."""
    num_heads: int = 0
    """Query heads."""
    num_kv_heads: int = 0
    """Key and value heads; fewer than num_heads under grouped-query attention."""
    head_dim: int = 0
    """Width of one head; 0 means hidden_size / num_heads."""
    vocab_size: int = 0
    """Rows of the embedding matrix."""
    tied_embeddings: bool = False
    """Whether the language-model head shares the embedding matrix."""
    attention_bias: bool = False
    """Whether the query, key and value projections have biases (Qwen2 does)."""
    max_position_tokens: int = 0
    """Longest sequence the model was built for."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which model to tune."""

    name_or_path: str = MISSING
    """A folder with config.json and safetensors, a Hub name (owner/name), or embedded:smollm2-135m-instruct."""
    revision: str | None = None
    """Hub commit or tag; give a commit to pin the weights."""
    attention: Attention = Attention.auto
    """Attention kernel: auto picks varlen on GPU and segments on CPU; neither crosses an example boundary."""
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """Figures for the plan."""


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One part of a mixture."""

    path: str = MISSING
    """As data.path."""
    weight: float = 1.0
    """Share of this source: 0.5 keeps half its examples, 2 repeats each twice; fractions are drawn with data.seed."""
    format: DataFormat = DataFormat.auto
    """As data.format."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which examples, how they become tokens and labels, and what the audit refuses."""

    path: str | None = None
    """Training examples: a .jsonl, .json, .csv or .parquet file, a directory of them, hub:owner/name, or
    builtin:next_number."""
    validation_path: str | None = None
    """Held-out examples, as data.path."""
    validation_fraction: float = 0.0
    """Share of the training examples held out when there is no validation_path; 0 holds out none."""
    inline: list[dict[str, Any]] = field(default_factory=list)
    """Examples written into the configuration itself."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Several sources with weights, instead of data.path."""
    hub_split: str = "train"
    """Split read from a Hub data set given as data.path."""
    hub_revision: str | None = None
    """Commit or tag of a Hub data set."""
    hub_validation_split: str | None = None
    """Split of the same Hub data set that is held out."""
    format: DataFormat = DataFormat.auto
    """Format of the examples; auto detects it and says what it found."""
    chat_template: str | None = None
    """File with a Jinja chat template used instead of the model's own."""
    system_prompt: str | None = None
    """System message put in front of every example that has none; it travels with the tuned model."""
    preamble: str | None = None
    """Text put in front of the first user message of every example; it travels with the tuned model."""
    seq_len_tokens: int = 2048
    """Longest example, and size of a pack, in tokens."""
    over_length: OverLength = OverLength.error
    """What happens to an example longer than seq_len_tokens."""
    packing: bool = True
    """Put several short examples into one sequence (best fit decreasing); attention never crosses between them."""
    task: Task = Task.general
    """What is being taught; sets the advised number of examples."""
    max_input_chars: int | None = None
    """Refuse examples whose input is longer, in characters."""
    max_output_chars: int | None = None
    """Refuse examples whose output is longer, in characters."""
    allow: list[str] = field(default_factory=list)
    """Audit findings, by their code, that are accepted instead of stopping the run."""
    num_workers: int = 0
    """Processes that prepare data; 0 uses all cores."""
    seed: int = 0
    """Seed of the split, of mixture draws and of built-in data."""


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """Which weights are trained."""

    kind: MethodKind = MethodKind.full
    """full trains all weights; lora, dora and qlora train adapters (qlora over a 4-bit base)."""
    rank: int = 16
    """Adapter rank."""
    alpha: float = 32.0
    """Adapter scale; the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of the adapters."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get adapters; all-linear means every one but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    double_quantization: bool = True
    """qlora: quantize the quantization constants too."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """How long and how fast."""

    epochs: float = 3.0
    """Passes over the training data; may be a fraction. Give this or max_steps, not both."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs: what a recipe says of epochs then does not count."""
    lr: float | None = None
    """Peak learning rate; left out, it is computed from model size and method (see the plan)."""
    lr_multiplier: float = 1.0
    """Multiplies the peak learning rate, given or computed."""
    schedule: Schedule = Schedule.cosine
    """Shape after warm-up: constant, linear, cosine, or wsd (stable, then linear decay)."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up, instead of warmup_ratio; cut, with a warning, to one less than all steps."""
    warmup_ratio: float = 0.03
    """Share of all steps spent warming up."""
    decay_ratio: float = 0.2
    """wsd: share of all steps spent decaying at the end."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end as a share of the peak."""
    weight_decay: float = 0.0
    """AdamW weight decay; not applied to norms and biases."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.999
    """AdamW second-moment decay."""
    eps: float = 1e-8
    """AdamW epsilon."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    on_nonfinite: NonFinite = NonFinite.stop
    """What to do when loss or gradient is not finite: stop with the sample ids, or skip the step and say so."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a better held-out loss; 0 never stops early."""
    early_stopping_min_delta: float = 0.0
    """Smallest drop of held-out loss that counts as better."""


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """How model and optimizer are spread over devices, and in which numbers they compute."""

    kind: StrategyKind = StrategyKind.single
    """single, ddp, or DeepSpeed ZeRO stage zero1, zero2, zero3."""
    precision: Precision = Precision.bf16
    """Compute precision; weights that are trained and optimizer state stay fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the model."""
    offload_optimizer: bool = False
    """zero1-3: keep optimizer state in host memory."""
    offload_params: bool = False
    """zero3: keep parameters in host memory."""


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """How much one optimizer step sees; accumulation is derived.

    A sequence is a pack, or one example when packing is off.
    """

    global_sequences: int | None = 8
    """Sequences per optimizer step over all devices."""
    global_tokens: int | None = None
    """Tokens per optimizer step instead; give null to global_sequences. Rounded to whole sequences."""
    micro_sequences: int | None = None
    """Sequences one device takes at once; left out, as many as fit into micro_tokens."""
    micro_tokens: int = 8192
    """Most tokens one device takes at once when micro_sequences is left out."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, what to keep, and how the run protects itself."""

    save_every_steps: int = 0
    """Optimizer steps between saves; 0 saves after each epoch and at the end."""
    keep_last: int = 2
    """Newest committed checkpoints kept; older ones go only after the next one is committed."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest held-out loss."""
    rehearse: bool = True
    """Before the real run: one step on the heaviest batch, one evaluation, one save and load; nothing of it stays."""


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """What is recorded, and where it is shown."""

    eval_every_steps: int = 0
    """Optimizer steps between evaluations on held-out data; 0 evaluates after each epoch only."""
    wandb: WandbMode = WandbMode.auto
    """auto: online with WANDB_API_KEY set, else offline; disabled writes nothing."""
    wandb_project: str = "launcher"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B user or team."""
    tags: list[str] = field(default_factory=list)
    """Free words attached to the run."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run, complete."""

    name: str | None = None
    """Name of the run directory under runs_dir; left out: experiment name and time."""
    runs_dir: str = "runs"
    """Folder that holds run directories."""
    experiment_name: str = "custom"
    """Set by conf/experiment files; part of the default run name."""
    seed: int = 0
    """Seed of data order, dropout and adapter initialisation."""
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
    """What follows from configuration and prepared data; computed once, frozen with them, obeyed by every rank."""

    run_id: str
    """Random hex; the W&B run id, and the mark that tells this run's checkpoints from another's."""
    model_dir: str
    """Folder with config.json, safetensors and tokenizer.json that workers load."""
    data_dir: str
    """Prepared data set (see data/prepared.py)."""
    data_key: str
    """Content hash of the prepared data."""
    device: str
    """cpu or cuda."""
    world_size: int
    """Ranks; a worker that meets another number stops."""
    devices_per_node: int
    threads_per_process: int
    num_packs: int
    """Training sequences after packing."""
    global_sequences: int
    """Sequences per optimizer step."""
    micro_sequences: int
    """Sequences per micro-batch at most."""
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
