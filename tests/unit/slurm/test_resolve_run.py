from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from launcher.config.frozen import load_config
from launcher.errors import ConfigErrors, RunError, WorldError
from launcher.paths import RunPaths
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.job.resolve_run import Asked, adopted, check_world, find_or_make_run
from tests.made import make_allocation
from tests.unit.slurm.test_srun import derived


def allocation(*, nodes: int = 2, **given: Any) -> Allocation:
    return make_allocation(nodes, cluster="here", **given)


@pytest.fixture()
def settings(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    tiny = (f"model.name_or_path={tiny_model}", "data.seq_len_tokens=128")
    return (*tiny, "data.path=builtin:next_number", "strategy=zero2", "strategy.precision=fp32")


def test_a_restart_of_the_job_finds_its_run_without_composing(settings: tuple[str, ...]) -> None:
    asked = Asked(overrides=settings)
    made = find_or_make_run(asked, allocation(cpus_per_node=4))
    frozen = RunPaths(made).config.read_bytes()
    Path("broken.yaml").write_text("nonsense: [")
    again = find_or_make_run(asked, allocation(cpus_per_node=4, restart=1))
    assert again == made
    assert RunPaths(made).config.read_bytes() == frozen
    assert [path.name for path in Path("runs").iterdir() if path.name != ".jobs"] == [made.name]


def test_the_run_is_planned_for_what_the_job_has(settings: tuple[str, ...]) -> None:
    made = find_or_make_run(Asked(overrides=settings), allocation(cpus_per_node=4, tasks_per_node=2, partition="low"))
    frozen = load_config(RunPaths(made).config)
    assert frozen.derived is not None
    assert (frozen.derived.world_size, frozen.derived.devices_per_node, frozen.derived.device) == (4, 2, "cpu")
    assert frozen.derived.threads_per_process == 2
    assert (frozen.config.cluster.kind.value, frozen.config.cluster.partition) == ("slurm", "low")


def test_another_job_with_the_same_settings_makes_a_run_of_its_own(settings: tuple[str, ...]) -> None:
    asked = Asked(overrides=settings)
    assert find_or_make_run(asked, allocation()) != find_or_make_run(asked, allocation(job_id="8"))


def test_a_job_number_that_comes_again_does_not_continue_the_old_run(settings: tuple[str, ...]) -> None:
    asked = Asked(overrides=settings)
    assert find_or_make_run(asked, allocation()) != find_or_make_run(asked, allocation())


def test_a_run_that_was_removed_is_never_begun_again_by_a_restart(settings: tuple[str, ...]) -> None:
    asked = Asked(overrides=settings)
    made = find_or_make_run(asked, allocation())
    made.rename(made.with_name("elsewhere"))
    with pytest.raises(RunError, match="never trains from scratch"):
        find_or_make_run(asked, allocation(restart=1))


def test_settings_that_do_not_compose_leave_no_run(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigErrors, match=r"optim\.lrr"):
        find_or_make_run(Asked(overrides=(*settings, "optim.lrr=1")), allocation())
    assert not Path("runs").exists()


def test_what_was_typed_is_not_adopted_from_the_job(settings: tuple[str, ...]) -> None:
    typed = ("cluster.nodes=1", "cluster.devices_per_node=3", "cluster.kind=local", "cluster.threads_per_process=1")
    found = adopted(Asked(overrides=(*settings, *typed)), allocation(nodes=4))
    assert found == ["cluster.device=cpu"]


@pytest.mark.parametrize(
    ("world", "job", "why"),
    [
        pytest.param({"nodes": 2}, {"nodes": 3}, r"planned for 2 x 4 .* the job has 3 nodes.*--nodes=2", id="nodes"),
        pytest.param({}, {"gpus_per_node": 2}, r"has 2 GPUs on a node.*--gpus-per-node=4", id="GPUs"),
        pytest.param(
            {"device": "cpu"}, {"tasks_per_node": 2}, r"asks for --ntasks-per-node=2.*--ntasks-per-node=4", id="tasks"
        ),
    ],
)
def test_a_plan_that_the_job_cannot_hold_is_refused(world: dict[str, Any], job: dict[str, Any], why: str) -> None:
    with pytest.raises(WorldError, match=why):
        check_world(derived(**world), allocation(**job))


def test_idle_gpus_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="launcher"):
        check_world(derived(), allocation(gpus_per_node=4))
        assert not caplog.records
        check_world(derived(), allocation(gpus_per_node=8))
    assert "4 of 8 GPUs on each node stay idle" in caplog.text


def test_a_site_that_does_not_count_gpus_is_believed() -> None:
    check_world(derived(), allocation(gpus_per_node=0))
