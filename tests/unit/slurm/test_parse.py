"""What Slurm prints, read back: odd values, arrays, node lists, and text that users typed into it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from launcher.errors import LauncherError
from launcher.slurm.client.parse import (
    hostnames,
    parse_duration_s,
    parse_gpus,
    parse_job,
    parse_jobs,
    parse_partitions,
    parse_sacct,
    parse_slurm_time,
    parse_squeue,
)

RUNNING = (
    "JobId=17 JobName=lora UserId=ann(1001) GroupId=ann(1001) MCS_label=N/A Priority=4294901759 Nice=0 "
    "Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:01 TimeLimit=1-02:03:04 TimeMin=N/A SubmitTime=2026-03-01T10:00:00 "
    "EligibleTime=2026-03-01T10:02:00 AccrueTime=2026-03-01T10:00:00 StartTime=2026-03-01T10:05:00 "
    "EndTime=2026-03-02T12:08:04 Deadline=N/A Partition=gpu AllocNode:Sid=login1:77 ReqNodeList=(null) "
    "ExcNodeList=n[7,9] NodeList=n[1-2] BatchHost=n1 NumNodes=2 CPUs/Task=4 ReqB:S:C:T=0:0:*:* "
    "Command=/share/slurm/train.sbatch --run /runs/a WorkDir=/home/ann Comment=launcher:ab12 "
    "StdErr=/runs/a/slurm-17.out StdIn=/dev/null StdOut=/runs/a/slurm-17.out Power= "
)


def test_a_running_job_is_read_whole() -> None:
    job = parse_job(RUNNING)
    assert (job.job_id, job.state, job.reason, job.restarts, job.partition) == ("17", "RUNNING", "", 2, "gpu")
    assert (job.nodes, job.excluded) == (["n1", "n2"], ["n7", "n9"])
    assert job.time_limit_s == 26 * 3600 + 3 * 60 + 4
    assert job.started == datetime(2026, 3, 1, 10, 5, tzinfo=UTC)
    assert job.eligible == datetime(2026, 3, 1, 10, 2, tzinfo=UTC)
    assert (job.comment, job.exit_code) == ("launcher:ab12", "0:0")
    assert (job.name, job.array_task_id) == ("17", "")


def test_what_a_waiting_job_does_not_know_yet_is_left_open() -> None:
    line = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=PENDING Reason=Nodes required are DOWN, DRAINED")
    for key in ("StartTime", "EndTime"):
        line = line.replace(f"{key}=2026-03-0{1 if key == 'StartTime' else 2}T1", f"{key}=Unknown ")
    job = parse_job(line.replace("NodeList=n[1-2]", "NodeList="))
    assert (job.started, job.ended, job.nodes) == (None, None, [])
    assert job.reason == "Nodes required are DOWN, DRAINED"


@pytest.mark.parametrize(
    "name", ["a b", "x JobState=FAILED NodeList=evil", "UserId=root", "Restarts=9 (1) GroupId=", "="]
)
def test_a_job_name_is_never_taken_for_a_field(name: str) -> None:
    job = parse_job(RUNNING.replace("JobName=lora", f"JobName={name}"))
    assert (job.state, job.restarts, job.nodes) == ("RUNNING", 2, ["n1", "n2"])


def test_a_comment_is_never_taken_for_a_field() -> None:
    job = parse_job(RUNNING.replace("launcher:ab12", "x JobState=FAILED StdOut=/etc/passwd Restarts=9"))
    assert (job.state, job.restarts) == ("RUNNING", 2)


def test_flags_behind_a_state_are_left_out() -> None:
    assert parse_job(RUNNING.replace("RUNNING", "PENDING+REQUEUED")).state == "PENDING"


def test_members_of_an_array_are_told_apart() -> None:
    jobs = parse_jobs(
        RUNNING.replace("JobId=17", "JobId=18 ArrayJobId=17 ArrayTaskId=0 ArrayTaskThrottle=2")
        + "\n"
        + RUNNING.replace("JobId=17", "JobId=17 ArrayJobId=17 ArrayTaskId=1-3%2 ArrayTaskThrottle=2")
        + "\n\n"
    )
    assert [(job.job_id, job.name) for job in jobs] == [("18", "17_0"), ("17", "17_1-3%2")]


def test_what_is_no_job_is_refused() -> None:
    with pytest.raises(LauncherError, match="unexpected"):
        parse_job("No jobs in the system")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:05", 5),
        ("10:00", 600),
        ("30", 1800),
        ("1-00:00:00", 86_400),
        ("2-03", 2 * 86_400 + 3 * 3600),
        ("2-03:04", 2 * 86_400 + 3 * 3600 + 240),
        ("365-00:00:00", 365 * 86_400),
        ("UNLIMITED", None),
        ("infinite", None),
        ("Partition_Limit", None),
        ("INVALID", None),
        ("n/a", None),
        ("", None),
    ],
)
def test_a_duration_is_read_in_every_spelling(text: str, seconds: int | None) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["Unknown", "N/A", "None", "", "now", "2026-13-40T00:00:00"])
def test_a_time_that_is_none_stays_open(text: str) -> None:
    assert parse_slurm_time(text) is None


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("gpu[008-010]", ["gpu008", "gpu009", "gpu010"]),
        ("a1,b[2,4],c", ["a1", "b2", "b4", "c"]),
        ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]),
        ("[a,b]1", ["a1", "b1"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("", []),
        ("(null)", []),
        ("None assigned", []),
    ],
)
def test_a_node_list_is_expanded_as_slurm_does(nodelist: str, names: list[str]) -> None:
    assert hostnames(nodelist) == names


@pytest.mark.parametrize("nodelist", ["n[1-3", "n1]", "n[3-1]", "n[1-999999999]", "n[0-999]x[0-999]", "n[a-c]"])
def test_a_node_list_that_is_none_is_refused(nodelist: str) -> None:
    with pytest.raises(LauncherError):
        hostnames(nodelist)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:4", {"h100": 4}),
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:h100:4(S:0-1),gpu:a100:2(S:0,2),shard:8", {"h100": 4, "a100": 2}),
        ("gpu:a100_3g.20gb:4(S:0)", {"a100_3g.20gb": 4}),
        ("gpu:no_consume:4", {"": 4}),
        ("(null)", {}),
        ("craynetwork:4", {}),
    ],
)
def test_gpus_of_a_node_are_counted_by_type(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


def test_a_partition_gathers_its_kinds_of_nodes() -> None:
    text = (
        "gpu*|4|64|515000|2-00:00:00|1-2|up|idle|gpu:h100:8\n"
        "gpu*|2|48|256000|2-00:00:00|1-2|up|down*|gpu:a100:4\n"
        "cpu|9|128+|1000000+|infinite|1-infinite|inact|mix|(null)\n"
        "empty|0|0|0|30:00|1-infinite|up|n/a|(null)\n"
    )
    gpu, cpu, empty = parse_partitions(text)
    assert (gpu.name, gpu.is_default, gpu.nodes, gpu.max_nodes, gpu.time_limit_s) == ("gpu", True, 6, 2, 172_800)
    assert [(kind.count, kind.gpus, kind.state) for kind in gpu.kinds] == [
        (4, {"h100": 8}, "idle"),
        (2, {"a100": 4}, "down"),
    ]
    assert gpu.working_nodes == 4
    assert (cpu.is_up, cpu.time_limit_s, cpu.max_nodes, cpu.kinds[0].cpus) == (False, None, None, 128)
    assert (empty.nodes, empty.kinds, empty.time_limit_s) == (0, [], 1800)


def test_squeue_gives_the_same_jobs_with_the_comment_last() -> None:
    text = (
        "21|20|1|PENDING|gpu|10:00|2026-03-01T10:00:00|N/A|N/A||(Resources, Priority)|a|b\n"
        "22|22|N/A|RUNNING|gpu|UNLIMITED|2026-03-01T10:00:00|2026-03-01T10:01:00|NONE|n[1-2]|None|(null)\n"
    )
    waiting, running = parse_squeue(text)
    assert (waiting.name, waiting.comment, waiting.started) == ("20_1", "a|b", None)
    assert (running.name, running.comment, running.nodes, running.reason) == ("22", "", ["n1", "n2"], "")


def test_accounting_tells_of_jobs_and_members_that_are_over() -> None:
    day = "2026-01-01T00"
    text = (
        f"7|CANCELLED by 1000|0:0|main|{day}:00:00|{day}:00:00|None|{day}:01:00|UNLIMITED|None assigned\n"
        f"9_2|NODE_FAIL|1:0|gpu|{day}:00:00|{day}:00:00|{day}:00:05|{day}:01:00|1-00:00:00|n[1-2]\n"
        "a line of something else\n"
    )
    gone, member = parse_sacct(text)
    assert (gone.job_id, gone.state, gone.nodes, gone.started, gone.time_limit_s) == ("7", "CANCELLED", [], None, None)
    assert (member.name, member.array_job_id, member.state) == ("9_2", "9", "NODE_FAIL")
    assert member.nodes == ["n1", "n2"] and member.time_limit_s == 86_400
