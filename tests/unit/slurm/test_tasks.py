"""Stages and the doctor's job with an srun of ours in PATH, which records what it is asked and starts nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ContainerRuntime
from launcher.config.frozen import save_config
from launcher.config.schema import FrozenRun
from launcher.doctor import job
from launcher.errors import ConfigErrors
from launcher.files import write_json
from launcher.paths import RunPaths
from launcher.runs.run_dir import write_state
from launcher.slurm.job.stages import run_stage
from tests.made import make_allocation
from tests.unit.slurm.recipes import job_config
from tests.unit.slurm.test_srun import derived

_SRUN = """#!{python}
import json, os, sys
with open({record!r}, "a") as record:
    print(json.dumps({{"argv": sys.argv[1:], "environ": dict(os.environ)}}), file=record)
output = next((word[9:] for word in sys.argv if word.startswith("--output=")), "")
if "launcher.doctor.probe" in sys.argv:
    with open(output.replace("%n", "0"), "w") as report:
        print("WARNING: the container speaks first", file=report)
        print(json.dumps({{"node": "n1", "versions": {{"torch": {torch!r}}}, "links": []}}), file=report)
sys.exit({code})
"""

SITE: dict[str, object] = {
    "container": ContainerRuntime.apptainer,
    "container_image": "/images/a.sif",
    "environment": {"NCCL_DEBUG": "INFO"},
}


def put_srun(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, torch: str | None = "2.13.0") -> Path:
    """An srun in PATH; what it was asked lies in the file that is returned."""
    record = folder / "srun.jsonl"
    program = folder / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(_SRUN.format(python=sys.executable, record=str(record), torch=torch, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return record


def asked(record: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def finished_run(folder: Path, **cluster: object) -> Path:
    run_dir = folder / "one"
    run_dir.mkdir()
    config = job_config(**cluster)
    config.model.name_or_path = "/shared/model"
    save_config(RunPaths(run_dir).config, FrozenRun(config=config, derived=derived()))
    write_state(run_dir, "succeeded")
    return run_dir


def words_of(call: dict[str, object]) -> list[str]:
    found = call["argv"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("stage", ["export", "eval"])
def test_a_stage_of_a_contained_run_runs_in_its_image_with_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    record = put_srun(tmp_path, monkeypatch, code=3)
    run_dir = finished_run(tmp_path, **SITE)
    allocation = make_allocation(cpus_per_node=6)
    assert run_stage(stage, run_dir, [], allocation) == 3
    (call,) = asked(record)
    words = words_of(call)
    after = words[words.index("/images/a.sif") + 1 :]
    assert after[:5] == ["python", "-m", "launcher", stage, str(run_dir)]
    assert words.count("--nv") == (1 if stage == "eval" else 0)
    assert "--cpus-per-task=6" in words and f"{run_dir}:{run_dir}" in words
    environ = call["environ"]
    assert isinstance(environ, dict) and environ["NCCL_DEBUG"] == "INFO" and environ["OMP_NUM_THREADS"] == "6"


def test_a_stage_with_options_that_become_a_program_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put_srun(tmp_path, monkeypatch)
    with pytest.raises(ConfigErrors, match=r"cluster\.srun_args = '/bin/id': is not an option"):
        run_stage("eval", finished_run(tmp_path, srun_args=["/bin/id"]), [], make_allocation())
    assert not record.exists()


def run_doctor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    write_json(folder / job.SITE, job_config(**SITE).cluster)
    assert job.main([str(folder), "word", "cuda", "2"]) == 0
    found = json.loads((folder / "job.json").read_text())
    assert isinstance(found, dict)
    return found


def test_the_doctor_looks_into_the_image_and_sums_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = put_srun(tmp_path, monkeypatch)
    assert run_doctor(tmp_path, monkeypatch)["sum_exit"] == 0
    probe, total = asked(record)
    for call, module in ((probe, "launcher.doctor.probe"), (total, "launcher.train.allreduce_check")):
        words = words_of(call)
        assert words[words.index("/images/a.sif") + 1 :][:3] == ["python", "-m", module]
        environ = call["environ"]
        assert isinstance(environ, dict) and environ["NCCL_DEBUG"] == "INFO"
        assert ("MASTER_ADDR" in environ) == (call is total)


def test_whether_there_is_torch_to_sum_with_the_nodes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = put_srun(tmp_path, monkeypatch, torch=None)
    said = run_doctor(tmp_path, monkeypatch)
    assert said["sum_exit"] is None and said["ended"] and len(asked(record)) == 1
