"""What `launcher status` shows of a run with attempts and verdicts, and of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import cli
from launcher.commands.status_table import best_member, note_of
from launcher.diagnose.verdict import Action, Verdict, write_verdict
from launcher.errors import VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.run_dir import new_attempt, write_state
from launcher.runs.states import RunState, run_state
from launcher.runs.status import Status, write_status
from launcher.slurm.client.sweep import Member, Sweep, write_sweep
from tests import made

MakeRun = Callable[[str], Path]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """`make_run("one")` or `make_run("grid/00")`, under runs/ of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()

    def make(name: str) -> Path:
        parent, _, own = name.rpartition("/")
        return made.make_run(Path("runs") / parent, own, world_size=2, data_dir=str(tmp_path / "prepared"))

    return make


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["status", *words]) == 0
    return capsys.readouterr().out


def fail(run: Path) -> Verdict:
    """A local attempt that ended with an error on rank 1."""
    attempt = new_attempt(run)
    record = AttemptRecord(
        attempt=attempt,
        starter="local",
        host="box",
        world_size=2,
        started="2026-03-01T10:00:00.000Z",
        ended="2026-03-01T10:02:03.000Z",
        exit_code=1,
    )
    write_attempt(run, record)
    verdict = Verdict(
        attempt=attempt,
        verdict_class=VerdictClass.out_of_memory_host,
        action=Action.stop,
        summary="rank 1 was killed: [host] memory",
        rank=1,
        step_start=0,
        step_end=3,
        setting="batch.micro_sequences=1",
    )
    write_verdict(run, verdict)
    write_state(run, "failed", attempt=attempt, reason=verdict.summary)
    return verdict


def test_the_page_of_a_failed_run_has_its_attempts_and_the_verdict(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(make_run("one"))
    text = shown(capsys, "one")
    assert "1: on box from" in text and "for 2:03, steps 0 to 3: out of memory host" in text
    assert "rank 1 was killed: [host] memory" in text
    assert "batch.micro_sequences=1" in text


def test_the_page_of_a_run_that_went_well_has_no_verdict(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("one")
    verdict = fail(run)
    write_verdict(run, replace(verdict, verdict_class=VerdictClass.done, action=Action.none))
    write_state(run, "succeeded", attempt=1)
    assert "batch.micro_sequences=1" not in shown(capsys, "one")


def test_long_ledgers_show_the_newest_attempts(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("one")
    for _ in range(15):
        fail(run)
    text = shown(capsys, "one")
    assert "... and 3 before" in text and "15: on box" in text and " 3: on box" not in text


@pytest.fixture
def sweep(make_run: MakeRun) -> Path:
    """Three members; validation losses 2.0, 1.5 and none."""
    folder = Path("runs/grid")
    members = []
    for index, (rate, loss) in enumerate([("1e-3", 2.0), ("1e-4", 1.5), ("1e-5", None)]):
        run = make_run(f"grid/{index:02d}")
        members.append(Member(index=index, run=run.name, overrides=[], differs={"optim.lr": rate}))
        status = Status(name=run.name, state="succeeded", step=4, of=4, eval_loss=loss)
        write_status(RunPaths(run).status, status)
        write_state(run, "succeeded" if loss else "failed")
    write_sweep(folder, Sweep(key="key", members=members))
    return folder


def test_a_sweep_is_a_grid_with_what_differs_and_the_best_marked(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split() for line in shown(capsys, "grid").splitlines()]
    assert rows[0][:3] == ["grid", "optim.lr", "state"]
    assert [row[:3] for row in rows[1:]] == [
        ["00", "1e-3", "succeeded"],
        ["01", "best", "1e-4"],
        ["02", "1e-5", "failed"],
    ]


def test_a_sweep_takes_one_line_among_all_runs(
    make_run: MakeRun, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("other")
    lines = shown(capsys).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("grid") and "sweep: 2 succeeded, 1 failed" in lines[1] and "1.5000" in lines[1]


def test_a_sweep_as_json_names_the_best_and_what_differs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, "grid", "--json"))
    assert document["best"] == "grid/01"
    assert [member["differs"] for member in document["members"]] == [
        {"optim.lr": rate} for rate in ("1e-3", "1e-4", "1e-5")
    ]


def test_a_member_of_a_sweep_has_a_page_under_its_full_name(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "grid/01" in shown(capsys, "grid/01").splitlines()[0]


def test_a_loss_that_is_no_number_is_never_best(make_run: MakeRun) -> None:
    states = []
    for name, loss in (("a", float("nan")), ("b", 3.0)):
        run = make_run(name)
        write_status(RunPaths(run).status, Status(name=name, state="running", eval_loss=loss))
        states.append(run_state(run))
    best = best_member(states)
    assert best is not None and best.name == "b"


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, ""),
        ({"preempted": True}, "stopped"),
        ({"requeued": True, "queue_reason": "BeginTime"}, "requeued, waits"),
        ({"alive": None}, "elsewhere"),
        ({"alive": None, "not_asked": "no squeue"}, "Slurm not asked"),
        ({"state": "queued", "queue_reason": "Priority"}, "Priority"),
        ({"phase": "rehearse"}, "rehearses"),
        ({"phase": "step"}, ""),
    ],
)
def test_a_state_says_in_brackets_what_it_leaves_open(make_run: MakeRun, changes: dict[str, object], note: str) -> None:
    running: RunState = replace(run_state(make_run("one")), state="running", alive=True)
    assert note_of(replace(running, **changes)) == note  # type: ignore[arg-type]
