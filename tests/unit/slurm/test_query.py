"""Calling Slurm's tools: what is missing, refused, or only away for a moment. The tools here are small programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launcher.errors import SlurmError, SlurmUnavailable
from launcher.slurm.client.query import Slurm


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stands before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def write(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_missing_tool_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmUnavailable, match="sinfo is not installed here"):
        Slurm(retry_s=3600).partitions()


def test_a_controller_that_comes_back_is_asked_again(tool: Path) -> None:
    count = tool / "count"
    write(
        tool,
        "scontrol",
        f"path = {str(count)!r}\n"
        "open(path, 'a').write('x')\n"
        "if len(open(path).read()) < 3:\n"
        "    sys.exit('slurm_load_jobs error: Unable to contact slurm controller (connect failure)')\n"
        "print('JobId=5 JobName=a UserId=a(1) GroupId=a(1) JobState=RUNNING Reason=None')",
    )
    job = Slurm(retry_s=60).job("5")
    assert job is not None and job.state == "RUNNING"
    assert count.read_text() == "xxx"


def test_a_controller_that_stays_away_is_said_in_its_own_words(tool: Path) -> None:
    write(tool, "sinfo", "sys.exit('slurm_load_partitions: Unable to contact slurm controller (connect failure)')")
    with pytest.raises(SlurmUnavailable, match="connect failure"):
        Slurm(retry_s=0).partitions()


def test_a_tool_that_hangs_is_given_up(tool: Path) -> None:
    write(tool, "sinfo", "import time; time.sleep(600)")
    with pytest.raises(SlurmUnavailable, match="did not answer within 1 s"):
        Slurm(retry_s=0, timeout_s=1).partitions()


def test_a_job_nobody_knows_is_none(tool: Path) -> None:
    write(tool, "scontrol", "sys.exit('slurm_load_jobs error: Invalid job id specified')")
    assert Slurm().job("5") is None


def test_a_refusal_is_not_repeated(tool: Path) -> None:
    count = tool / "count"
    write(tool, "scontrol", f"open({str(count)!r}, 'a').write('x')\nsys.exit('Access/permission denied for job 5')")
    with pytest.raises(SlurmError, match="permission denied") as raised:
        Slurm(retry_s=60).requeue("5")
    assert not isinstance(raised.value, SlurmUnavailable)
    assert count.read_text() == "x"


def test_settings_of_the_users_shell_do_not_change_what_is_asked(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SINFO_FORMAT", "%N")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write(
        tool,
        "squeue",
        "names = [name for name in os.environ if name.startswith(('SQUEUE_', 'SINFO_'))]\n"
        "assert not names and os.environ['SLURM_TIME_FORMAT'] == 'standard' and os.environ['TZ'] == 'UTC', names",
    )
    assert Slurm().my_jobs() == []


@pytest.mark.parametrize("job_id", ["", "-1", "5;rm", "5_", "5_a", "--all", "５", "1,2"])
def test_only_a_job_number_reaches_a_tool(job_id: str) -> None:
    with pytest.raises(SlurmError, match="is not a Slurm job id"):
        Slurm().cancel(job_id)


def test_signals_go_where_they_are_meant_to(tool: Path) -> None:
    said = tool / "said"
    write(tool, "scancel", f"open({str(said)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')")
    slurm = Slurm()
    slurm.cancel("5")
    slurm.cancel("5_2", signal="USR2")
    write(tool, "squeue", "print('5.batch\\n5.extern\\n5.0\\n5.1')")
    slurm.signal_steps("5", "USR2")
    assert said.read_text().splitlines() == [
        "5",
        "--signal=USR2 5_2",
        "--signal=USR2 5.0 5.1",
    ]


FORGOTTEN = "sys.exit('slurm_load_jobs error: Invalid job id specified')"


def test_what_the_controller_forgot_the_accounting_may_know(tool: Path) -> None:
    write(tool, "scontrol", FORGOTTEN)
    write(tool, "squeue", FORGOTTEN)
    write(
        tool,
        "sacct",
        "print('5|OUT_OF_MEMORY|0:125|gpu|2026-01-01T00:00:00|Unknown|Unknown|2026-01-01T01:00:00|10:00|n1')",
    )
    job = Slurm().job("5")
    assert job is not None and (job.state, job.finished, job.nodes) == ("OUT_OF_MEMORY", True, ["n1"])
    assert [job.job_id for job in Slurm().listed(["5"])] == ["5"]


def test_what_accounting_calls_running_and_the_controller_does_not_know_is_gone(tool: Path) -> None:
    write(tool, "scontrol", FORGOTTEN)
    write(tool, "squeue", FORGOTTEN)
    write(tool, "sacct", "print('5|RUNNING|0:0|gpu|2026-01-01T00:00:00|Unknown|Unknown|Unknown|10:00|n1')")
    assert Slurm().job("5") is None and Slurm().listed(["5"]) == []


def test_a_site_without_accounting_is_asked_for_it_once(tool: Path) -> None:
    count = tool / "count"
    write(tool, "scontrol", FORGOTTEN)
    write(tool, "sacct", f"open({str(count)!r}, 'a').write('x')\nsys.exit('Slurm accounting storage is disabled')")
    slurm = Slurm()
    assert slurm.job("5") is None and slurm.job("5") is None
    assert count.read_text() == "x"
