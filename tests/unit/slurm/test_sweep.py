"""What makes a sweep, what does not, and sweep.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.errors import Problem, RunError, UserError
from launcher.paths import RunPaths
from launcher.runs.run_dir import all_runs, find_run, run_name
from launcher.slurm.client.sweep import (
    Member,
    Sweep,
    expand,
    idle_apart,
    member_dir,
    member_problems,
    read_sweep,
    split_list,
    varying_settings,
    write_sweep,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4", ["1e-4"]),
        ("1e-4,2e-4", ["1e-4", "2e-4"]),
        ("[a,b]", ["[a,b]"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{a:1,b:2}", ["{a:1,b:2}"]),
        ("'a,b'", ["'a,b'"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a\\",b",c', ['"a\\",b"', "c"]),
        ("a,", ["a", ""]),
        ("[a,b", ["[a,b"]),
        ("'a,b", ["'a,b"]),
        ("", [""]),
    ],
)
def test_only_commas_outside_brackets_and_quotes_make_a_list(text: str, values: list[str]) -> None:
    assert split_list(text) == values


def test_lists_multiply_and_the_last_runs_fastest() -> None:
    assert expand(["optim.lr=1,2", "x=y", "seed=0,1"]) == [
        ["optim.lr=1", "x=y", "seed=0"],
        ["optim.lr=1", "x=y", "seed=1"],
        ["optim.lr=2", "x=y", "seed=0"],
        ["optim.lr=2", "x=y", "seed=1"],
    ]


def test_what_has_no_list_is_one_run() -> None:
    assert expand(["optim.lr=1", "data.allow=[a,b]", "not a setting"]) == [
        ["optim.lr=1", "data.allow=[a,b]", "not a setting"]
    ]


def test_a_setting_given_twice_stays_visible() -> None:
    assert expand(["seed=0", "seed=1"]) == [["seed=0", "seed=1"]]


def test_a_file_may_list_its_members(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("- [optim.lr=1e-4, seed=1]\n- optim.lr=2e-4\n")
    assert expand(["a=b"], file) == [["a=b", "optim.lr=1e-4", "seed=1"], ["a=b", "optim.lr=2e-4"]]


def test_a_file_may_map_settings_to_values(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "optim.lr: [1.0e-4, 2.0e-4]\nmethod.target_modules: [[q_proj, v_proj]]\ndata.packing: [true]\nname: 'a,b'\n"
    )
    assert expand([], file) == [
        ["optim.lr=0.0001", 'method.target_modules=["q_proj", "v_proj"]', "data.packing=true", "name='a,b'"],
        ["optim.lr=0.0002", 'method.target_modules=["q_proj", "v_proj"]', "data.packing=true", "name='a,b'"],
    ]


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", "[[3]]", "[seed]", "a: [", "[{seed: 1}]"])
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="--sweep"):
        expand([], file)
    with pytest.raises(UserError, match="cannot be read"):
        expand([], tmp_path / "absent.yaml")


def test_more_members_than_anybody_means_are_refused_without_making_them() -> None:
    digits = ",".join("0123456789")
    with pytest.raises(UserError, match="100,000,000 members"):
        expand([f"k{place}={digits}" for place in range(8)])


def test_members_are_told_by_what_differs() -> None:
    assert varying_settings([["a=1", "b=2", "c=3"], ["a=1", "b=4"]]) == [{"b": "2", "c": "3"}, {"b": "4"}]


def test_a_problem_of_all_members_is_told_once_and_others_with_their_member() -> None:
    common, own = Problem("data.path", "x", "does not exist"), Problem("optim.lr", 2.0, "too much")
    found = member_problems([[common], [common, own]], [{"optim.lr": "1"}, {"optim.lr": "2"}])
    assert [problem.key for problem in found] == ["data.path", "[01: optim.lr=2] optim.lr"]


def test_a_setting_that_counts_in_some_members_is_warned_of_in_the_others() -> None:
    idle, other = Problem("method.rank", 8, "only adapters have it"), Problem("seed", -1, "too small")
    kept, warnings = idle_apart([[], [idle, other], [idle]], [[], [idle], [idle]])
    assert kept == [[], [other], []]
    assert warnings == ["method.rank = 8 has no effect: only adapters have it"]


def test_a_setting_that_counts_in_no_member_is_a_problem_even_where_its_value_differs() -> None:
    found = [[Problem("method.rank", rank, "only adapters have it")] for rank in (8, 16)]
    assert idle_apart(found, found) == (found, [])


def make_sweep(root: Path) -> Path:
    folder = root / "grid"
    members = [
        Member(index=index, run=f"{index:02d}", overrides=[f"seed={index}"], differs={"seed": str(index)})
        for index in range(2)
    ]
    for member in members:
        (folder / member.run).mkdir(parents=True)
        RunPaths(folder / member.run).config.touch()
    write_sweep(folder, Sweep(key="k", job_id="7", throttle=1, argv=["sbatch"], submitted="now", members=members))
    return folder


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    sweep = read_sweep(folder)
    assert sweep is not None
    assert (sweep.job_id, [member.differs for member in sweep.members]) == ("7", [{"seed": "0"}, {"seed": "1"}])
    assert member_dir(folder, 1) == folder / "01"


def test_a_newer_launchers_sweep_is_still_read(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    content = json.loads((folder / "sweep.json").read_text())
    content["later"] = content["members"][0]["later"] = 1
    (folder / "sweep.json").write_text(json.dumps(content))
    assert read_sweep(folder) is not None


def test_a_member_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none has the index 2"):
        member_dir(make_sweep(tmp_path), 2)
    with pytest.raises(RunError, match="holds no sweep"):
        member_dir(tmp_path, 0)
    assert read_sweep(tmp_path) is None


def test_members_are_found_and_listed_by_their_name(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    assert [run_name(path) for path in all_runs(tmp_path)] == ["grid/00", "grid/01"]
    assert find_run("grid/01", str(tmp_path)) == folder / "01"
    with pytest.raises(RunError, match="grid/01"):
        find_run("grid/02", str(tmp_path))


def test_a_sweep_is_no_run_and_its_members_are_named(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path)
    for text in ("grid", str(folder)):
        with pytest.raises(RunError, match=r"grid is a sweep of 2 runs.*give one of grid/00, grid/01 "):
            find_run(text, str(tmp_path))
