"""Which scheduler starts a run and which one has it; what all of them promise."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ClusterKind
from launcher.config.schema import RunConfig
from launcher.errors import RunError, SlurmUnavailable
from launcher.local.scheduler import HostsScheduler, LocalScheduler
from launcher.runs.attempts import AttemptRecord
from launcher.runs.run_dir import create_run, write_state
from launcher.runs.scheduler import Scheduler
from launcher.runs.submission import StageJob, Submission, write_submission
from launcher.schedulers import scheduler_for, scheduler_here, scheduler_of
from launcher.slurm.submit.scheduler import SlurmScheduler

HOSTS = ["boxa", "boxb"]
ALL: list[Callable[[], Scheduler]] = [LocalScheduler, lambda: HostsScheduler(HOSTS), SlurmScheduler]


@pytest.fixture(autouse=True)
def outside_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm is installed


def run_of(folder: Path, name: str = "one", **cluster: object) -> Path:
    config = RunConfig(name=name, runs_dir=str(folder / "runs"))
    config.model.name_or_path = "model"
    config.cluster = dataclasses.replace(config.cluster, **cluster)  # type: ignore[arg-type]
    return create_run(config, None, {})


def enter_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")


def submit(run_dir: Path) -> None:
    job = StageJob(stage="train", job_id="7", argv=[], script="", submitted="2026-01-01T00:00:00.000Z")
    write_submission(run_dir, Submission(key="k", stages=[job]))


def test_a_run_starts_where_its_cluster_is(tmp_path: Path) -> None:
    assert type(scheduler_for(run_of(tmp_path, "a"))) is LocalScheduler
    assert type(scheduler_for(run_of(tmp_path, "b", hosts=HOSTS, nodes=2))) is HostsScheduler
    assert type(scheduler_for(run_of(tmp_path, "c", kind=ClusterKind.slurm))) is SlurmScheduler
    assert type(scheduler_here(run_of(tmp_path, "d", kind=ClusterKind.slurm))) is LocalScheduler


def test_inside_a_job_a_run_of_slurm_starts_on_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_job(monkeypatch)
    assert SlurmScheduler().context() == ["n1", "n2"]
    assert type(scheduler_for(run_of(tmp_path, kind=ClusterKind.slurm))) is LocalScheduler


def test_only_a_queue_does_not_know_its_hosts_yet() -> None:
    assert [make().context() for make in ALL] == [[socket.gethostname()], HOSTS, None]


def test_a_run_belongs_to_the_scheduler_that_has_it_and_a_sweep_to_slurm(tmp_path: Path) -> None:
    here, queued = run_of(tmp_path, "a"), run_of(tmp_path, "b", kind=ClusterKind.slurm)
    submit(queued)
    assert type(scheduler_of(here)) is LocalScheduler
    assert type(scheduler_of(queued)) is SlurmScheduler
    assert type(scheduler_of(here, here)) is SlurmScheduler


@pytest.mark.parametrize("make", ALL)
def test_every_scheduler_tells_the_state_and_refuses_to_cancel_what_has_ended(
    tmp_path: Path, make: Callable[[], Scheduler]
) -> None:
    run_dir = run_of(tmp_path)
    write_state(run_dir, "succeeded")
    scheduler = make()
    assert [state.state for state in scheduler.query([run_dir])] == ["succeeded"]
    with pytest.raises(RunError, match="one is not running: it succeeded"):
        scheduler.cancel([run_dir], now=False, wait_s=1.0)


@pytest.mark.parametrize("make", ALL)
def test_a_dry_run_of_cancel_changes_nothing(tmp_path: Path, make: Callable[[], Scheduler]) -> None:
    run_dir = run_of(tmp_path)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    make().cancel([run_dir], now=False, wait_s=1.0, dry_run=True)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_job_that_slurm_cannot_be_asked_about_is_left_alone_and_so_is_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_of(tmp_path, kind=ClusterKind.slurm)
    submit(run_dir)
    scheduler = scheduler_of(run_dir)
    assert scheduler.query([run_dir])[0].not_asked
    with pytest.raises(SlurmUnavailable, match=r"Slurm runs one \(job 7\) and does not answer here"):
        scheduler.cancel([run_dir], now=False, wait_s=1.0)
    enter_job(monkeypatch)
    with pytest.raises(SlurmUnavailable, match="whether a job runs one is not known"):
        scheduler_for(run_dir)


@pytest.mark.parametrize("make", ALL)
def test_a_run_that_cannot_be_requeued_is_told_why(make: Callable[[], Scheduler]) -> None:
    record = AttemptRecord(attempt=1, starter="", host="n1", world_size=1, started="", job_id="7", nodes=["n1"])
    requeued = make().requeue(record)
    assert not requeued.done
    assert requeued.problem
