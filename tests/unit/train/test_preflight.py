"""The preflight: the batch that needs most memory, and what was planned for it."""

from __future__ import annotations

import pytest

from launcher.config.model_files import find_architecture
from launcher.plan.memory import Load, micro_batch_bytes
from launcher.runs.events import read_events
from launcher.train.preflight import find_heaviest, rehearse
from tests.unit.train.conftest import OpenRun


@pytest.mark.parametrize("vocab_size", [16, 128_256])
def test_the_batch_is_chosen_by_memory_and_not_by_tokens(open_run: OpenRun, vocab_size: int) -> None:
    """With a large vocabulary a supervised token needs far more than one of context."""
    run = open_run("batch.global_sequences=2", "batch.micro_sequences=1")
    architecture = find_architecture(run.config.model, model_dir=run.derived.model_dir)
    assert architecture is not None
    architecture.vocab_size = vocab_size
    run.config.model.architecture = architecture
    data = run.train_data

    def need(packs: list[int]) -> float:
        load = Load(int(data.pack_lengths[packs].sum()), int(data.pack_supervised[packs].sum()))
        return micro_batch_bytes(run.config, architecture, load)

    step, packs = find_heaviest(run)
    assert packs in [micro for rank in run.slots(step) for micro in rank]
    steps = range(run.order.steps_per_epoch)
    assert need(packs) == max(need(micro) for one in steps for rank in run.slots(one) for micro in rank if micro)


def test_what_it_needed_is_recorded_beside_the_plan(open_run: OpenRun) -> None:
    run = open_run()
    rehearse(run)
    (event,) = [event for event in read_events(run.paths.events) if event.event == "rehearsal"]
    memory_gib = event.fields["memory_gib"]
    assert isinstance(memory_gib, float) and memory_gib > 0.1
    assert "planned_gib" in event.fields
    _, packs = find_heaviest(run)
    assert event.fields["tokens"] == int(run.train_data.pack_lengths[packs].sum())
    assert event.fields["supervised_tokens"] == int(run.train_data.pack_supervised[packs].sum())
