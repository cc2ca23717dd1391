"""Hostile text through the whole path of a submission: passed on verbatim or refused, never run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ContainerRuntime
from launcher.config.compose import compose_with_problems
from launcher.config.shipped_files import share_dir
from launcher.errors import ConfigErrors
from launcher.slurm.client.sbatch import STAGES, job_variables, sbatch_argv, sbatch_problems
from launcher.slurm.job.srun import srun_argv
from tests.unit.slurm.hostile import can_be_argument, hostile_texts, recorded, recorder
from tests.unit.slurm.recipes import job_config, request
from tests.unit.slurm.test_srun import derived

SEED = 20260301
PER_RUN = 500
FIELDS = (
    "partition", "account", "qos", "constraint", "reservation", "gpu_type", "nodelist", "exclude", "licenses",
    "mail_user", "mail_type", "cpu_partition",
)  # fmt: skip
OPTIONS = {
    "gpu_type": "gpus-per-node", "mail_user": "mail-user", "mail_type": "mail-type", "cpu_partition": "partition",
}  # fmt: skip
BUDGETS = [PER_RUN, pytest.param(20_000, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("count", BUDGETS)
def test_text_in_a_setting_is_one_word_or_refused(tmp_path: Path, count: int) -> None:
    plain = {stage: sbatch_argv(job_config(cpu_partition="c"), request(stage)) for stage in ("train", "prepare")}
    passed = 0
    for number, text in enumerate(hostile_texts(SEED, count, tmp_path)):
        field = FIELDS[number % len(FIELDS)]
        stage = "prepare" if field == "cpu_partition" else "train"
        try:
            argv = sbatch_argv(job_config(**{"cpu_partition": "c", field: text}), request(stage))
        except ConfigErrors as error:
            assert [problem.key for problem in error.problems] == [f"cluster.{field}"]
            continue
        passed += 1
        added = [word for word in argv if word not in plain[stage]]
        value = f"{text}:4" if field == "gpu_type" else text
        assert added == [f"--{OPTIONS.get(field, field)}={value}"]
    assert passed > count / 100


@pytest.mark.parametrize("count", BUDGETS)
def test_text_as_a_further_option_stays_an_option_or_is_refused(tmp_path: Path, count: int) -> None:
    for text in hostile_texts(SEED + 1, count, tmp_path):
        for word in (text, f"--switches={text}"):
            try:
                argv = sbatch_argv(job_config(sbatch_args=[word]), request())
            except ConfigErrors as error:
                assert {problem.key for problem in error.problems} == {"cluster.sbatch_args"}
                continue
            assert argv[argv.index("/share/slurm/train.sbatch") - 1] == word
            assert word.startswith("--") and "wrap" not in word.partition("=")[0]


@pytest.mark.parametrize("count", BUDGETS)
def test_text_for_srun_stays_an_option_of_it_or_a_part_of_the_container_or_is_refused(
    tmp_path: Path, count: int
) -> None:
    model = derived()
    for number, text in enumerate(hostile_texts(SEED + 5, count, tmp_path)):
        cluster: dict[str, object] = {"container": ContainerRuntime.pyxis, "container_image": "/a.sqsh"}
        key, value = [
            ("srun_args", [text]),
            ("srun_args", [f"--network={text}"]),
            ("container_image", text),
            ("container_mounts", [f"/a{text}:/b"]),
        ][number % 4]
        config = job_config(**{**cluster, key: value})
        if problems := sbatch_problems(config):
            assert {problem.key for problem in problems} == {f"cluster.{key}"}
            continue
        words = srun_argv(config, model, run_dir=tmp_path, attempt=1, cpus_per_task=1)
        assert words[-7:-4] == ["python", "-m", "launcher.train"]
        assert all(word.startswith("--") for word in words[1:-7])
        assert sum(word.startswith("--container-image=") for word in words) == 1


@pytest.mark.parametrize("count", [120, pytest.param(2400, marks=pytest.mark.nightly)])
def test_text_typed_on_the_command_line_is_kept_or_refused(tmp_path: Path, count: int) -> None:
    texts = hostile_texts(SEED + 2, count, tmp_path)
    for start in range(0, count, len(FIELDS)):
        typed = dict(zip(FIELDS, texts[start : start + len(FIELDS)], strict=False))
        words = [f"cluster.{field}={text}" for field, text in typed.items()]
        config, problems = compose_with_problems(["data=next_number", "cluster=slurm", "strategy=ddp", *words])
        refused = {problem.key for problem in problems}
        for field, text in typed.items():
            value = getattr(config.cluster, field)
            # Quoted text is its content; null and nothing mean no value.
            if f"cluster.{field}" not in refused and not text.strip().startswith(("'", '"')):
                assert value == text.strip() or (value is None and text.strip() in ("", "null"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [PER_RUN // 4, pytest.param(5000, marks=pytest.mark.nightly)])
def test_the_scripts_hand_every_argument_on_and_run_none(tmp_path: Path, stage: str, count: int) -> None:
    canary, work, record = tmp_path / "canary", tmp_path / "work", tmp_path / "record"
    canary.mkdir()
    work.mkdir()
    texts = [text for text in hostile_texts(SEED + 3, count, canary) if can_be_argument(text) and text]
    # The kernel takes 2 MiB of arguments in all, and the longest of ours has nearly 128 KiB.
    groups = [texts[start : start + 12] for start in range(0, len(texts), 12)]
    script = share_dir("slurm") / f"{stage}.sbatch"
    environment = {"PATH": os.environ["PATH"], "LAUNCHER_PYTHON": str(recorder(tmp_path, record))}
    for group in groups:
        subprocess.run(["bash", script, *group], cwd=work, env=environment, check=True, timeout=60)
    assert recorded(record) == [["-m", "launcher.slurm.job", stage, *group] for group in groups]
    assert (list(canary.iterdir()), list(work.iterdir())) == ([], [])


@pytest.mark.parametrize("count", [PER_RUN // 5, pytest.param(5000, marks=pytest.mark.nightly)])
def test_what_reaches_a_script_by_its_environment_runs_nothing(tmp_path: Path, count: int) -> None:
    canary, work, record = tmp_path / "canary", tmp_path / "work", tmp_path / "record"
    canary.mkdir()
    work.mkdir()
    program = recorder(tmp_path, record)
    script = share_dir("slurm") / "train.sbatch"
    for text in hostile_texts(SEED + 4, count, canary):
        for cluster in (
            {"modules": [text]},
            {"setup_file": text},
            {"environment": {text: "x"}},
            {"environment": {"A": text}},
        ):
            try:
                config = job_config(**cluster)
                sbatch_argv(config, request())
            except ConfigErrors:
                continue
            if "environment" in cluster:
                continue  # reaches srun from config.yaml, never a shell
            variables = job_variables(config.cluster, {"PATH": os.environ["PATH"]}) | {"LAUNCHER_PYTHON": str(program)}
            subprocess.run(["bash", script], cwd=work, env=variables, capture_output=True, timeout=60, check=False)
    assert (list(canary.iterdir()), list(work.iterdir())) == ([], [])
