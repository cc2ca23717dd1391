from __future__ import annotations

from collections.abc import Sequence

import pytest

from launcher.errors import SlurmError, SlurmUnavailable
from launcher.runs.attempts import AttemptRecord
from launcher.runs.scheduler import Requeued
from launcher.slurm.client import requeue
from launcher.slurm.client.parse import JobInfo, NodeKind, Partition
from launcher.slurm.client.requeue import requeue_job


class Cluster:
    """A queue that may lose the answer to a call it carried out, refuse, or have put the job back by itself."""

    def __init__(self, state: str = "RUNNING", *, answers: bool = True, refuses: str = "", excluded: str = "") -> None:
        self.state = state
        self.answers = answers
        self.refuses = refuses
        self.excluded = excluded.split(",") if excluded else []
        self.busy = 0
        self.requeues = 0
        self.kinds = [NodeKind(count=9, cpus=1, memory_mib=1, state="mixed")]

    def job(self, job_id: str) -> JobInfo | None:
        return JobInfo(job_id=job_id, state=self.state, excluded=list(self.excluded), partition="gpu")

    def partitions(self) -> list[Partition]:
        return [Partition(name="other"), Partition(name="gpu", kinds=self.kinds)]

    def requeue(self, job_id: str) -> None:
        if self.refuses:
            raise SlurmError(self.refuses)
        if self.state == "PENDING":
            raise SlurmError("Job is pending execution")
        self.state = "PENDING"
        self.requeues += 1
        if not self.answers:  # and the retry finds that it is pending already
            raise SlurmError("Job is pending execution")

    def exclude(self, job_id: str, nodes: list[str]) -> None:
        if self.busy:
            self.busy -= 1
            raise SlurmError("Job is completing")
        self.excluded = nodes


def attempt(*, restart: int = 0, nodes: Sequence[str] = ("n1",)) -> AttemptRecord:
    return AttemptRecord(
        attempt=1, starter="slurm", host="n1", world_size=1, started="", job_id="7", restart=restart, nodes=list(nodes)
    )


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "_EXCLUDE_PAUSE_S", 0.0)


def test_a_running_job_is_put_back_once() -> None:
    cluster = Cluster()
    assert requeue_job(cluster, attempt(), []) == Requeued(done=True)
    assert cluster.requeues == 1


@pytest.mark.parametrize("state", ["PENDING", "REQUEUED"])
def test_a_job_that_slurm_put_back_by_itself_is_left_alone(state: str) -> None:
    cluster = Cluster(state)
    assert requeue_job(cluster, attempt(), []) == Requeued(done=True, by_scheduler=True)
    assert cluster.requeues == 0


def test_a_call_whose_answer_was_lost_counts_and_is_not_made_twice() -> None:
    cluster = Cluster(answers=False)
    assert requeue_job(cluster, attempt(), []).done
    assert cluster.requeues == 1


def test_a_refusal_is_told_in_slurms_words() -> None:
    cluster = Cluster(refuses="Requested operation is presently disabled")
    found = requeue_job(cluster, attempt(), ["n1"])
    assert found == Requeued(done=False, problem="Requested operation is presently disabled")
    assert cluster.excluded == []


def test_an_absent_controller_is_no_success() -> None:
    class Absent(Cluster):
        def job(self, job_id: str) -> JobInfo | None:
            raise SlurmUnavailable("nobody answered")

    assert requeue_job(Absent(), attempt(), []) == Requeued(done=False, problem="nobody answered")


def test_a_blamed_node_is_avoided_besides_those_that_were_before() -> None:
    cluster = Cluster(excluded="n9,n2")
    cluster.busy = 3
    found = requeue_job(cluster, attempt(restart=1), ["n2", "n4"])
    assert found.excluded == ("n9", "n2", "n4")
    assert cluster.excluded == ["n9", "n2", "n4"]


def test_a_node_that_cannot_be_avoided_does_not_keep_the_job_from_going_on() -> None:
    cluster = Cluster()
    cluster.busy = 1000
    found = requeue_job(cluster, attempt(), ["n4"])
    assert found.done and found.excluded == ()
    assert "n4" in found.problem


def test_a_node_that_the_job_cannot_do_without_is_not_left_out() -> None:
    """Else the job would wait for ever."""
    cluster = Cluster()
    idle, down = [NodeKind(count=2, cpus=1, memory_mib=1, state=state) for state in ("idle", "down")]
    cluster.kinds = [idle, down]
    found = requeue_job(cluster, attempt(nodes=["n1", "n2"]), ["n2"])
    assert found.done and found.excluded == () and cluster.excluded == []
    assert "the job needs 2 nodes, and partition gpu has 2 that work" in found.problem
