"""How a plan looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from launcher.plan.cost import CostEstimate
from launcher.plan.plan import Batch, DataFacts, MemoryPlan, Plan

if TYPE_CHECKING:
    from rich.console import Console

    from launcher.config.schema import RunConfig
    from launcher.data.audit import AuditFinding

_SHOWN_PLACES = 2


def print_plan(console: Console, plan: Plan, config: RunConfig) -> None:
    """Prints a plan without the blanks rich pads its tables with."""
    with console.capture() as caught:
        console.print(plan_view(plan, config))
    print("\n".join(line.rstrip() for line in caught.get().splitlines()))


def in_short(finding: AuditFinding) -> str:
    """An audit finding on one line, with its first places."""
    places = "; ".join(str(place) for place in finding.places[:_SHOWN_PLACES])
    more = "; ..." if finding.count > _SHOWN_PLACES and places else ""
    where = f" ({places}{more})" if places else ""
    return f"data: {finding.what}: {finding.count}{where}. {finding.hint} [{finding.code}]"


def plan_view(plan: Plan, config: RunConfig) -> RenderableType:
    """A plan, fact by fact."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for label, text in _lines(plan, config):
        facts.add_row(label, escape(text))
    return facts


def _lines(plan: Plan, config: RunConfig) -> list[tuple[str, str]]:
    batch = plan.batch
    lines = [
        ("model", _model(plan)),
        ("data", _data(plan.data)),
        ("", _sequences(plan.data, packed=config.data.packing)),
        ("ranks", _ranks(batch, plan)),
        ("batch", _batch(batch)),
        ("steps", _steps(batch)),
        ("learning", _learning(plan, config)),
    ]
    if plan.memory is not None:
        lines += _memory(plan.memory, batch.device)
    if plan.disk is not None:
        disk = plan.disk
        lines.append(("disk", f"{gib(disk.checkpoint)} a checkpoint, up to {disk.kept} at once: {gib(disk.total)}"))
    if plan.bill is not None:
        lines.append(("time", _time(plan.bill)))
        if plan.bill.cost is not None:
            lines.append(("cost", f"{plan.bill.cost:,.2f} at {config.cluster.price_per_device_hour:g} a device-hour"))
    return lines


def _model(plan: Plan) -> str:
    if plan.parameters is None or plan.trained_parameters is None:
        return f"{plan.model}, {plan.method}"
    trained = (
        "all trained" if plan.parameters == plan.trained_parameters else f"{count(plan.trained_parameters)} trained"
    )
    return f"{plan.model}: {count(plan.parameters)} parameters, {trained} ({plan.method})"


def _data(data: DataFacts) -> str:
    share = data.supervised_tokens / max(1, data.tokens)
    about = "about " if data.is_estimate else ""
    examples = f"{data.examples:,} training and {data.validation_examples:,} validation examples"
    return (
        f"{'' if data.is_counted else 'about '}{examples}; {about}{data.tokens:,} tokens an epoch, "
        f"{data.supervised_tokens:,} of them supervised ({share:.0%})"
    )


def _sequences(data: DataFacts, *, packed: bool) -> str:
    kind = "packs" if packed else "sequences (packing is off)"
    return (
        f"{data.num_packs:,} {kind}, {data.mean_pack_tokens:,.0f} tokens on average, longest {data.max_pack_tokens:,}"
    )


def _ranks(batch: Batch, plan: Plan) -> str:
    unit = "GPU" if batch.device == "cuda" else "CPU process"
    plural = "" if batch.world_size == 1 else ("s" if unit == "GPU" else "es")
    places = f" on {batch.nodes} machines" if batch.nodes > 1 else ""
    return f"{batch.world_size} {unit}{plural}{places}, {plan.strategy}, {plan.precision}"


def _batch(batch: Batch) -> str:
    product = f"{batch.world_size} x {batch.micro_sequences} x {batch.grad_accum_steps}"
    return (
        f"{batch.global_sequences} sequences a step (about {batch.tokens_per_step:,.0f} tokens), in "
        f"{product} (devices x micro-batch x accumulation)"
    )


def _steps(batch: Batch) -> str:
    return f"{batch.total_steps:,} steps: {batch.epochs:.4g} epochs of {batch.steps_per_epoch:,}"


def _learning(plan: Plan, config: RunConfig) -> str:
    batch, data = plan.batch, "estimated tokens" if plan.data.is_estimate else "data"
    origin = f"computed from model, method and {data}" if batch.lr_is_computed else "given"
    warmup = f"{batch.warmup_steps:,} step{'' if batch.warmup_steps == 1 else 's'}"
    return f"peak {batch.peak_lr:.3g} ({origin}), {warmup} of warm-up, {config.optim.schedule.value}"


def _time(bill: CostEstimate) -> str:
    device_hours = f"{bill.device_hours:,.3g}" if bill.device_hours >= 0.01 else "under 0.01"
    return (
        f"about {duration(bill.hours)}, {device_hours} device-hours: {bill.total_tokens:,} tokens at "
        f"{bill.tokens_per_s:,.0f} a second ({bill.speed_source})"
    )


def _memory(memory: MemoryPlan, device: str) -> list[tuple[str, str]]:
    unit = "each GPU" if device == "cuda" else "each process"
    return [
        ("memory", f"{unit}: {_share(memory.device, memory.device_total, memory.device_limit)}"),
        ("", f"each machine: {_share(memory.host, memory.host_total, memory.host_limit)}"),
    ]


def _share(items: dict[str, float], total: float, limit: float | None) -> str:
    """3.4 of 80 GiB (weights 1.2, gradients 0.4, ...)."""
    of = "" if limit is None else f" of {limit:.0f}"
    parts = ", ".join(f"{name} {size:.1f}" for name, size in items.items() if size >= 0.05)
    return f"{total:.1f}{of} GiB" + (f" ({parts})" if parts else "")


def count(number: int) -> str:
    """134.5M, 8.03B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def gib(size: float) -> str:
    """1.5 GiB, or MiB where it is small."""
    return f"{size:,.1f} GiB" if size >= 1 else f"{size * 1024:,.0f} MiB"


def duration(hours: float) -> str:
    """Seconds, minutes, hours or days, in the unit a person would choose."""
    seconds = hours * 3600
    for size, unit in ((172_800, "days"), (5400, "hours"), (90, "minutes")):
        if seconds >= size:
            divisor = {"days": 86_400, "hours": 3600, "minutes": 60}[unit]
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
