"""A run whose job an earlier version lost goes back into the queue, and on to its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.dist.old_runs import GOLDENS, assert_goes_on_undisturbed, begin_anew, files_of, keys, unpack
from tests.slurm.cluster import Cluster
from tests.slurm.rig import SlurmRun


def test_the_run_of_a_lost_job_goes_on_in_another(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = unpack(tmp_path / "runs") / "slurm-verdict"
    anew = SlurmRun(cluster, begin_anew(run_dir, tmp_path / "anew"), 2, 1)
    anew.submit()
    words = [sys.executable, "-m", "launcher", "resume", run_dir, "--json"]
    said = json.loads(cluster.run(words).stdout)
    assert sorted(keys(said)) == GOLDENS["keys"]["resume"]
    SlurmRun(cluster, run_dir, 2, 1, said["job_id"]).wait_done()
    anew.wait_done()
    assert files_of(run_dir) == GOLDENS[run_dir.name]["files_at_the_end"]
    assert_goes_on_undisturbed(run_dir.name, run_dir, anew.run_dir)
