"""launcher submit against a real Slurm: what is asked for arrives, what cannot be is refused, stages and sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.cluster_schema import Device
from launcher.config.shipped_files import share_dir
from launcher.slurm.client.option_validation import path_problem
from launcher.slurm.client.parse import parse_job, parse_jobs
from launcher.slurm.client.sbatch import sbatch_argv
from tests.slurm.cluster import Cluster
from tests.slurm.rig import SlurmRun
from tests.unit.slurm.hostile import can_be_argument, hostile_texts
from tests.unit.slurm.recipes import job_config, request

SEED = 20260302
# A set-up file that notes what the script was given and what it sees, and ends the job well before anything trains.
NOTE = """printf '%s\\0' "${SLURM_ARRAY_TASK_ID-}" "$@" >'NOTES'/args-$SLURM_JOB_ID
env -0 >'NOTES'/env-$SLURM_JOB_ID
exit 0
"""


@pytest.fixture
def work(cluster: Cluster, tmp_path: Path) -> Path:
    """An empty folder, seen by all nodes."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(tiny_model: Path) -> list[str]:
    return [
        f"model.name_or_path={tiny_model}", "data=next_number", "data.seq_len_tokens=256", "cluster=slurm",
        "cluster.device=cpu", "cluster.devices_per_node=1", "strategy=ddp", "method=full", "name=one",
    ]  # fmt: skip


def submit(cluster: Cluster, work: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return cluster.run([sys.executable, "-m", "launcher", "submit", *words], cwd=work, check=check)


def noting(folder: Path) -> tuple[str, Path]:
    """A set-up file that writes into a folder, as a setting; and the folder."""
    notes = folder / "notes"
    notes.mkdir()
    setup = folder / "setup.sh"
    setup.write_text(NOTE.replace("NOTES", str(notes)))
    return f"cluster.setup_file={setup}", notes


def shown(cluster: Cluster, job_id: str) -> str:
    return cluster.run(["scontrol", "--oneliner", "show", "job", job_id]).stdout


def test_what_is_asked_for_reaches_slurm(cluster: Cluster, work: Path, settings: list[str]) -> None:
    asked = ["cluster.nodes=2", "cluster.partition=low", "cluster.walltime_min=45", "cluster.cpus_per_task=2"]
    asked += ["cluster.exclude=n3", "cluster.memory_gib_per_node=0.5", "cluster.mail_user=ann@uni.example"]
    asked += ["cluster.mail_type=FAIL", "cluster.sbatch_args=[--hold]"]
    document = json.loads(submit(cluster, work, *settings, *asked, "--json").stdout)
    text = shown(cluster, document["job_id"])
    job = parse_job(text)
    run_dir = work / "runs" / "one"
    submission = json.loads((run_dir / "submission.json").read_text())
    assert (job.state, job.partition, job.time_limit_s, job.excluded) == ("PENDING", "low", 2700, ["n3"])
    assert job.comment == f"launcher:{submission['key']}"
    assert f" StdOut={run_dir}/slurm-{job.job_id}.out " in text
    for words in (
        "JobName=one ", "Requeue=1 ", "NtasksPerN:B:S:C=1:", "MinCPUsNode=2 ", "MinMemoryNode=512M ",
        "MailUser=ann@uni.example", f"Command={share_dir('slurm')}/train.sbatch --run {run_dir} ", f"WorkDir={work} ",
    ):  # fmt: skip
        assert words in text, text


def test_gpus_are_asked_for_in_both_spellings(gpu_cluster: Cluster, tmp_path: Path, settings: list[str]) -> None:
    asked = [
        "cluster.device=cuda",
        "cluster.devices_per_node=2",
        "cluster.cpus_per_task=2",
        "cluster.sbatch_args=[--hold]",
    ]
    others = [word for word in settings if not word.startswith(("cluster.dev", "name="))]
    for spelling in ("gpus_per_node", "gres"):
        words = [*others, *asked, f"cluster.gpu_request={spelling}", f"name={spelling}", "--json"]
        document = json.loads(submit(gpu_cluster, tmp_path, *words).stdout)
        text = shown(gpu_cluster, document["job_id"])
        assert "TresPerNode=gres:gpu:2 " in text and "CPUs/Task=2 " in text, text


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["cluster.partition=mian"], "cluster.partition"),
        (["cluster.nodes=99"], "cluster.nodes"),
        (["cluster.devices_per_node=1000"], "cluster.devices_per_node"),
    ],
)
def test_what_the_cluster_has_not_is_refused_before_it_is_queued(
    cluster: Cluster, work: Path, settings: list[str], words: list[str], key: str
) -> None:
    kept = [word for word in settings if word.partition("=")[0] != key]
    done = submit(cluster, work, *kept, *words, "--json", check=False)
    assert done.returncode == 2
    assert key in [problem["key"] for problem in json.loads(done.stdout)["problems"]]
    assert cluster.run(["squeue", "--noheader"]).stdout == ""
    assert list(work.iterdir()) == []


def test_more_gpus_than_any_node_has_are_refused(gpu_cluster: Cluster, work: Path, settings: list[str]) -> None:
    kept = [word for word in settings if not word.startswith("cluster.dev")]
    done = submit(gpu_cluster, work, *kept, "cluster.devices_per_node=9", check=False)
    assert done.returncode == 2, done.stdout
    assert "cluster.devices_per_node = 9: no node of partition main has" in done.stderr


def test_a_dry_run_queues_nothing_and_leaves_no_trace(cluster: Cluster, work: Path, settings: list[str]) -> None:
    settings = [*settings[:-1], "name=never"]
    document = json.loads(submit(cluster, work, *settings, "--dry-run", "--json").stdout)
    assert document["jobs"][0]["argv"][0] == "sbatch" and "cluster" not in str(document["warnings"])
    assert cluster.run(["squeue", "--noheader", "--states=all", "--name=never"]).stdout == ""
    assert list(work.iterdir()) == []


def test_a_stage_that_fails_takes_those_after_it_along(cluster: Cluster, work: Path, settings: list[str]) -> None:
    setup = work / "setup.sh"
    setup.write_text("exit 3\n")
    words = [*settings, f"cluster.setup_file={setup}", "--stages", "prepare,train,export,eval", "--json"]
    jobs = json.loads(submit(cluster, work, *words).stdout)["jobs"]
    assert [job["stage"] for job in jobs] == ["prepare", "train", "export", "eval"]
    assert [job["dependency"] for job in jobs] == ["", *(job["job_id"] for job in jobs[:-1])]
    cluster.wait_job(jobs[0]["job_id"], "FAILED")
    for job in jobs[1:]:
        cluster.wait_job(job["job_id"], "CANCELLED")


def test_stages_follow_each_other_up_to_a_measured_model(cluster: Cluster, work: Path, settings: list[str]) -> None:
    short = ["optim.max_steps=2", "batch.global_sequences=2", "checkpoint.rehearse=false", "track.wandb=disabled"]
    words = [*settings, *short, "--stages", "prepare,train,export,eval", "--json"]
    jobs = json.loads(submit(cluster, work, *words).stdout)["jobs"]
    run_dir = work / "runs" / "one"
    for job in jobs:
        try:
            cluster.wait_job(job["job_id"], "COMPLETED", timeout_s=300)
        except AssertionError as error:
            said = [path.read_text(errors="replace")[-3000:] for path in sorted(run_dir.glob("slurm-*.out"))]
            raise AssertionError(f"{job['stage']}: {error}\n" + "\n---\n".join(said)) from error
    assert (run_dir / "export" / "hf" / "model.safetensors").stat().st_size > 0
    assert "tuned" in json.loads((run_dir / "eval.json").read_text())["conditions"]


def test_members_of_a_sweep_train_and_resume_each_on_its_own(cluster: Cluster, work: Path, settings: list[str]) -> None:
    steps = 120
    short = [f"optim.max_steps={steps}", "batch.global_sequences=2", "checkpoint.save_every_steps=10"]
    words = [*settings, *short, "track.wandb=disabled", "track.eval_every_steps=60", "optim.lr=1e-3,1e-5", "--json"]
    job_id = json.loads(submit(cluster, work, *words).stdout)["job_id"]
    members = [SlurmRun(cluster, work / "runs" / "one" / f"0{n}", 1, 1, f"{job_id}_{n}") for n in range(2)]
    members[1].wait_checkpoint(10)
    # It puts itself back into the queue. Slurm's number of the last member is that of the array: its siblings must not
    # come along.
    cluster.run(["scancel", "--signal=USR2", f"{job_id}_1"])
    for member in members:
        member.wait_done()
    assert [member.num_attempts() for member in members] == [1, 2]
    assert [sorted(member.losses()) for member in members] == [list(range(1, steps + 1))] * 2
    grid = json.loads(cluster.run([sys.executable, "-m", "launcher", "status", "one", "--json"], cwd=work).stdout)
    assert [member["state"] for member in grid["members"]] == ["succeeded"] * 2
    assert grid["best"] == "one/00"


def test_a_sweep_is_one_array_and_every_member_knows_its_number(
    cluster: Cluster, work: Path, settings: list[str]
) -> None:
    setup, notes = noting(work)
    words = [*settings, setup, "seed=3,4,5", "--throttle", "2", "--json"]
    document = json.loads(submit(cluster, work, *words).stdout)
    folder = work / "runs" / "one"
    for index in range(3):
        cluster.wait_job(f"{document['job_id']}_{index}", "COMPLETED")
        assert (folder / f"slurm-{document['job_id']}_{index}.out").exists()
    jobs = parse_jobs(shown(cluster, document["job_id"]))
    assert {job.comment for job in jobs} == {f"launcher:{json.loads((folder / 'sweep.json').read_text())['key']}"}
    args = sorted(path.read_text().split("\0")[:-1] for path in notes.glob("args-*"))
    assert args == [[str(index), "--sweep", str(folder)] for index in range(3)]


def test_the_job_sees_listed_variables_and_no_other_secret(cluster: Cluster, work: Path, settings: list[str]) -> None:
    setup, notes = noting(work)
    secrets = {"WANDB_API_KEY": "canary-1b8f03", "AWS_SECRET_ACCESS_KEY": "canary-77d2ac"}
    words = [sys.executable, "-m", "launcher", "submit", *settings, setup, "--json"]
    done = cluster.run(words, cwd=work, env=secrets)
    job_id = json.loads(done.stdout)["job_id"]
    cluster.wait_job(job_id, "COMPLETED")
    seen = dict(word.partition("=")[::2] for word in (notes / f"env-{job_id}").read_text().split("\0"))
    assert seen["WANDB_API_KEY"] == "canary-1b8f03" and "AWS_SECRET_ACCESS_KEY" not in seen
    assert seen["LAUNCHER_PYTHON"] == sys.executable
    files = [path for path in (work / "runs").rglob("*") if path.is_file()]
    said = [done.stdout, done.stderr, shown(cluster, job_id), *(path.read_text(errors="replace") for path in files)]
    assert not [text for text in said if "canary" in text]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_hostile_names_and_arguments_arrive_as_they_are(cluster: Cluster, work: Path, count: int) -> None:
    """Folders and words made to break out, through sbatch, the controller, the node and the script."""
    canary = work / "canary"
    canary.mkdir()
    setup, notes = noting(work)
    texts = [text for text in hostile_texts(SEED, 20 * count, canary) if can_be_argument(text) and len(text) < 9000]
    names = [text.replace("/", "|") for text in texts if len(text.encode()) < 200]
    folders = [folder for name in names if name.strip(". ") and path_problem("runs_dir", folder := work / name) is None]
    queued = []
    for number, folder in enumerate(folders[:count]):
        folder.mkdir(exist_ok=True)
        config = job_config(nodes=1, devices_per_node=1, device=Device.cpu)
        config.cluster.setup_file = setup.partition("=")[2]
        script = share_dir("slurm") / "train.sbatch"
        words = ["--run", str(folder), *(word for word in texts[number::count] if "\n" not in word)]
        good = [word for word in words if word.isprintable() and word != ":"]
        argv = sbatch_argv(
            config,
            replace(
                request(), script=script, script_args=good, log_dir=folder, variables=["PATH", "LAUNCHER_SETUP_FILE"]
            ),
        )
        environment = {"LAUNCHER_SETUP_FILE": config.cluster.setup_file}
        job_id = cluster.run(argv, cwd=work, env=environment).stdout.strip()
        queued.append((job_id, folder, good))
    assert len(queued) == count
    for job_id, folder, words in queued:
        cluster.wait_job(job_id, "COMPLETED", timeout_s=300)
        assert (notes / f"args-{job_id}").read_text().split("\0")[1:-1] == words
        assert (folder / f"slurm-{job_id}.out").exists()
    assert list(canary.iterdir()) == []
