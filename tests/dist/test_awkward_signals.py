"""A stop signal at the worst moment: a good checkpoint or a clean exit, soon, and then the same run bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed, newest_verified
from launcher.paths import RunPaths
from launcher.errors import ExitCode
from launcher.runs.events import read_events
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run, new_attempt
from tests.dist.trouble import MOMENTS
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

SETTINGS = ["strategy=zero2", "optim.max_steps=4", "track.eval_every_steps=2", "checkpoint.save_every_steps=2"]
LONGEST_S = 30.0

ALL, ONE = [0, 1], [1]
OFTEN = [("before the group", ONE), ("model load", ONE), ("rehearsal", ONE), ("evaluation", ONE), ("save", ALL)]
CASES = [
    pytest.param(
        moment,
        who,
        twice,
        id=f"{moment}-{'+'.join(map(str, who))}{'-twice' if twice else ''}",
        marks=[] if (moment, who) in OFTEN and twice == (moment == "save") else pytest.mark.nightly,
    )
    for moment in MOMENTS
    for who, twice in ((ALL, False), (ALL, True), ([0], False), (ONE, False))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("awkward") / "model", dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("awkward") / "data")


def curve(run: Path) -> list[tuple[int, str]]:
    metrics = read_metrics(RunPaths(run).metrics)
    return [(r.step, r.loss.hex()) for r in metrics.steps] + [(e.step, e.loss.hex()) for e in metrics.evals]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks, model: Path, data: Path) -> Path:
    run = make_run(tmp_path_factory.mktemp("awkward") / "golden", model, data, *SETTINGS, world_size=2)
    ranks("train", run)
    return run


@pytest.mark.parametrize(("moment", "who", "twice"), CASES)
def test_a_stop_at_an_awkward_moment_loses_nothing(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, golden: Path, moment: str, who: list[int], twice: bool
) -> None:
    run = make_run(tmp_path / "run", model, data, *SETTINGS, world_size=2)
    began = time.monotonic()
    stopped = ranks("tests.dist.trouble:signalled", run, 1, moment, who, twice, check=False)
    took_s = time.monotonic() - began
    codes = {result.rc for result in stopped}
    assert codes in ({ExitCode.PREEMPTED}, {ExitCode.DONE}), stopped
    assert took_s < LONGEST_S + 30, "the run itself takes some seconds, a hang would take minutes"
    if committed(RunPaths(run)):
        assert newest_verified(run) is not None
    if codes == {ExitCode.PREEMPTED}:
        told = [event.fields for event in read_events(RunPaths(run).events) if event.event == "preempted"]
        expected = "SIGTERM" if 0 in who else "a signal to another rank"
        reasons = [fields["reason"] for fields in told]
        # Before the ranks have met there is nobody to write it down but the starter.
        assert reasons == [expected] or (moment in ("before the group", "meeting") and not reasons)
        ranks("train", run, new_attempt(run))
    assert curve(run) == curve(golden)
