"""Ranks of a job that hang, five ways: found by their silence, named with node and place, and the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.paths import RunPaths
from launcher.runs.events import read_events
from tests.dist.trouble import HUNG_RANK
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.rig import Goldens, SlurmRun

LIMIT_S = 6.0
SETTINGS = (
    "strategy=zero2",
    "optim.max_steps=20",
    "checkpoint.save_every_steps=2",
    "checkpoint.rehearse=false",
)
# Python reads this at its start; ranks of the first attempt then hang where tests/dist/trouble.py has them hang.
PLANT = """
import sys
words = sys.orig_argv
if "launcher.train" in words and words[words.index("--attempt") + 1] == "1":
    from tests.dist.planted import plant_hang
    plant_hang("KIND")
"""

KINDS = [
    pytest.param("stopped"),
    *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("loop", "gil", "sleep", "save")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_of_a_job_that_hangs_is_named_and_the_run_goes_on(
    cluster: Cluster, tmp_path: Path, tiny_model: Path, goldens: Goldens, kind: str
) -> None:
    golden = goldens.losses(cluster, tiny_model, *SETTINGS)
    (tmp_path / "sitecustomize.py").write_text(PLANT.replace("KIND", kind))
    limits = [f"fault.step_limit_s={LIMIT_S}", f"fault.save_limit_s={LIMIT_S}"]
    path = f"cluster.environment={{PYTHONPATH: '{tmp_path}:{ROOT}'}}"
    run = SlurmRun.make(cluster, tiny_model, *SETTINGS, *limits, path)
    run.submit()
    run.wait_done()
    assert run.losses() == golden
    first, last = run.verdicts()
    assert (first["verdict_class"], first["rank"]) == ("hang", HUNG_RANK), run.story("verdict")
    assert first["node"] and last["verdict_class"] == "done"
    if kind != "stopped":
        assert "trouble.py" in first["place"], run.story("place")
    (hang,) = [event for event in read_events(RunPaths(run.run_dir).events) if event.event == "hang"]
    assert (hang.fields["rank_failed"], hang.fields["node"]) == (HUNG_RANK, first["node"])
    said = RunPaths(run.run_dir).job_log(1).read_text()
    (silent_s,) = [float(line.partition(" for ")[2].split()[0]) for line in said.splitlines() if "no progress" in line]
    assert LIMIT_S < silent_s <= LIMIT_S + 2
