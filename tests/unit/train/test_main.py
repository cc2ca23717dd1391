"""What the training entry point notes about its own start."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from launcher.config.schema import Attention
from launcher.errors import ConfigErrors
from launcher.train import main
from tests.unit.train.conftest import OpenRun

_TELL = "import time; from launcher.train.main import seconds_since_process_start as s; print(s(), time.time())"


def test_a_process_knows_its_age_to_a_few_hundredths_of_a_second() -> None:
    """The moment of boot is known in whole seconds, by which an age counted from it may be wrong."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True, check=True)
    age_s, told = (float(word) for word in done.stdout.split()[-2:])
    assert age_s == pytest.approx(told - began, abs=0.2)


@pytest.mark.parametrize(
    ("wanted", "capability", "kernel"),
    [("auto", (7, 5), "segments"), ("auto", (8, 0), "varlen"), ("auto", None, "varlen")],
)
def test_a_job_planned_without_knowing_its_gpus_takes_a_kernel_that_they_have(
    wanted: str, capability: tuple[int, int] | None, kernel: str, open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(f"model.attention={wanted}", "strategy.precision=fp32")
    monkeypatch.setattr(main, "capability_of", lambda device: capability)
    planned = replace(run.derived, attention="varlen")
    again = main.prepare_run(run.paths, run.config, planned, attempt=1, world=run.world, recorder=run.recorder)
    assert again.derived.attention == kernel


def test_a_kernel_that_was_asked_for_and_is_not_there_is_refused(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run("strategy.precision=fp32")
    monkeypatch.setattr(main, "capability_of", lambda device: (7, 0))
    run.config.model.attention = Attention.varlen
    planned = replace(run.derived, attention="varlen")
    with pytest.raises(ConfigErrors, match=r"model\.attention = 'varlen'.*7\.0.*Use model\.attention=segments"):
        main.prepare_run(run.paths, run.config, planned, attempt=1, world=run.world, recorder=run.recorder)
