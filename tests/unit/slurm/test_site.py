"""What a cluster cannot give is said before a job waits for it; what it can give is not."""

from __future__ import annotations

import pytest

from launcher.config.cluster_schema import Device, GpuRequest
from launcher.slurm.client.parse import NodeKind, Partition
from launcher.slurm.submit.site import site_problems, site_warnings
from tests.unit.slurm.recipes import cpu_partition, gpu_partition, job_config

SITE = [gpu_partition(), cpu_partition()]


def keys(**cluster: object) -> list[str]:
    return [problem.key for problem in site_problems(job_config(**cluster), SITE)]


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"partition": "gpu", "walltime_min": 1440, "nodes": 6},
        {"devices_per_node": 8, "nodes": 4, "gpu_type": "h100", "cpus_per_task": 8},
        {"gpu_type": "a100", "nodes": 2, "memory_gib_per_node": 250.0},
        {"gpu_request": GpuRequest.none, "devices_per_node": 8, "nodes": 4},
        {"device": Device.cpu, "partition": "cpu", "devices_per_node": 4, "cpus_per_task": 4, "nodes": 3},
        {"partition": "cpu,gpu"},
        {"memory_gib_per_node": 0.0},
    ],
)
def test_what_the_cluster_has_is_not_refused(cluster: dict[str, object]) -> None:
    assert keys(**cluster) == []


@pytest.mark.parametrize(
    ("cluster", "key"),
    [
        ({"partition": "gpus"}, "cluster.partition"),
        ({"partition": "gpu,gpu9"}, "cluster.partition"),
        ({"nodes": 7}, "cluster.nodes"),
        ({"nodes": 5, "devices_per_node": 8}, "cluster.nodes"),
        ({"nodes": 3, "gpu_type": "a100"}, "cluster.nodes"),
        ({"devices_per_node": 9}, "cluster.devices_per_node"),
        ({"devices_per_node": 8, "gpu_type": "a100"}, "cluster.devices_per_node"),
        ({"gpu_type": "h200"}, "cluster.gpu_type"),
        ({"partition": "cpu"}, "cluster.devices_per_node"),
        ({"cpus_per_task": 17}, "cluster.cpus_per_task"),
        ({"memory_gib_per_node": 501.0}, "cluster.memory_gib_per_node"),
        ({"walltime_min": 1441}, "cluster.walltime_min"),
        ({"partition": "cpu", "device": Device.cpu, "walltime_min": 61}, "cluster.walltime_min"),
    ],
)
def test_what_it_lacks_is_refused_by_name(cluster: dict[str, object], key: str) -> None:
    assert keys(**cluster) == [key]


def test_cores_are_compared_as_they_will_be_asked_for() -> None:
    """Four with each GPU where nothing is said: 8 GPUs on a node of 16 cores would wait for ever."""
    small = [gpu_partition(kinds=[NodeKind(count=4, cpus=16, memory_mib=512_000, gpus={"": 8}, state="idle")])]
    (problem,) = site_problems(job_config(devices_per_node=8), small)
    assert (problem.key, problem.value) == ("cluster.cpus_per_task", None)
    assert "each needs 32" in problem.why and "The default is 4 for each GPU" in problem.hint
    for fits in ({"cpus_per_task": 2}, {"exclusive": True}, {"gpu_request": GpuRequest.none}, {"devices_per_node": 4}):
        assert site_problems(job_config(**{"devices_per_node": 8, **fits}), small) == []


def test_the_nearest_partition_is_named() -> None:
    (problem,) = site_problems(job_config(partition="gpus"), SITE)
    assert "Did you mean gpu?" in problem.hint


def test_all_that_is_lacking_is_said_at_once() -> None:
    found = keys(partition="gpuu", nodes=9, devices_per_node=9, walltime_min=9999, memory_gib_per_node=5000.0)
    assert set(found) == {
        "cluster.partition",
        "cluster.nodes",
        "cluster.devices_per_node",
        "cluster.walltime_min",
        "cluster.memory_gib_per_node",
    }


def test_a_job_may_go_where_it_fits() -> None:
    long = gpu_partition("long", is_default=False, time_limit_s=None)
    assert site_problems(job_config(partition="gpu,long", walltime_min=5000), [gpu_partition(), long]) == []


def test_without_a_default_partition_one_must_be_chosen() -> None:
    (problem,) = site_problems(job_config(), [gpu_partition(is_default=False)])
    assert problem.key == "cluster.partition" and "gpu" in problem.hint


def test_a_limit_on_the_nodes_of_one_job_is_known() -> None:
    (problem,) = site_problems(job_config(nodes=3), [gpu_partition(max_nodes=2)])
    assert (problem.key, problem.hint) == ("cluster.nodes", "Give 2 or less")


def test_the_partition_of_the_other_stages_is_looked_at_only_for_them() -> None:
    config = job_config(cpu_partition="cpus", stage_walltime_min=600)
    assert site_problems(config, SITE) == []
    assert [p.key for p in site_problems(config, SITE, stages=("prepare", "train"))] == ["cluster.cpu_partition"]
    config.cluster.cpu_partition = "cpu"
    assert [p.key for p in site_problems(config, SITE, stages=("train", "export"))] == ["cluster.stage_walltime_min"]


def test_what_may_change_while_a_job_waits_is_only_a_warning() -> None:
    down = [gpu_partition(kinds=[NodeKind(count=4, cpus=64, memory_mib=512_000, gpus={"": 8}, state="drained")])]
    assert site_problems(job_config(), down) == []
    assert "only 0 nodes of partition gpu work at present" in site_warnings(job_config(), down)[0]
    assert "does not start jobs" in site_warnings(job_config(), [gpu_partition(is_up=False)])[0]
    assert site_warnings(job_config(), [gpu_partition()]) == []


def test_an_empty_cluster_is_no_crash() -> None:
    assert [problem.key for problem in site_problems(job_config(), [])] == ["cluster.partition"]
    empty = Partition(name="gpu", is_default=True)
    assert {problem.key for problem in site_problems(job_config(), [empty])} == {
        "cluster.devices_per_node",
        "cluster.nodes",
    }
