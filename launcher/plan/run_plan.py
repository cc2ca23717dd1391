"""From a composed configuration to all that is known before a run: model files, prepared data, derived values, plan.

`launcher train`, `launcher check` and the worker share it, so that all of them plan the same run.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.devices import visible_gpus
from launcher.config.model_files import ModelSource, embedded_folder, find_model, model_source
from launcher.config.schema import Derived, ModelConfig, RunConfig
from launcher.config.topology import measured_gpu_memory_gib, resolve_topology
from launcher.data.audit import RULES, AuditFinding
from launcher.data.prepare import PreparedInfo, Progress, find_prepared, prepare
from launcher.data.prepared import Prepared
from launcher.data.sources import HUB, find_sources
from launcher.demo.embedded_model import ensure_embedded
from launcher.errors import ConfigErrors, ModelError, NotFetched, Problem
from launcher.plan.batch import derive
from launcher.plan.estimate_data import READ_BYTES, estimate_data
from launcher.plan.plan import DataFacts, Plan, make_plan

logger = logging.getLogger(__name__)
_PROGRESS_EVERY_S = 5.0
_SMALL_BYTES = READ_BYTES
# For planning with a Hub dataset that was not fetched yet.
_HUB_EXAMPLES = 10_000
_HUB_TOKENS = 2_500_000


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that could start now."""

    config: RunConfig
    derived: Derived
    plan: Plan
    prepared: PreparedInfo | None
    """None in a plan made without preparing the data."""
    findings: tuple[AuditFinding, ...] = ()
    """Of the audit, as far as it went."""
    unaudited: str = ""
    """Description of what the audit has not seen yet; empty once the data is prepared."""


def plan_run(config: RunConfig) -> PlannedRun:
    """A complete plan; fetches or converts the model and prepares the data if necessary.

    Raises:
        ConfigErrors: the plan has problems. ModelError, DataError: with what to do.
    """
    model_dir = locate_model(config.model)
    prepared = prepare(config, model_dir, progress=_log_progress())
    planned = _planned(config, model_dir, prepared, data_facts(prepared))
    if planned.plan.problems:
        raise ConfigErrors(planned.plan.problems)
    return planned


def _log_progress() -> Progress:
    """Logs the progress of preparing data every few seconds; nothing if it is done before."""
    last = time.monotonic()

    def log(examples: int, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_EVERY_S:
            last = time.monotonic()
            logger.info("preparing data: %d examples, %.0f %%", examples, 100 * share)

    return log


def plan_cheaply(config: RunConfig) -> PlannedRun:
    """A plan without downloads or long work: prepares small local data, and estimates other data without a tokenizer;
    `unaudited` then describes what was left out.

    Raises:
        DataError: the data cannot be found or read. What the audit refuses is among the plan's problems.
    """
    try:
        model_dir = locate_model(config.model, weights=False, download=False)
    except ModelError:  # not fetched or converted yet; its dimensions may still be known
        model_dir = None
    if model_dir is not None and (prepared := _prepare_if_small(config, model_dir)) is not None:
        planned = _planned(config, model_dir, prepared, data_facts(prepared))
    else:
        planned = _plan_unprepared(config, model_dir)
    planned.plan.problems.extend(finding.as_problem() for finding in planned.findings if finding.blocks)
    return planned


def _plan_unprepared(config: RunConfig, model_dir: Path | None) -> PlannedRun:
    try:
        sources = find_sources(config.data, download=False)
    except NotFetched:
        planned = _planned(config, model_dir, None, _hub_facts(config))
        return replace(planned, unaudited="the dataset was not fetched from the Hub yet")
    estimate = estimate_data(config.data, sources)
    planned = _planned(config, model_dir, None, estimate.facts)
    limit = config.data.seq_len_tokens
    if estimate.num_long:
        planned.plan.warnings.append(
            f"data: about {estimate.num_long:,} of the examples read look longer than data.seq_len_tokens = {limit:,}"
        )
    unseen = "lengths in tokens and the chat template were not checked"
    if model_dir is None:
        is_embedded = model_source(config.model.name_or_path) is ModelSource.embedded
        unseen += f" (the model {'was not converted yet' if is_embedded else 'is not on this host'})"
    unaudited = f"{estimate.unread}, and {unseen}" if estimate.unread else unseen
    return replace(planned, findings=estimate.audit.findings, unaudited=unaudited)


def _undivided(config: RunConfig) -> list[str]:
    """A warning where data.validation_fraction has no effect, because the data brings a validation set."""
    fraction = config.data.validation_fraction
    try:
        validation = find_sources(config.data, download=False).validation if fraction > 0 else ()
    except NotFetched:
        return []
    if not validation:
        return []
    return [f"data.validation_fraction = {fraction:g} has no effect: {validation[0].name} is the validation set"]


def prepares_quickly(config: RunConfig, *, look_only: bool = False) -> bool:
    """Whether the data is small, prepared already, or on a Hub, which nodes of a cluster often cannot reach.

    Args:
        look_only: fetch nothing; a model that is not here yet then means that nothing is prepared.
    Raises:
        ModelError, DataError: the model cannot be fetched, or the data cannot be found or read.
    """
    size = _local_bytes(config)
    if size is None or size <= _SMALL_BYTES:
        return True
    try:
        model_dir = locate_model(config.model, weights=not look_only, download=not look_only)
    except ModelError:
        if look_only:
            return False
        raise
    return find_prepared(config, model_dir) is not None


def locate_model(model: ModelConfig, *, weights: bool = True, download: bool = True) -> Path:
    """As find_model; the embedded model is converted first if `download` allows such work."""
    is_embedded = model_source(model.name_or_path) is ModelSource.embedded
    name = model.name_or_path.partition(":")[2]
    if is_embedded and download and not embedded_folder(name).is_dir():
        ensure_embedded(name)
    return find_model(model, weights=weights, download=download)


def allow_problems(config: RunConfig) -> list[Problem]:
    """Codes in data.allow that no audit finding has, or that cannot be accepted."""
    problems = []
    for code in config.data.allow:
        if code not in RULES:
            problems.append(Problem("data.allow", code, "there is no such audit finding", "docs/data.md lists them"))
        elif not RULES[code].can_allow:
            problems.append(Problem("data.allow", code, "this finding cannot be accepted", RULES[code].hint))
    return problems


def data_facts(prepared: PreparedInfo) -> DataFacts:
    """Counts of prepared data."""
    train = prepared.train
    # only counted here; the audit decides whether it may be trained on
    packs = Prepared.open(prepared.folder, "train", allow_blocked=True)
    return DataFacts(
        examples=train.num_examples,
        validation_examples=prepared.validation.num_examples if prepared.validation else 0,
        tokens=train.num_tokens,
        supervised_tokens=train.num_supervised_tokens,
        num_packs=train.num_packs,
        max_pack_tokens=train.longest_pack_tokens,
        max_pack_supervised=int(packs.pack_supervised.max(initial=0)),
    )


def _hub_facts(config: RunConfig) -> DataFacts:
    """Assumed counts, so that memory can be planned: a Hub dataset that is not here counts as 10 MB."""
    longest = config.data.seq_len_tokens
    return DataFacts(
        examples=_HUB_EXAMPLES,
        validation_examples=0,
        tokens=_HUB_TOKENS,
        supervised_tokens=_HUB_TOKENS // 2,
        num_packs=-(-_HUB_TOKENS // longest) if config.data.packing else _HUB_EXAMPLES,
        max_pack_tokens=longest,
        max_pack_supervised=longest,  # the worst case
        is_estimate=True,
        is_counted=False,
    )


def _prepare_if_small(config: RunConfig, model_dir: Path) -> PreparedInfo | None:
    size = _local_bytes(config)
    if size is not None and size <= _SMALL_BYTES:
        return prepare(config, model_dir, allow_blocked=True)
    return find_prepared(config, model_dir, allow_blocked=True)


def _local_bytes(config: RunConfig) -> int | None:
    """Size of the data; None when it must be fetched from the Hub first."""
    paths = [config.data.path, config.data.validation_path, *(source.path for source in config.data.mixture)]
    if any(path is not None and path.startswith(HUB) for path in paths):
        return None
    return sum(source.size_bytes for source in find_sources(config.data).all())


def _planned(config: RunConfig, model_dir: Path | None, prepared: PreparedInfo | None, facts: DataFacts) -> PlannedRun:
    gpus = visible_gpus()
    topology = resolve_topology(config, gpus)
    derived = derive(config, facts, topology, run_id=secrets.token_hex(8), model_dir=str(model_dir or ""))
    if prepared is not None:
        derived = replace(derived, data_dir=str(prepared.folder), data_key=prepared.key)
    plan = make_plan(config, derived, topology, facts)
    plan.warnings.extend(_undivided(config))
    is_known = config.cluster.gpu_memory_gib is not None or measured_gpu_memory_gib(config, gpus) is not None
    if topology.device == "cuda" and not is_known:
        plan.warnings.append(
            f"the memory of the GPUs is not known here, {topology.gpu_memory_gib:g} GiB are assumed: "
            "give cluster.gpu_memory_gib"
        )
    return PlannedRun(
        config=config,
        derived=derived,
        plan=plan,
        prepared=prepared,
        findings=prepared.audit.findings if prepared is not None else (),
    )
