"""What runs in a site's container, what it shows, and which settings of it are refused before a job waits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.errors import RunError
from launcher.slurm.client.container import contained, mounts, run_folders
from launcher.slurm.client.sbatch import sbatch_problems
from tests.unit.slurm.recipes import job_config
from tests.unit.slurm.test_srun import derived

APPTAINER = {"container": ContainerRuntime.apptainer, "container_image": "/images/a.sif"}
PYXIS = {"container": ContainerRuntime.pyxis, "container_image": "/images/a.sqsh"}


def keys(**cluster: object) -> list[str]:
    return [problem.key for problem in sbatch_problems(job_config(**cluster))]


def test_without_a_container_a_command_is_as_it_is() -> None:
    task = contained(ClusterConfig(), ["launcher", "eval"], shown=[Path("/a,b")], gpus=True)
    assert (task.options, task.command) == ([], [sys.executable, "-m", "launcher", "eval"])


@pytest.mark.parametrize("runtime", [ContainerRuntime.apptainer, ContainerRuntime.pyxis])
@pytest.mark.parametrize("image", [None, "", "-x.sif", "a\nb", " /a.sif", "/" + "x" * 5000])
def test_an_image_that_cannot_be_started_is_refused(runtime: ContainerRuntime, image: str | None) -> None:
    assert keys(container=runtime, container_image=image) == ["cluster.container_image"]


def test_an_image_is_only_needed_for_a_container() -> None:
    assert keys() == []
    assert keys(container_image="-x", container_mounts=["x"]) == []


@pytest.mark.parametrize(
    "image", ["docker://pytorch/pytorch:2.6", "oras://host/a", "/only/on/the/nodes.sif", "here.sif", "folder"]
)
def test_an_image_apptainer_may_find_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.sif").touch()
    (tmp_path / "folder").mkdir()
    assert keys(container=ContainerRuntime.apptainer, container_image=image) == []


def test_an_image_file_of_apptainer_that_is_not_there_is_refused() -> None:
    (problem,) = sbatch_problems(job_config(container=ContainerRuntime.apptainer, container_image="gone.sif"))
    assert str(problem).startswith("cluster.container_image = 'gone.sif': does not exist; paths are relative to")
    assert keys(container=ContainerRuntime.pyxis, container_image="nvcr.io#nvidia/pytorch:25.01-py3") == []


@pytest.mark.parametrize("site", [APPTAINER, PYXIS], ids=["apptainer", "pyxis"])
@pytest.mark.parametrize(
    "mount",
    ["/a", "/a:b", "a:/b", "/a:/b,/c:/d", "/a:/b:ro:rw", "/a:/b:r o", "/a\n:/b", "", "--x:/b", "/a:/b:", "/a,b:/c"],
)
def test_a_mount_is_two_absolute_places_or_refused(site: dict[str, object], mount: str) -> None:
    assert keys(**site, container_mounts=[mount]) == ["cluster.container_mounts"]


def test_mounts_may_have_options_of_the_container_program() -> None:
    assert keys(**APPTAINER, container_mounts=["/scratch:/tmp", "/data sets:/d:ro", "/a:/b:rw"]) == []
    assert keys(**PYXIS, container_mounts=["/scratch:/tmp", "/data:/d:ro+rprivate"]) == []
    (problem,) = sbatch_problems(job_config(**APPTAINER, container_mounts=["/data:/d:rprivate"]))
    assert "not a mount option of apptainer" in problem.why


@pytest.mark.parametrize("mount", ["/a b:/c", "/$(id):/c", "/`id`:/c", '/a":/c', "/a:/b\\"])
def test_pyxis_writes_mounts_into_a_shell_file_so_their_letters_are_plain(mount: str) -> None:
    assert keys(**PYXIS, container_mounts=[mount]) == ["cluster.container_mounts"]


def test_a_folder_that_no_container_can_show_is_refused_before_the_job_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job_config(**APPTAINER)
    config.runs_dir = "/shared/a:b"
    monkeypatch.setenv("LAUNCHER_CACHE", "/shared/a,b")
    problems = sbatch_problems(config)
    assert [problem.key for problem in problems] == ["runs_dir", "LAUNCHER_CACHE"]
    assert "a colon" in problems[0].why and "a comma" in problems[1].why
    config.cluster.container = ContainerRuntime.none
    assert sbatch_problems(config) == []


def test_a_path_with_a_separator_is_not_shown() -> None:
    with pytest.raises(RunError, match=r"/a,b cannot be mounted in a container: its name holds a comma; rename it"):
        mounts(ClusterConfig(container=ContainerRuntime.apptainer), [Path("/a,b")])


def test_a_container_is_started_with_an_image_only() -> None:
    with pytest.raises(RunError, match=r"cluster\.container = 'apptainer' needs cluster\.container_image"):
        contained(ClusterConfig(container=ContainerRuntime.apptainer), ["x"], shown=[], gpus=False)


def test_a_model_of_the_hubs_cache_is_shown_with_the_files_its_links_lead_to() -> None:
    world = derived()
    world.model_dir = "/hub/models--meta--llama/snapshots/0123abc"
    assert Path("/hub/models--meta--llama") in run_folders(Path("/runs/one"), world)


def test_examples_that_no_container_can_show_are_refused_before_the_training(tmp_path: Path) -> None:
    config = job_config(**APPTAINER)
    config.data.path = str(tmp_path / "v1,clean.jsonl")
    (tmp_path / "v1,clean.jsonl").touch()
    assert [problem.key for problem in sbatch_problems(config)] == ["data (v1,clean.jsonl)"]


def test_a_model_that_no_container_can_show_is_refused_before_the_job_waits() -> None:
    config = job_config(**PYXIS)
    config.model.name_or_path = "/shared/my models/llama"
    assert [problem.key for problem in sbatch_problems(config)] == ["model.name_or_path"]
    config.model.name_or_path = "meta-llama/Llama-3.1-8B"
    assert sbatch_problems(config) == []


def test_a_name_longer_than_any_files_is_no_file() -> None:
    config = job_config(**{**APPTAINER, "container_image": "x" * 300 + ".sif"})
    config.data.path = "x" * 300 + ".jsonl"
    assert [problem.key for problem in sbatch_problems(config)] == ["cluster.container_image"]


def test_folders_are_shown_at_absolute_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache named from the working folder, as data and model of a run then are."""
    monkeypatch.setenv("LAUNCHER_CACHE", "cache")
    world = derived()
    world.data_dir, world.model_dir = "cache/prepared/key", "cache/models/small"
    shown = run_folders(Path("/runs/one"), world)
    assert [str(path) for path in shown if not path.is_absolute()] == []
    assert Path.cwd() / "cache/prepared/key" in shown
