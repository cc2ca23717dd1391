"""The plan of a run: what it will do and need. `launcher check` prints it, and every run directory holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.config.checks import has_validation
from launcher.config.devices import host_memory_gib, visible_gpus
from launcher.config.model_files import find_architecture, has_usual_modules
from launcher.config.schema import ArchitectureConfig, Derived, MethodKind, RunConfig, Schedule, StrategyKind
from launcher.config.topology import ASSUMED_GPU_MEMORY_GIB, Topology
from launcher.config.unused_settings import unused_warnings
from launcher.errors import Problem
from launcher.plan.cost import CostEstimate, estimate_cost
from launcher.plan.memory import GIB, Load, MemoryEstimate, checkpoint_bytes, estimate, with_settings
from launcher.plan.parameters import count_parameters, count_trained, matching, module_shapes

# An estimate can be wrong by about this much, so only a miss by more stops a run.
_MARGIN = 1.15
_TIGHT = 0.92


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Counts of the training data that the plan depends on."""

    examples: int
    validation_examples: int
    tokens: int
    supervised_tokens: int
    num_packs: int
    max_pack_tokens: int
    max_pack_supervised: int
    is_estimate: bool = False
    """Nothing was tokenised: tokens and packs are estimates."""
    is_counted: bool = True
    """Whether examples were counted; of very large or distant data they are an estimate too."""

    @property
    def mean_pack_tokens(self) -> float:
        return self.tokens / max(1, self.num_packs)


@dataclass(frozen=True, slots=True)
class Batch:
    """The arithmetic of one optimizer step."""

    world_size: int
    nodes: int
    devices_per_node: int
    device: str
    global_sequences: int
    micro_sequences: int
    grad_accum_steps: int
    tokens_per_step: float
    steps_per_epoch: int
    total_steps: int
    epochs: float
    peak_lr: float
    warmup_steps: int
    lr_is_computed: bool


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory in GiB by item, against what there is."""

    device: dict[str, float]
    device_total: float
    device_limit: float | None
    host: dict[str, float]
    host_total: float
    host_limit: float | None
    advice: list[str]
    """Settings to change, in order, and what each brings the device to; empty where it fits."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Room for checkpoints, in GiB."""

    checkpoint: float
    kept: int
    """Checkpoints that exist at once at most: those kept, the best one, and the one being written."""
    total: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a run that can be known before it; `problems` say why it should not start."""

    model: str
    parameters: int | None
    trained_parameters: int | None
    method: str
    strategy: str
    precision: str
    data: DataFacts
    batch: Batch
    memory: MemoryPlan | None
    disk: Disk | None
    bill: CostEstimate | None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(config: RunConfig, derived: Derived, topology: Topology, facts: DataFacts) -> Plan:
    """The plan of a run. Reads nothing but the model's config.json where its dimensions are not shipped."""
    architecture = find_architecture(config.model, model_dir=derived.model_dir)
    memory = _memory_plan(config, derived, topology, facts, architecture) if architecture is not None else None
    plan = Plan(
        model=config.model.name_or_path,
        parameters=count_parameters(architecture) if architecture is not None else None,
        trained_parameters=count_trained(architecture, config.method) if architecture is not None else None,
        method=config.method.kind.value,
        strategy=config.strategy.kind.value,
        precision=config.strategy.precision.value,
        data=facts,
        batch=_batch(config, derived, facts),
        memory=memory,
        disk=_disk(config, architecture) if architecture is not None else None,
        bill=estimate_cost(config, architecture, derived, topology, epoch_tokens=facts.tokens),
    )
    _judge_memory(plan, config, derived)
    _judge_batch(plan, config)
    _judge_steps(plan, config)
    if architecture is not None and config.method.kind is not MethodKind.full:
        _judge_adapters(plan, config, architecture, derived.model_dir)
    if derived.device == "cpu" and config.cluster.gpu_memory_gib not in (None, ASSUMED_GPU_MEMORY_GIB):
        plan.warnings.append(
            f"cluster.gpu_memory_gib = {config.cluster.gpu_memory_gib:g} has no effect: this plan is for a CPU; "
            "cluster.device=cuda plans for GPUs"
        )
    plan.warnings.extend(unused_warnings(config))
    return plan


def _batch(config: RunConfig, derived: Derived, facts: DataFacts) -> Batch:
    return Batch(
        world_size=derived.world_size,
        nodes=config.cluster.nodes,
        devices_per_node=derived.devices_per_node,
        device=derived.device,
        global_sequences=derived.global_sequences,
        micro_sequences=derived.micro_sequences,
        grad_accum_steps=derived.grad_accum_steps,
        tokens_per_step=derived.global_sequences * facts.mean_pack_tokens,
        steps_per_epoch=derived.steps_per_epoch,
        total_steps=derived.total_steps,
        epochs=derived.total_steps / derived.steps_per_epoch,
        peak_lr=derived.peak_lr,
        warmup_steps=derived.warmup_steps,
        lr_is_computed=config.optim.lr is None,
    )


def _load(micro_sequences: int, facts: DataFacts) -> Load:
    return Load(micro_sequences * facts.max_pack_tokens, micro_sequences * facts.max_pack_supervised)


def _memory_plan(
    config: RunConfig, derived: Derived, topology: Topology, facts: DataFacts, architecture: ArchitectureConfig
) -> MemoryPlan:
    need = estimate(config, architecture, topology, _load(derived.micro_sequences, facts))
    limit = topology.gpu_memory_gib if topology.device == "cuda" else None
    host_limit = config.cluster.host_memory_gib
    runs_here = not config.cluster.is_slurm and (derived.device == "cpu" or bool(visible_gpus()))
    if host_limit is None and runs_here:  # a host without GPUs plans for another one
        host_limit = host_memory_gib()
    exceeds = limit is not None and need.device_total > limit * GIB
    return MemoryPlan(
        device=_in_gib(need.device),
        device_total=need.device_total / GIB,
        device_limit=limit,
        host=_in_gib(need.host),
        host_total=need.host_total / GIB,
        host_limit=host_limit,
        advice=_advice(config, derived, topology, facts, architecture) if exceeds else [],
    )


def _in_gib(items: dict[str, float]) -> dict[str, float]:
    return {name: size / GIB for name, size in items.items()}


def _advice(
    config: RunConfig, derived: Derived, topology: Topology, facts: DataFacts, architecture: ArchitectureConfig
) -> list[str]:
    """Settings to change one after the other until it fits, cheapest first; those that save little are left out."""
    micro = derived.micro_sequences

    def need(candidate: RunConfig) -> MemoryEstimate:
        sequences = min(micro, candidate.batch.micro_sequences or micro)
        return estimate(candidate, architecture, topology, _load(sequences, facts))

    steps: list[tuple[str, dict[str, object]]] = []
    current = need(config).device_total
    for setting, changes in _remedies(config, derived):
        candidate = with_settings(config, **changes)
        total = need(candidate).device_total
        if total > 0.97 * current:
            continue
        config, current = candidate, total
        # A later setting of the same keys replaces an earlier one: zero2 after zero1.
        steps = [step for step in steps if not step[1].keys() <= changes.keys()]
        steps.append((f"{setting} brings it to {total / GIB:.1f} GiB", changes))
        if total <= _TIGHT * topology.gpu_memory_gib * GIB:
            return [line for line, _ in steps]
    return [*(line for line, _ in steps), "that is still too much: use a smaller model, or GPUs with more memory"]


def _remedies(config: RunConfig, derived: Derived) -> list[tuple[str, dict[str, object]]]:
    """Settings to try, what costs least first. Each is tried on top of those before it."""
    strategy, method = config.strategy.kind, config.method.kind
    remedies: list[tuple[str, dict[str, object]]] = []
    if not config.strategy.activation_checkpointing:
        remedies.append(("strategy.activation_checkpointing=true", {"strategy__activation_checkpointing": True}))
    if derived.micro_sequences > 1:
        remedies.append(("batch.micro_sequences=1", {"batch__micro_sequences": 1}))
    if method is MethodKind.full:
        if derived.world_size > 1:
            stages = (StrategyKind.zero1, StrategyKind.zero2, StrategyKind.zero3)
            later = stages[stages.index(strategy) + 1 :] if strategy in stages else stages
            remedies += [(f"strategy.kind={kind.value}", {"strategy__kind": kind}) for kind in later]
        remedies.append(("strategy=zero3_offload", _OFFLOAD))
        remedies.append(("method=lora", {"method__kind": MethodKind.lora}))
    else:
        if strategy is not StrategyKind.zero3:  # which cannot divide a 4-bit base
            remedies.append(("method=qlora", {"method__kind": MethodKind.qlora}))
        remedies.append(("method=lora strategy=zero3_offload", _OFFLOAD | {"method__kind": MethodKind.lora}))
    return remedies


_OFFLOAD: dict[str, object] = {
    "strategy__kind": StrategyKind.zero3,
    "strategy__activation_checkpointing": True,
    "strategy__offload_optimizer": True,
    "strategy__offload_params": True,
}


def _disk(config: RunConfig, architecture: ArchitectureConfig) -> Disk:
    size = checkpoint_bytes(config, architecture) / GIB
    kept = config.checkpoint.keep_last + 1 + (config.checkpoint.keep_best and has_validation(config))
    return Disk(checkpoint=size, kept=kept, total=size * kept)


def _judge_memory(plan: Plan, config: RunConfig, derived: Derived) -> None:
    memory = plan.memory
    if memory is None:
        plan.warnings.append(
            "the dimensions of this model are not known, so memory, disk and time are not planned; "
            "fetch the model, or give model.architecture.*"
        )
        return
    if memory.device_limit is not None:
        used = memory.device_total / memory.device_limit
        text = f"each GPU needs about {memory.device_total:.1f} of {memory.device_limit:.0f} GiB"
        hint = "; ".join(memory.advice)
        if used > _MARGIN:
            plan.problems.append(Problem("cluster.gpu_memory_gib", memory.device_limit, text, hint))
        elif used > _TIGHT:
            plan.warnings.append(f"{text}: it may not fit" + (f"; {hint}" if hint else ""))
    if memory.host_limit is not None and memory.host_total > memory.host_limit:
        text = f"each node needs about {memory.host_total:.0f} of {memory.host_limit:.0f} GiB"
        offloads = config.strategy.offload_optimizer or config.strategy.offload_params
        hint = "use more nodes, or offload less" if offloads else "use a smaller batch or model, or strategy=zero3"
        if derived.device == "cuda" and memory.host_total > _MARGIN * memory.host_limit:
            plan.problems.append(Problem("cluster.host_memory_gib", memory.host_limit, text, hint))
        else:
            plan.warnings.append(f"{text}: {hint}")


def _judge_batch(plan: Plan, config: RunConfig) -> None:
    batch, facts, warn = plan.batch, plan.data, plan.warnings.append
    sequences, tokens, micro = config.batch.global_sequences, config.batch.global_tokens, config.batch.micro_sequences
    # Nothing is concluded from guesses: until the data is prepared, tokens are one, and so is the number of packs.
    knows_sequences = facts.is_counted and not (facts.is_estimate and config.data.packing)
    one_step = "every epoch is one step"
    if knows_sequences and sequences is not None and batch.global_sequences < sequences:
        found = f"the data has only {facts.num_packs} sequences"
        warn(f"{found}, fewer than batch.global_sequences = {sequences}: {one_step}")
    if not facts.is_estimate and tokens is not None and tokens > facts.tokens:
        warn(f"the data has only {facts.tokens:,} tokens, fewer than batch.global_tokens = {tokens:,}: {one_step}")
    if micro is not None and batch.grad_accum_steps == 1 and batch.micro_sequences < micro:
        taken = batch.micro_sequences
        warn(f"batch.micro_sequences = {micro} is more than a step has for one device: each takes {taken}")
    if batch.world_size > batch.global_sequences:
        idle = batch.world_size - batch.global_sequences
        warn(f"{idle} of {batch.world_size} devices get nothing to do: raise batch.global_sequences")
    if batch.total_steps < 10 and _steps_are_known(plan, config):
        warn(f"only {batch.total_steps} optimizer steps: lower batch.global_sequences or raise optim.epochs")
    if facts.is_estimate:
        what = "tokens are" if facts.is_counted else "examples and tokens are"
        warn(f"the data is not prepared: {what} estimated (4 bytes a token)")


def _judge_steps(plan: Plan, config: RunConfig) -> None:
    """Settings in steps that do not fit into the run."""
    if not _steps_are_known(plan, config):
        return
    optim, total, warmup, warn = config.optim, plan.batch.total_steps, plan.batch.warmup_steps, plan.warnings.append
    if optim.warmup_steps is not None and optim.warmup_steps > warmup:
        warn(
            f"optim.warmup_steps = {optim.warmup_steps:,} is more than this run of {_steps(total)} has room for: "
            f"cut to {warmup:,}, so the peak learning rate is reached in the last step only"
        )
    decay = round(total * optim.decay_ratio)
    if optim.schedule is Schedule.wsd and decay > total - warmup:
        warn(
            f"optim.decay_ratio = {optim.decay_ratio:g} asks for {_steps(decay)} of decay, but warm-up leaves "
            f"{total - warmup:,} of {total:,}: the decay is cut to that"
        )
    # The end of an epoch saves and evaluates in any case.
    for key, every, effect in (
        ("checkpoint.save_every_steps", config.checkpoint.save_every_steps, "only the end is saved"),
        ("track.eval_every_steps", config.track.eval_every_steps, "validation runs after each epoch only"),
    ):
        if every > total:
            warn(f"{key} = {every:,} is more than this run of {_steps(total)}: {effect}")


def _steps_are_known(plan: Plan, config: RunConfig) -> bool:
    """Whether the number of steps is more than a guess: without packing, counting examples is enough."""
    facts = plan.data
    by_examples = facts.is_counted and not config.data.packing and config.batch.global_tokens is None
    return config.optim.max_steps is not None or not facts.is_estimate or by_examples


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _judge_adapters(plan: Plan, config: RunConfig, architecture: ArchitectureConfig, model_dir: str) -> None:
    """Modules the model does not have. A problem only where the names of its modules are known."""
    key, named, shapes = "method.target_modules", config.method.target_modules, module_shapes(architecture)
    absent = ", ".join(name for name in named if name != "all-linear" and not matching(shapes, name))
    if not absent:
        return
    if has_usual_modules(config.model, model_dir=model_dir):
        ours = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in shapes))
        hint = f"Give all-linear, or some of: {ours}"
        plan.problems.append(Problem(key, named, f"the model has no module named {absent}", hint))
    else:
        plan.warnings.append(
            f"{key} = {named}: the module names of this model are not known here, so {absent} could not be checked and "
            "does not count in memory and disk; training stops if none of the names matches"
        )
