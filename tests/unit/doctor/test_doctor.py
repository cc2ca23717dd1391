"""What launcher doctor finds here, and what it makes of the reports of nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from launcher.cli import main
from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.config.compose import compose_with_problems
from launcher.doctor import probe
from launcher.doctor.filesystem import folder_findings, semantics, shared_finding
from launcher.doctor.findings import CheckLevel, CheckResult, fail, ok
from launcher.doctor.job import SITE as SITE_FILE
from launcher.doctor.job import task_argv
from launcher.doctor.judge import judge_nodes, judge_sum
from launcher.doctor.machine import compare_packages
from launcher.doctor.reports import Link, NodeReport, SumReport
from launcher.doctor.site import plan_job, tool_findings
from launcher.files import read_record, write_json
from launcher.slurm.client.query import Slurm
from tests.unit.slurm.recipes import job_config

HERE = {"launcher": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}


def report(node: str, *peers: str, **changes: Any) -> NodeReport:
    """What a healthy node says."""
    links = [Link(peer=peer, round_trip_ms=0.1, clock_ahead_s=0.001, mib_per_s=900.0) for peer in peers]
    healthy: dict[str, Any] = {
        "node": node, "host": node, "sees_folder": True, "versions": dict(HERE), "driver": "550.1",
        "gpus": ["H100"] * 8, "cores": 64, "memory_gib": 500.0, "shm_gib": 250.0, "links": links,
        "sees": ["n1", "n2", "n3"],
    }  # fmt: skip
    return NodeReport(**{**healthy, **changes})


def three(**of_n2: Any) -> list[NodeReport]:
    """Three nodes; the second differs."""
    return [report("n1", "n2", "n3"), report("n2", "n1", "n3", **of_n2), report("n3", "n1", "n2")]


def judged(reports: list[NodeReport], device: str = "cuda", per_node: int = 8) -> list[CheckResult]:
    return judge_nodes(reports, ["n1", "n2", "n3"], device=device, devices_per_node=per_node, here=dict(HERE))


def bad(findings: list[CheckResult]) -> list[str]:
    return [
        f"{finding.level.value} {finding.check}: {finding.text}"
        for finding in findings
        if finding.level is not CheckLevel.ok
    ]


def test_healthy_nodes_give_no_complaint() -> None:
    assert bad(judged(three())) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sees_folder": False, "folder_error": "not there"}, ["FAIL shared folder: n2 does not see it: not there"]),
        ({"sees": ["n2"]}, ["WARN shared folder: n2 does not see what n1, n3 wrote"]),
        ({"versions": {**HERE, "torch": "2.6.0"}}, ["FAIL versions: torch differs: n1 2.13.0, n2 2.6.0, n3 2.13.0"]),
        ({"versions": {**HERE, "torch": None}}, ["FAIL versions: torch differs: n1 2.13.0, n2 None, n3 2.13.0"]),
        ({"driver": ""}, ["WARN versions: GPU driver differs: n1 550.1, n2 none, n3 550.1"]),
        ({"gpus": ["H100"] * 7}, ["FAIL gpu: n2 shows 7 GPUs, cluster.devices_per_node = 8"]),
        ({"gpus": ["A100"] * 8}, ["WARN gpu: nodes have GPUs of different kinds; the slowest sets the pace"]),
        ({"shm_gib": 0.1}, ["WARN memory: n2 has 0.1 GiB free in /dev/shm"]),
    ],
)
def test_a_node_that_differs_is_named(changes: dict[str, Any], expected: list[str]) -> None:
    assert bad(judged(three(**changes))) == expected


def test_a_node_that_says_nothing_is_named() -> None:
    assert bad(judged([report("n1", "n3"), report("n3", "n1")])) == ["FAIL nodes: n2 did not report"]


def test_packages_here_that_the_nodes_do_not_have_are_told() -> None:
    nodes = [replace(one, versions={**HERE, "launcher": "0.0.9"}) for one in three()]
    assert bad(judged(nodes)) == ["WARN versions: launcher 0.1.0 here, 0.0.9 on the nodes"]


def test_a_run_on_cpus_wants_no_gpus() -> None:
    assert bad(judged([replace(one, gpus=[], driver="") for one in three()], "cpu", 1)) == []


def with_links(**errors: tuple[str, ...]) -> list[NodeReport]:
    """Three nodes; `n1=("n2",)` says that n1 does not reach n2."""
    nodes = three()
    for node in nodes:
        broken = errors.get(node.node, ())
        node.links = [replace(link, error="timed out") if link.peer in broken else link for link in node.links]
    return nodes


def test_a_broken_pair_is_named_and_neither_of_it_is_blamed() -> None:
    found = bad(judged(with_links(n1=("n2",))))
    assert found == ["FAIL network: n1 cannot reach n2: timed out"]


def test_the_node_in_every_broken_pair_is_blamed() -> None:
    found = bad(judged(with_links(n1=("n2",), n3=("n2",), n2=("n1", "n3"))))
    assert len(found) == 5 and "FAIL network: n2 is in every broken pair" in found


@pytest.mark.parametrize(
    ("figure", "value", "expected"),
    [
        ("round_trip_ms", 30.0, "WARN network: slowest answer after 30.00 ms (n2 to n1)"),
        ("mib_per_s", 11.0, "WARN network: least 11 MiB/s by TCP (n2 to n1)"),
        ("clock_ahead_s", -7.5, "WARN clock: clocks of nodes differ by 7.500 s at most (n2, n1)"),
    ],
)
def test_a_slow_link_and_a_wrong_clock_are_warnings(figure: str, value: float, expected: str) -> None:
    nodes = three()
    nodes[1].links[0] = replace(nodes[1].links[0], **{figure: value})
    assert bad(judged(nodes)) == [expected]


def test_ranks_that_fail_or_say_nothing_in_the_sum_are_counted() -> None:
    good = SumReport(rank=0, host="n1", backend="gloo", mib=16, seconds=0.1, gib_per_s=0.2)
    assert bad(judge_sum([good, replace(good, rank=1)], 2)) == []
    found = bad(judge_sum([replace(good, error="Timeout")], 2))
    assert found == ["FAIL collective: rank 0 on n1: Timeout", "FAIL collective: 1 of 2 ranks did not report"]


def test_a_healthy_folder_passes_everything_and_is_left_as_it_was(tmp_path: Path) -> None:
    findings = list(semantics_of(tmp_path))
    assert bad(findings) == [] and len(findings) == 9
    assert not [finding for finding in folder_findings(tmp_path / "not" / "there") if finding.level is CheckLevel.fail]
    assert list(tmp_path.iterdir()) == []


def semantics_of(folder: Path) -> Iterator[CheckResult]:
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        yield from semantics(Path(scratch))


def test_a_folder_that_cannot_be_written_to_fails() -> None:
    assert "cannot be written to" in bad(folder_findings(Path("/proc/self")))[0]


def test_a_disk_of_this_machine_is_odd_for_a_cluster_until_nodes_were_seen_to_share_it(tmp_path: Path) -> None:
    assert shared_finding(tmp_path, [fail("shared folder", "no")]).level is CheckLevel.warn
    assert shared_finding(tmp_path, [ok("shared folder", "yes")]).level is CheckLevel.ok


def test_packages_are_compared_with_what_is_asked_for() -> None:
    wanted = [Requirement("numpy>=1"), Requirement("psutil>=999"), Requirement("no-such-package")]
    found = list(compare_packages("packages", wanted, " for this", "pip install it"))
    assert [finding.text.split(" is ")[0].split()[0] for finding in found] == ["psutil", "no-such-package"]
    assert ">=999 is needed for this" in found[0].text and "not installed" in found[1].text
    assert [one.level for one in compare_packages("packages", wanted[:1], "", "")] == [CheckLevel.ok]


def test_without_slurm_tools_a_machine_is_well_and_a_site_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bad(tool_findings(Slurm(retry_s=0), needed=False)) == []
    assert bad(tool_findings(Slurm(retry_s=0), needed=True)) == ["FAIL slurm: no Slurm tools on this host"]


SITE = ["cluster=slurm", "cluster.nodes=2", "cluster.devices_per_node=4", "cluster.partition=gpu"]


def test_the_job_is_as_large_as_the_run_but_short_and_carries_no_values_of_variables(tmp_path: Path) -> None:
    config, _ = compose_with_problems([*SITE, "cluster.walltime_min=1440", f"runs_dir={tmp_path}"])
    job = plan_job(config, {"PATH": "/bin", "WANDB_API_KEY": "canary"})
    assert {"--nodes=2", "--gpus-per-node=4", "--partition=gpu", "--time=10"} <= set(job.argv)
    assert job.argv[-5].endswith("doctor.sbatch") and job.argv[-4:] == [str(job.folder), job.token, "cuda", "4"]
    assert "canary" not in " ".join(job.argv)
    assert list(tmp_path.iterdir()) == []


def test_the_probe_starts_where_ranks_would_with_the_variables_they_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "no-cache-yet"))
    config = job_config(
        container=ContainerRuntime.apptainer,
        container_image="/images/a.sif",
        container_mounts=["/a:/b"],
        environment={"NCCL_DEBUG": "INFO"},
    )
    write_json(tmp_path / SITE_FILE, plan_job(config, {"PATH": "/bin"}).cluster)
    cluster = read_record(ClusterConfig, tmp_path / SITE_FILE)
    assert cluster.environment == {"NCCL_DEBUG": "INFO"}
    words = task_argv(cluster, 2, 1, ["x.probe", "y"], folder=tmp_path, output="probe-%n.json", device="cuda")
    assert {"--nodes=2", "--ntasks=2", f"--output={tmp_path}/probe-%n.json"} <= set(words)
    inside = words[words.index("apptainer") :]
    bound = [inside[place + 1] for place, word in enumerate(inside) if word == "--bind"]
    assert bound == [f"{tmp_path}:{tmp_path}", f"{Path.cwd()}:{Path.cwd()}", "/a:/b"]
    assert "--nv" in inside and inside[-5:] == ["/images/a.sif", "python", "-m", "x.probe", "y"]


def test_without_a_container_the_probe_has_the_python_of_the_job(tmp_path: Path) -> None:
    config, _ = compose_with_problems([*SITE, "runs_dir=runs"])
    words = task_argv(config.cluster, 1, 4, ["x.y"], folder=tmp_path, output="o", device="cuda")
    assert words[-3:] == [sys.executable, "-m", "x.y"] and "--ntasks=4" in words


def test_a_dry_run_shows_the_job_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *SITE, f"runs_dir={tmp_path / 'runs'}", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["argv"][0] == "sbatch"
    assert list(tmp_path.iterdir()) == []


def test_this_machine_is_checked_without_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"runs_dir={tmp_path}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 0
    assert {"python", "packages", "gpu", "runs_dir", "disk", "slurm"} <= {one["check"] for one in document["findings"]}


def test_a_setting_that_does_not_exist_fails_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", f"runs_dir={tmp_path}", "cluster.nodez=2"]) == 2
    assert "cluster.nodez" in capsys.readouterr().out


def free_ports(count: int) -> list[int]:
    from launcher.runs.network import free_port

    return [free_port() for _ in range(count)]


def test_a_probe_measures_a_real_connection() -> None:
    ports = free_ports(1)
    server = probe._Server(ports, "word", expected=1)
    link = probe.measure("127.0.0.1", ports, "word")
    assert link.error == "" and link.port == ports[0]
    assert link.round_trip_ms > 0 and link.mib_per_s > 0 and abs(link.clock_ahead_s) < 1
    server.wait(1, timeout_s=60)  # it was told that we are through


def test_a_probe_passes_over_a_port_that_is_somebody_elses() -> None:
    """The first port belongs to another job of the same kind."""
    ports = free_ports(2)
    probe._Server(ports[:1], "another", expected=1)
    probe._Server(ports[1:], "word", expected=1)
    assert probe.measure("127.0.0.1", ports, "word").port == ports[1]


def test_a_probe_waits_for_a_node_that_starts_later() -> None:
    ports = free_ports(1)
    late = threading.Timer(1.0, lambda: probe._Server(ports, "word", expected=1))
    late.start()
    assert probe.measure("127.0.0.1", ports, "word").error == ""
    late.join()


def test_a_probe_of_one_node_tells_its_facts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("word")
    environ = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}
    words = [sys.executable, "-m", "launcher.doctor.probe", str(tmp_path), "word"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    assert said["node"] == "n1" and said["sees_folder"] and said["links"] == [] and said["sees"] == [said["host"]]
    assert said["versions"]["launcher"] and said["cores"] > 0
