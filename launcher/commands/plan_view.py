"""How a plan looks on a terminal."""

from __future__ import annotations

from rich.console import Console

from launcher.commands.console import fact_table, print_trimmed
from launcher.config.schema import RunConfig
from launcher.data.audit import AuditFinding
from launcher.plan.plan import Batch, DataFacts, Plan

_SHOWN_PLACES = 2
_PLAIN_WIDTH = 120


def print_plan(plan: Plan, config: RunConfig, *, width: int | None = None) -> None:
    """Prints a plan, fact by fact; by default as wide as the terminal."""
    console = Console(highlight=False, width=width)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    print_trimmed(console, fact_table(_rows(plan, config), label_style="bold"))


def summary(plan: Plan) -> str:
    """A plan in two lines."""
    data, batch = plan.data, plan.batch
    about = "about " if data.is_estimate else ""
    product = f"{batch.world_size} x {batch.micro_sequences} x {batch.grad_accum_steps}"
    return (
        f"{plan.model}: {plan.method}, {plan.strategy}, {plan.precision}, {_ranks(batch)}\n"
        f"{about}{data.examples:,} training and {data.validation_examples:,} validation examples, "
        f"{data.tokens:,} tokens an epoch; {about}{batch.total_steps:,} steps of {batch.global_sequences} sequences "
        f"({product}), {batch.epochs:.4g} epochs, peak learning rate {batch.peak_lr:.2g}"
    )


def in_short(finding: AuditFinding) -> str:
    """An audit finding on one line, with its first places."""
    places = "; ".join(str(place) for place in finding.places[:_SHOWN_PLACES])
    more = "; ..." if finding.count > _SHOWN_PLACES and places else ""
    where = f" ({places}{more})" if places else ""
    return f"data: {finding.what}: {finding.count}{where}. {finding.hint} [{finding.code}]"


def _rows(plan: Plan, config: RunConfig) -> list[tuple[str, str]]:
    batch, data = plan.batch, plan.data
    product = f"{batch.world_size} x {batch.micro_sequences} x {batch.grad_accum_steps}"
    sequences = f"{batch.global_sequences} sequences a step (about {batch.tokens_per_step:,.0f} tokens)"
    rows = [
        ("model", _model(plan)),
        ("data", _data(data)),
        ("", _sequences(data, packed=config.data.packing)),
        ("ranks", f"{_ranks(batch)}, {plan.strategy}, {plan.precision}"),
        ("batch", f"{sequences}, in {product} (devices x micro-batch x accumulation)"),
        ("steps", f"{batch.total_steps:,} steps: {batch.epochs:.4g} epochs of {batch.steps_per_epoch:,}"),
        ("learning", _learning(plan, config)),
    ]
    if (memory := plan.memory) is not None:
        unit = "each GPU" if batch.device == "cuda" else "each process"
        rows.append(("memory", f"{unit}: {_share(memory.device, memory.device_total, memory.device_limit)}"))
        rows.append(("", f"each node: {_share(memory.host, memory.host_total, memory.host_limit)}"))
    if (disk := plan.disk) is not None:
        rows.append(("disk", f"{_gib(disk.checkpoint)} a checkpoint, up to {disk.kept} at once: {_gib(disk.total)}"))
    if (bill := plan.bill) is not None:
        device_hours = f"{bill.device_hours:,.3g}" if bill.device_hours >= 0.01 else "under 0.01"
        speed = f"{bill.total_tokens:,} tokens at {bill.tokens_per_s:,.0f} a second ({bill.speed_source})"
        rows.append(("time", f"about {_duration(bill.hours)}, {device_hours} device-hours: {speed}"))
        if bill.cost is not None:
            price = config.cluster.price_per_device_hour
            rows.append(("cost", f"{bill.cost:,.2f} at {price:g} a device-hour"))
    return rows


def _model(plan: Plan) -> str:
    if plan.parameters is None or plan.trained_parameters is None:
        return f"{plan.model}, {plan.method}"
    is_full = plan.parameters == plan.trained_parameters
    trained = "all trained" if is_full else f"{_count(plan.trained_parameters)} trained"
    return f"{plan.model}: {_count(plan.parameters)} parameters, {trained} ({plan.method})"


def _data(data: DataFacts) -> str:
    share = data.supervised_tokens / max(1, data.tokens)
    return (
        f"{'' if data.is_counted else 'about '}{data.examples:,} training and {data.validation_examples:,} validation "
        f"examples; {'about ' if data.is_estimate else ''}{data.tokens:,} tokens an epoch, "
        f"{data.supervised_tokens:,} of them supervised ({share:.0%})"
    )


def _sequences(data: DataFacts, *, packed: bool) -> str:
    kind = "packs" if packed else "sequences (packing is off)"
    return (
        f"{data.num_packs:,} {kind}, {data.mean_pack_tokens:,.0f} tokens on average, longest {data.max_pack_tokens:,}"
    )


def _ranks(batch: Batch) -> str:
    one, many = ("GPU", "GPUs") if batch.device == "cuda" else ("CPU process", "CPU processes")
    nodes = f" on {batch.nodes} nodes" if batch.nodes > 1 else ""
    return f"{batch.world_size} {one if batch.world_size == 1 else many}{nodes}"


def _learning(plan: Plan, config: RunConfig) -> str:
    batch, data = plan.batch, "estimated tokens" if plan.data.is_estimate else "data"
    origin = f"computed from model, method and {data}" if batch.lr_is_computed else "given"
    warmup = f"{batch.warmup_steps:,} step{'' if batch.warmup_steps == 1 else 's'}"
    return f"peak {batch.peak_lr:.3g} ({origin}), {warmup} of warm-up, {config.optim.schedule.value}"


def _share(items: dict[str, float], total: float, limit: float | None) -> str:
    """3.4 of 80 GiB (weights 1.2, gradients 0.4, ...)."""
    of = "" if limit is None else f" of {limit:.0f}"
    parts = ", ".join(f"{name} {size:.1f}" for name, size in items.items() if size >= 0.05)
    return f"{total:.1f}{of} GiB" + (f" ({parts})" if parts else "")


def _count(number: int) -> str:
    """134.5M, 8.03B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def _gib(size: float) -> str:
    return f"{size:,.1f} GiB" if size >= 1 else f"{size * 1024:,.0f} MiB"


def _duration(hours: float) -> str:
    for size, unit in ((24.0, "days"), (1.0, "hours"), (1 / 60, "minutes")):
        if hours >= (2 if unit == "days" else 1.5) * size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds" if hours * 3600 >= 1.5 else "a second"
