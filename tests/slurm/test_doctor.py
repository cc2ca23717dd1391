"""launcher doctor on a real cluster: healthy nodes, a pair that cannot talk, a node that is gone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.slurm.cluster import Cluster

WAIT_S = 240


def doctor(cluster: Cluster, name: str, *words: str, nodes: int) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings."""
    settings = ["cluster=slurm", "cluster.device=cpu", "cluster.devices_per_node=1", f"cluster.nodes={nodes}"]
    command = ["launcher", "doctor", *settings, f"runs_dir={cluster.shared}/{name}", "--json", *words]
    done = cluster.run(command, check=False, timeout_s=WAIT_S + 60)
    assert done.returncode in (0, 2), done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def texts(findings: list[dict[str, Any]], level: str) -> list[str]:
    return [f"{one['check']}: {one['text']}" for one in findings if one["level"] == level]


def test_two_healthy_nodes_pass_everything(cluster: Cluster) -> None:
    code, findings = doctor(cluster, "healthy", f"--wait={WAIT_S}", nodes=2)
    assert code == 0 and texts(findings, "FAIL") == []
    fine = "\n".join(texts(findings, "OK"))
    for expected in ("nodes: 2 nodes answered", "shared folder: every node sees", "versions: the same on all nodes"):
        assert expected in fine
    assert "collective: a sum of 16 MiB over 2 ranks (gloo)" in fine
    assert list((cluster.shared / "healthy").iterdir()) == []


def test_a_pair_of_nodes_that_cannot_talk_is_named(cluster: Cluster) -> None:
    if cluster.num_nodes < 3:
        pytest.skip("needs a third node, from which srun reaches both")
    # n1, where srun runs, reaches both; only the way between the others is gone, as by a firewall.
    cluster.run(["ip", "route", "add", "unreachable", "10.77.1.3"], node="n2")
    try:
        code, findings = doctor(cluster, "pair", f"--wait={WAIT_S}", nodes=3)
    finally:
        cluster.run(["ip", "route", "del", "unreachable", "10.77.1.3"], node="n2")
    assert code == 2
    failed = texts(findings, "FAIL")
    assert len(failed) == 2
    assert any(text.startswith("network: n2 cannot reach n3") for text in failed)
    assert any(text.startswith("network: n3 cannot reach n2") for text in failed)


def test_a_node_whose_cable_is_cut_is_named(cluster: Cluster) -> None:
    last = f"n{cluster.num_nodes}"
    cluster.node("cut", last)
    deadline = time.monotonic() + 60
    while not is_missed(cluster, last):
        assert time.monotonic() < deadline, f"Slurm does not miss {last}"
        time.sleep(0.2)
    code, findings = doctor(cluster, "cut", "--wait=3", nodes=cluster.num_nodes)
    assert code == 2
    assert any(text.startswith("job: ") and "did not start within 3 s" in text for text in texts(findings, "FAIL"))
    assert any(text.startswith(f"slurm: {last} is ") for text in texts(findings, "WARN"))


def is_missed(cluster: Cluster, node: str) -> bool:
    states = cluster.run(["sinfo", "--noheader", "--Node", f"--nodes={node}", "--partition=main", "--format=%t"]).stdout
    return states.strip().endswith("*")


def test_settings_the_cluster_cannot_fulfil_fail_before_anything_is_queued(cluster: Cluster) -> None:
    code, findings = doctor(cluster, "refused", "cluster.partition=fast", nodes=50)
    assert code == 2
    assert any("cluster.partition = 'fast'" in text for text in texts(findings, "FAIL"))
    assert not (cluster.shared / "refused").exists()
