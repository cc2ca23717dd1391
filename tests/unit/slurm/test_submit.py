"""launcher submit where no cluster is, or one that fails at the worst moment: nothing lost, no half state.

The tools of Slurm are small programs here, so that they can fail on time; tests/slurm/test_submit.py has the real ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.frozen import load_config
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.plan.create import complete_run
from launcher.runs.events import read_events
from launcher.runs.submission import read_submission
from launcher.slurm.client import query
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import comment
from launcher.slurm.client.sweep import read_sweep
from launcher.slurm.job.main import main as job_main
from launcher.slurm.submit.cancel import jobs_to_stop

SINFO = "print('main*|4|16|64000|1-00:00:00|1-infinite|up|idle|gpu:h100:4')"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of programs that take every job; works in an empty folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(query, "RETRY_S", 2.0)
    write(folder, "sinfo", SINFO)
    write(folder, "squeue", "")
    write(folder, "scancel", f"open({str(folder / 'cancelled')!r}, 'a').write(sys.argv[-1] + '\\n')")
    write(
        folder,
        "sbatch",
        "if '--test-only' in sys.argv:\n"
        "    sys.exit('sbatch: Job 1 to start at 2026-03-01T10:00:00 using 4 processors on nodes n1 in partition a')\n"
        f"path = {str(folder / 'queued')!r}\n"
        "open(path, 'a').write('x')\n"
        "print(100 + len(open(path).read()))",
    )
    return folder


def write(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def settings(tiny_model: Path) -> list[str]:
    return [
        f"model.name_or_path={tiny_model}", "data=next_number", "data.seq_len_tokens=256", "cluster=slurm",
        "strategy=ddp", "method=full", "cluster.devices_per_node=2", "batch.global_sequences=8", "name=one",
    ]  # fmt: skip


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def states(run_dir: Path) -> list[object]:
    return [event.fields["state"] for event in read_events(RunPaths(run_dir).events) if event.event == "state"]


def test_a_run_is_queued_and_says_what_comes_next(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings]) == ExitCode.DONE
    said = capsys.readouterr().out
    for words in ("job 101", "expected start", "launcher status one", "launcher logs -f one", "launcher cancel one"):
        assert words in said
    run_dir = Path("runs/one")
    submission = read_submission(run_dir)
    derived = load_config(RunPaths(run_dir).config).derived
    assert submission is not None and derived is not None
    assert (submission.key, submission.stages[0].job_id) == (derived.run_id, "101")
    assert submission.estimate_start == "2026-03-01T10:00:00.000Z"
    assert states(run_dir) == ["validating", "queued"]
    assert [
        event.fields["job_id"] for event in read_events(RunPaths(run_dir).events) if event.event == "submitted"
    ] == ["101"]


def test_a_dry_run_shows_the_job_and_leaves_no_trace(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-93257")
    assert main(["submit", *settings, "--dry-run", "--json", "--stages", "train,export"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "canary-93257" not in said
    document = json.loads(said)
    train, export = document["jobs"]
    assert train["argv"][0] == "sbatch" and train["argv"][-2:] == ["--run", str(Path("runs/one").absolute())]
    assert train["script_text"] == Path(train["script"]).read_text()
    assert "--dependency=afterok:TRAIN_JOB" in export["argv"]
    assert "WANDB_API_KEY" in document["environment"]
    assert document["plan"]["batch"]["world_size"] == 2
    assert main(["submit", *settings, "--dry-run"]) == ExitCode.DONE
    assert "dry run: nothing was created or queued" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == []
    assert not (tools / "queued").exists()


@pytest.mark.parametrize("more", [[], ["seed=0,1"], ["cluster.prepare=job"]], ids=["run", "sweep", "prepared by a job"])
def test_a_dry_run_counts_the_examples_and_keeps_nothing_in_the_cache(
    tools: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], more: list[str],
) -> None:  # fmt: skip
    scratch, cache = tmp_path / "scratch", tmp_path / "cache"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("LAUNCHER_CACHE", str(cache))
    assert main(["submit", *settings, *more, "--dry-run", "--json"]) == ExitCode.DONE
    plan = answer(capsys)["plan"]
    assert isinstance(plan, dict) and plan["data"]["is_estimate"] is False
    assert not cache.exists()
    assert list(scratch.iterdir()) == [] and list(Path.cwd().iterdir()) == []


def test_a_dry_run_shows_what_the_audit_found_without_the_model(
    tools: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "twice.jsonl"
    data.write_text("".join(f'{{"prompt": "{n // 2}", "completion": "{n // 2}"}}\n' for n in range(300)))
    elsewhere = ["model=smollm2_135m", "model.name_or_path=someone/not-here", f"data.path={data}", "data.packing=false"]
    kept = [word for word in settings if not word.startswith(("model", "data"))]
    assert main(["submit", *kept, *elsewhere, "--dry-run", "--json"]) == ExitCode.DONE
    warnings = " ".join(map(str, answer(capsys)["warnings"]))  # type: ignore[call-overload]
    assert "duplicate example" in warnings and "the audit has not run on all of the data" in warnings


def test_a_dry_run_uses_what_the_cache_holds(
    tools: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    assert main(["submit", *settings]) == ExitCode.DONE
    before = sorted((tmp_path / "cache").rglob("*"))
    assert before
    monkeypatch.setattr("launcher.data.prepare._make", None)
    assert main(["submit", *settings[:-1], "name=two", "--dry-run"]) == ExitCode.DONE
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_dry_run_works_where_no_slurm_is(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", *settings, "--dry-run", "--json"]) == ExitCode.DONE
    assert "not compared with a cluster" in str(answer(capsys)["warnings"])
    assert main(["submit", *settings]) == ExitCode.USER
    assert "login node" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_for_this_machine_is_not_submitted(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    local = [word for word in settings if not word.startswith("cluster")]
    assert main(["submit", *local]) == ExitCode.USER
    assert "cluster=slurm" in capsys.readouterr().err


def test_everything_wrong_is_said_before_anything_is_made(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["cluster.partition=mian", "cluster.nodes=9", "cluster.walltime_min=2000", "cluster.mail_user='a b'"]
    assert main(["submit", *settings, *wrong, "--json"]) == ExitCode.USER
    found = answer(capsys)["problems"]
    assert isinstance(found, list)
    assert {problem["key"] for problem in found} == {
        "cluster.partition",
        "cluster.nodes",
        "cluster.walltime_min",
        "cluster.mail_user",
    }
    assert list(Path.cwd().iterdir()) == []


def test_a_refusal_by_slurm_leaves_nothing_behind(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tools, "sbatch", "sys.exit('sbatch: error: Invalid account or account/partition combination specified')")
    assert main(["submit", *settings]) == ExitCode.USER
    assert "Invalid account" in capsys.readouterr().err
    assert list(Path("runs").iterdir()) == []


def test_a_chain_that_cannot_be_completed_is_taken_back(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    body = (tools / "sbatch").read_text().partition("import os, sys\n")[2]
    write(tools, "sbatch", f"if '/export.sbatch' in ' '.join(sys.argv): sys.exit('sbatch: error: no')\n{body}")
    assert main(["submit", *settings, "--stages", "train,export"]) == ExitCode.USER
    assert "Taken back: train job 101" in capsys.readouterr().err
    assert (tools / "cancelled").read_text() == "101\n"


def test_an_answer_that_was_lost_does_not_queue_the_job_twice(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    heard = tools / "heard"
    write(
        tools,
        "sbatch",
        "if '--test-only' not in sys.argv:\n"
        "    comment = [word for word in sys.argv if word.startswith('--comment=')][0]\n"
        f"    open({str(heard)!r}, 'a').write(comment.partition('=')[2] + '\\n')\n"
        "sys.exit('sbatch: error: Batch job submission failed: Socket timed out on send/recv operation')",
    )
    write(
        tools,
        "squeue",
        f"path = {str(heard)!r}\n"
        "for line in open(path) if os.path.exists(path) else []:\n"
        "    print('77|77|N/A|PENDING|main|10:00|2026-03-01T10:00:00|N/A|N/A||None|' + line.strip())",
    )
    assert main(["submit", *settings, "--json"]) == ExitCode.DONE
    assert answer(capsys)["job_id"] == "77"
    assert len(heard.read_text().splitlines()) == 1


LOST = "sys.exit('sbatch: error: Batch job submission failed: Socket timed out on send/recv operation')"
DENIED = "sys.exit('slurm_load_jobs error: Access/permission denied')"


def line(job: str, comment: str, *, task: str = "N/A", state: str = "PENDING") -> str:
    """A job as squeue prints it."""
    return f"{job}|{job}|{task}|{state}|main|10:00|2026-03-01T10:00:00|N/A|N/A||None|{comment}"


def lists(folder: Path, *jobs: str) -> None:
    """From now on these jobs are in the queue."""
    write(
        folder,
        "squeue",
        "wanted = [word.partition('=')[2].split(',') for word in sys.argv if word.startswith('--jobs=')]\n"
        f"for line in {list(jobs)!r}:\n"
        "    job, _, task = line.split('|')[:3]\n"
        "    if not wanted or (job if task == 'N/A' else f'{job}_{task}') in wanted[0]: print(line)",
    )


def lose_answers(tools: Path, *words: str) -> None:
    """Submits while sbatch does not answer, and squeue says something that is no answer either."""
    (tools / "sbatch").rename(tools / "sbatch-that-answers")
    write(tools, "sbatch", LOST)
    write(tools, "squeue", DENIED)
    assert main(["submit", *words]) == ExitCode.UNAVAILABLE
    (tools / "sbatch-that-answers").rename(tools / "sbatch")


def test_a_run_whose_job_is_in_doubt_is_kept_and_its_job_found_later(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_answers(tools, *settings)
    said = capsys.readouterr().err
    assert "Whether a job was queued is not known" in said and "launcher status one" in said
    submission = read_submission(Path("runs/one"))
    assert submission is not None and submission.unanswered
    lists(tools, line("77", f"launcher:{submission.key}"))
    assert main(["status", "one", "--json"]) == ExitCode.DONE
    assert answer(capsys)["job_id"] == "77"
    assert main(["submit", "--run", "one"]) == ExitCode.USER
    assert "one has a train job in the queue already: 77" in capsys.readouterr().err
    submission = read_submission(Path("runs/one"))
    assert submission is not None and not submission.unanswered
    assert [job.job_id for job in submission.stages] == ["77"]


def test_a_run_in_doubt_that_has_no_job_says_how_it_gets_one(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_answers(tools, *settings)
    capsys.readouterr()
    assert main(["status", "one", "--json"]) == ExitCode.DONE
    assert "permission denied" in str(answer(capsys)["not_asked"])
    lists(tools)
    assert main(["status", "one", "--json"]) == ExitCode.DONE
    state = answer(capsys)
    assert (state["state"], state["todo"]) == ("queued", "launcher resume one")
    assert "no job of it is in the queue" in str(state["reason"])
    assert main(["resume", "one", "--json"]) == ExitCode.DONE
    assert answer(capsys)["job_id"] == "101"


def test_a_job_that_prepares_says_nothing_of_the_one_that_was_to_train(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answer was lost, and the train job was never asked for: the run stays in doubt, and can be cancelled."""
    lose_answers(tools, *settings, "--stages", "prepare,train")
    submission = read_submission(Path("runs/one"))
    assert submission is not None
    lists(tools, line("77", comment(submission.key, "prepare")))
    assert main(["submit", "--run", "one"]) == ExitCode.USER
    assert "one has a prepare job in the queue already: 77" in capsys.readouterr().err
    submission = read_submission(Path("runs/one"))
    assert submission is not None and submission.unanswered
    # The queue is empty once scancel was called.
    waiting = line("77", comment(submission.key, "prepare"))
    write(tools, "squeue", f"if not os.path.exists({str(tools / 'cancelled')!r}): print({waiting!r})")
    assert main(["cancel", "one"]) == ExitCode.DONE
    assert (tools / "cancelled").read_text() == "77\n"
    assert main(["status", "one", "--json"]) == ExitCode.DONE
    capsys.readouterr()


def test_a_run_in_doubt_is_not_cancelled_while_slurm_does_not_answer(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_answers(tools, *settings)
    capsys.readouterr()
    write(tools, "squeue", "sys.exit('slurm_load_jobs error: Unable to contact slurm controller')")
    assert main(["cancel", "one"]) == ExitCode.UNAVAILABLE
    assert "Slurm runs one and does not answer here" in capsys.readouterr().err
    assert not RunPaths(Path("runs/one")).cancel.exists()


def test_a_refusal_after_a_lost_answer_is_looked_into(tools: Path, settings: list[str]) -> None:
    """The first call was heard late, and the second one is refused for the job that it queued."""
    calls = tools / "calls"
    write(
        tools,
        "sbatch",
        "if '--test-only' not in sys.argv:\n"
        "    comment = [word for word in sys.argv if word.startswith('--comment=')][0].partition('=')[2]\n"
        f"    open({str(calls)!r}, 'a').write(comment + '\\n')\n"
        f"    if len(open({str(calls)!r}).readlines()) > 1: sys.exit('sbatch: error: QOSMaxSubmitJobPerUserLimit')\n"
        f"{LOST}",
    )
    write(
        tools,
        "squeue",
        f"lines = open({str(calls)!r}).readlines()\nif len(lines) > 1: print({line('77', '')!r} + lines[0].strip())",
    )
    assert main(["submit", *settings]) == ExitCode.DONE
    submission = read_submission(Path("runs/one"))
    assert submission is not None and submission.stages[0].job_id == "77"


def test_a_job_that_slurm_refuses_leaves_no_doubt(tools: Path, settings: list[str]) -> None:
    assert main(["submit", *settings]) == ExitCode.DONE
    write(tools, "sbatch", "sys.exit('sbatch: error: Invalid account or account/partition combination specified')")
    assert main(["submit", "--run", "one"]) == ExitCode.USER
    submission = read_submission(Path("runs/one"))
    assert submission is not None and not submission.unanswered


def test_members_of_a_sweep_in_doubt_are_found_in_its_array(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_answers(tools, *settings, "seed=0,1")
    assert "launcher resume one/00" in capsys.readouterr().err
    sweep = read_sweep(Path("runs/one"))
    assert sweep is not None
    lists(tools, *(line("77", f"launcher:{sweep.key}", task=str(index)) for index in range(2)))
    assert main(["status", "one", "--json"]) == ExitCode.DONE
    members = answer(capsys)["members"]
    assert isinstance(members, list)
    assert [(member["state"], member["job_id"]) for member in members] == [("queued", "77_0"), ("queued", "77_1")]
    runs = [Path("runs/one") / f"0{index}" for index in range(2)]
    assert [job.name for job in jobs_to_stop(runs[1:], Slurm())] == ["77_1"]
    assert main(["resume", "one/01"]) == ExitCode.USER
    assert "one/01 has a train job in the queue already: 77_1" in capsys.readouterr().err
    submission = read_submission(runs[1])
    assert submission is not None and [job.job_id for job in submission.stages] == ["77_1"]
    assert not (tools / "queued").exists()


def test_a_member_of_a_sweep_in_doubt_that_is_not_in_the_array_is_queued_alone(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lose_answers(tools, *settings, "seed=0,1")
    sweep = read_sweep(Path("runs/one"))
    assert sweep is not None
    lists(tools, line("77", f"launcher:{sweep.key}", task="1"))
    assert main(["resume", "one/00"]) == ExitCode.DONE
    submission = read_submission(Path("runs/one/00"))
    assert submission is not None and [job.job_id for job in submission.stages] == ["101"]


def test_a_run_is_not_queued_beside_its_own_job(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings]) == ExitCode.DONE
    write(tools, "squeue", "print('101|101|N/A|RUNNING|main|10:00|2026-03-01T10:00:00|N/A|N/A|n1|None|x')")
    capsys.readouterr()
    assert main(["submit", "--run", "one"]) == ExitCode.USER
    assert "has a train job in the queue already: 101" in capsys.readouterr().err


def test_a_run_that_ended_is_queued_again_with_all_its_jobs_kept(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings]) == ExitCode.DONE
    assert main(["submit", "--run", "one"]) == ExitCode.DONE
    submission = read_submission(Path("runs/one"))
    assert submission is not None
    assert [job.job_id for job in submission.stages] == ["101", "102"]


def test_settings_of_a_run_that_is_there_stay_as_they_are(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings]) == ExitCode.DONE
    assert main(["submit", "--run", "one", "seed=1"]) == ExitCode.USER


def test_data_may_be_prepared_by_the_first_job(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "cluster.prepare=job", "--json"]) == ExitCode.DONE
    jobs = answer(capsys)["jobs"]
    assert isinstance(jobs, list)
    assert [(job["stage"], job["dependency"]) for job in jobs] == [("prepare", ""), ("train", "101")]
    run_dir = Path("runs/one")
    assert load_config(RunPaths(run_dir).config).derived is None
    assert complete_run(run_dir)
    frozen = load_config(RunPaths(run_dir).config)
    assert frozen.derived is not None and frozen.derived.world_size == 2
    assert RunPaths(run_dir).data.resolve() == Path(frozen.derived.data_dir).resolve()
    assert not complete_run(run_dir)
    assert load_config(RunPaths(run_dir).config) == frozen


def test_a_sweep_is_one_array_of_runs(tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *settings, "optim.lr=1e-4,2e-4", "seed=0,1", "--throttle", "2", "--json"]) == ExitCode.DONE
    document = answer(capsys)
    sweep = read_sweep(Path("runs/one"))
    assert sweep is not None and document["job_id"] == sweep.job_id == "101"
    assert "--array=0-3%2" in sweep.argv
    assert sweep.argv[-2:] == ["--sweep", str(Path("runs/one").absolute())]
    rates = []
    for member in sweep.members:
        run_dir = Path("runs/one") / member.run
        config = load_config(RunPaths(run_dir).config).config
        submission = read_submission(run_dir)
        assert submission is not None and submission.stages[0].job_id == f"101_{member.index}"
        assert states(run_dir) == ["validating", "queued"]
        rates.append((config.optim.lr, config.seed))
    assert rates == [(1e-4, 0), (1e-4, 1), (2e-4, 0), (2e-4, 1)]


@pytest.fixture
def prepared_by_a_job(tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> Path:
    """Folder of a sweep of two runs whose data job 101 prepares; array 102 waits for it."""
    assert main(["submit", *settings, "seed=0,1", "cluster.prepare=job", "--json"]) == ExitCode.DONE
    jobs = answer(capsys)["jobs"]
    assert isinstance(jobs, list)
    assert [(job["stage"], job["job_id"], job["dependency"]) for job in jobs] == [
        ("prepare", "101", ""),
        ("train", "102", "101"),
    ]
    folder = Path("runs/one").absolute()
    assert jobs[0]["argv"][-2:] == jobs[1]["argv"][-2:] == ["--sweep", str(folder)]
    assert not any(word.startswith("--array") for word in jobs[0]["argv"])
    assert {"--dependency=afterok:101", "--kill-on-invalid-dep=yes", "--array=0-1"} <= set(jobs[1]["argv"])
    return folder


def test_the_data_of_a_sweep_are_prepared_by_one_job_that_the_array_waits_for(
    prepared_by_a_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [prepared_by_a_job / "00", prepared_by_a_job / "01"]
    for index, run in enumerate(runs):
        submission = read_submission(run)
        assert submission is not None
        assert [(job.stage, job.job_id) for job in submission.stages] == [("prepare", "101"), ("train", f"102_{index}")]
        assert load_config(RunPaths(run).config).derived is None
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    assert job_main(["prepare", "--sweep", str(prepared_by_a_job)]) == ExitCode.DONE
    derived = [load_config(RunPaths(run).config).derived for run in runs]
    assert derived[0] is not None and derived[1] is not None
    assert derived[0].data_key == derived[1].data_key and derived[0].run_id != derived[1].run_id


def test_a_member_that_cannot_train_fails_the_job_that_prepares_the_sweep(
    prepared_by_a_job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    config = RunPaths(prepared_by_a_job / "00").config
    config.write_text(re.sub(r"(?m)^( *seq_len_tokens:).*", r"\1 16", config.read_text()))
    assert job_main(["prepare", "--sweep", str(prepared_by_a_job)]) == ExitCode.USER
    assert "one/00: " in capsys.readouterr().err
    assert load_config(RunPaths(prepared_by_a_job / "01").config).derived is not None


def test_a_member_that_is_cancelled_leaves_the_others_the_job_that_prepares(
    prepared_by_a_job: Path, tools: Path
) -> None:
    sweep = read_sweep(prepared_by_a_job)
    assert sweep is not None
    lists(tools, line("101", f"launcher:{sweep.key}:prepare"), line("102", f"launcher:{sweep.key}", task="0"))
    runs = [prepared_by_a_job / "00", prepared_by_a_job / "01"]
    assert [job.name for job in jobs_to_stop(runs[:1], Slurm())] == ["102_0"]
    assert [job.name for job in jobs_to_stop(runs, Slurm())] == ["101", "102_0"]


def test_a_dry_run_of_a_sweep_shows_the_job_that_prepares(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "seed=0,1", "cluster.prepare=job", "--dry-run", "--json"]) == ExitCode.DONE
    jobs = answer(capsys)["jobs"]
    assert isinstance(jobs, list)
    assert [job["stage"] for job in jobs] == ["prepare", "train"]
    assert "--dependency=afterok:PREPARE_JOB" in jobs[1]["argv"]


def test_large_data_of_a_sweep_are_left_to_a_job_as_those_of_a_run(
    tools: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("launcher.plan.run_plan._SMALL_BYTES", -1)
    assert main(["submit", *settings, "seed=0,1", "--json"]) == ExitCode.DONE
    jobs = answer(capsys)["jobs"]
    assert isinstance(jobs, list) and [job["stage"] for job in jobs] == ["prepare", "train"]


def test_a_sweep_whose_array_is_refused_takes_the_job_before_it_back(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    body = (tools / "sbatch").read_text().partition("import os, sys\n")[2]
    write(tools, "sbatch", f"if '--array=0-1' in sys.argv: sys.exit('sbatch: error: no')\n{body}")
    assert main(["submit", *settings, "seed=0,1", "cluster.prepare=job"]) == ExitCode.USER
    assert "Taken back: prepare job 101" in capsys.readouterr().err
    assert (tools / "cancelled").read_text() == "101\n"
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize("words", [["seed=1,1"], ["optim.lr=1e-4,0.0001"]], ids=" ".join)
def test_members_that_are_the_same_run_are_refused(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["submit", *settings, *words]) == ExitCode.USER
    assert "is the same run as member 00" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_a_sweep_over_methods_takes_the_settings_of_one_of_them(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in settings if word != "method=full"]
    assert main(["submit", *words, "method=lora,full", "method.rank=8", "--dry-run"]) == ExitCode.DONE
    assert capsys.readouterr().out.count("method.rank = 8 has no effect: it is for adapters") == 1
    assert main(["submit", *settings, "seed=1,2", "method.rank=8", "--dry-run"]) == ExitCode.USER
    assert "it is for adapters" in capsys.readouterr().err


def test_a_throttle_without_a_sweep_is_refused(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "--throttle", "2"]) == ExitCode.USER
    assert "--throttle 2: says how many members of a sweep run at once" in capsys.readouterr().err
    assert main(["submit", "--run", "one", "--throttle", "2"]) == ExitCode.USER
    assert "this is one run" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("words", [["resume", "one"], ["logs", "one"], ["verify", "one"], ["submit", "--run", "one"]])
def test_a_verb_for_one_run_names_the_members_of_a_sweep(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["submit", *settings, "seed=0,1"]) == ExitCode.DONE
    capsys.readouterr()
    assert main(words) == ExitCode.USER
    said = capsys.readouterr().err
    assert "one is a sweep of 2 runs, and this works on one run: give one of one/00, one/01" in said


def test_problems_of_all_members_come_at_once(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "optim.lr=1e-4,5,7", "--json"]) == ExitCode.USER
    problems = answer(capsys)["problems"]
    assert isinstance(problems, list)
    assert [problem["key"] for problem in problems] == ["[01: optim.lr=5] optim.lr", "[02: optim.lr=7] optim.lr"]
    assert list(Path.cwd().iterdir()) == []


def test_members_of_a_sweep_ask_for_the_same(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *settings, "cluster.nodes=1,2", "--json"]) == ExitCode.USER
    problems = answer(capsys)["problems"]
    assert isinstance(problems, list)
    assert [problem["key"] for problem in problems] == ["cluster.nodes"]


def test_a_refused_sweep_leaves_nothing_behind(
    tools: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tools, "sbatch", "sys.exit('sbatch: error: Job array index too large')")
    assert main(["submit", *settings, "seed=0,1"]) == ExitCode.USER
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize("stages", ["trian", "export", "export,train", "train,train", ""])
def test_stages_that_make_no_chain_are_refused(tools: Path, settings: list[str], stages: str) -> None:
    assert main(["submit", *settings, "--stages", stages]) == ExitCode.USER
    assert list(Path.cwd().iterdir()) == []


def test_a_login_node_needs_no_torch(tools: Path, settings: list[str]) -> None:
    names = ("torch", "transformers", "accelerate", "deepspeed", "peft")
    blocked = f"import sys\nfor name in {names}:\n    sys.modules[name] = None\n"
    code = f"{blocked}from launcher.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "submit", *settings], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (Path("runs/one") / "submission.json").is_file()
