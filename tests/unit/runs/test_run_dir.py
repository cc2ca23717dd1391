"""Run directories: complete when made, never overwritten, found by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.config.frozen import load_config
from launcher.errors import RunError
from launcher.paths import RunPaths
from launcher.runs.events import read_events
from launcher.runs.run_dir import all_runs, find_run, is_locked, last_attempt, lock_run, new_attempt

MakeRun = Callable[..., Path]


def test_a_new_run_holds_configuration_plan_versions_data_link_and_first_event(make_run: MakeRun) -> None:
    paths = RunPaths(make_run())
    assert load_config(paths.config).config.name == "one"
    assert json.loads(paths.plan.read_text()) == {"steps": 4}
    assert json.loads(paths.versions.read_text())["numpy"]
    assert paths.data.is_symlink() and paths.data.is_dir()
    assert [event.fields["state"] for event in read_events(paths.events)] == ["validating"]


def test_a_run_directory_is_private(make_run: MakeRun) -> None:
    assert make_run().stat().st_mode & 0o777 == 0o700


def test_a_taken_name_is_refused_and_the_run_stays_as_it_was(make_run: MakeRun) -> None:
    before = RunPaths(make_run("one")).config.read_text()
    with pytest.raises(RunError, match=r"exists already and is never overwritten.*launcher train --run one"):
        make_run("one")
    assert RunPaths(make_run("two").parent / "one").config.read_text() == before


def test_a_name_that_is_a_path_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(RunError, match="a run name is letters"):
        make_run("../outside")


def test_runs_without_a_name_made_in_the_same_second_get_different_directories(make_run: MakeRun) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run(None), range(8)))
    assert len(set(made)) == 8
    assert all(path.name.startswith("trial-") for path in made)


def test_a_run_that_cannot_be_written_leaves_no_directory(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launcher.runs.run_dir.save_config", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_run("one")
    monkeypatch.undo()
    assert make_run("one").is_dir()


def test_a_run_is_found_by_name_by_path_and_as_the_latest(make_run: MakeRun) -> None:
    first, second = make_run("first"), make_run("second")
    runs_dir = str(first.parent)
    assert find_run("first", runs_dir) == find_run(str(first), "elsewhere") == first
    assert find_run("latest", runs_dir) == second
    assert all_runs(runs_dir) == [first, second]


def test_a_run_in_the_given_folder_comes_before_one_of_that_name_in_the_working_directory(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = make_run("one")
    there = tmp_path / "other" / "one"
    shutil.copytree(here, there, symlinks=True)
    monkeypatch.chdir(here.parent)
    assert find_run("one", str(there.parent)) == there
    assert find_run("one", "nowhere") == Path("one")


def test_a_mistyped_run_is_answered_with_the_nearest_names(make_run: MakeRun) -> None:
    runs_dir = str(make_run("quickstart-1").parent)
    with pytest.raises(RunError, match="did you mean: quickstart-1"):
        find_run("quikstart-1", runs_dir)


def test_asking_for_a_run_where_there_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at all"):
        find_run("latest", str(tmp_path))


def test_attempts_are_numbered_without_gaps_or_doubles_under_concurrency(make_run: MakeRun) -> None:
    run = make_run()
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: new_attempt(run), range(16)))
    assert sorted(numbers) == list(range(1, 17))
    assert last_attempt(run) == 16


def test_a_run_that_somebody_runs_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    with lock_run(run):
        code = "import sys, pathlib\nfrom launcher.runs.run_dir import lock_run\n"
        code += "with lock_run(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
        assert is_locked(run)
    assert "is running already" in other.stderr
    assert not is_locked(run)
