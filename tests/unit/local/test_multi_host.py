"""Machines of a run without Slurm: who is who, what they tell each other, what they refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.config.compose import compose_with_problems
from launcher.diagnose.verdict import read_verdict
from launcher.errors import RunError, UserError, WorldError
from launcher.files import find_record
from launcher.local import host_status
from launcher.local.host_status import HostState, HostStatus, OtherHosts, OwnStatus
from launcher.local.multi_host import check_leader, join, lead
from launcher.local.remote_shell import remote_argv
from launcher.paths import RunPaths
from launcher.runs.network import interface_to, is_this_host, own_addresses, own_index, own_names
from launcher.runs.run_dir import new_attempt

ELSEWHERE = "192.0.2.77"  # an address nobody has (RFC 5737)
HERE = socket.gethostname()


def problems(*overrides: str) -> list[str]:
    found = compose_with_problems(["experiment=quickstart", "strategy=zero2", *overrides])[1]
    return [str(problem) for problem in found if problem.key in ("cluster.hosts", "cluster.nodes")]


def test_hosts_say_how_many_machines_there_are() -> None:
    config, _ = compose_with_problems(["experiment=quickstart", "strategy=zero2", "cluster.hosts=[boxa,boxb,boxc]"])
    assert config.cluster.nodes == 3


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["cluster.hosts=[boxa,boxb]", "cluster.nodes=3"], "cluster.nodes = 3: cluster.hosts names 2"),
        (["cluster.hosts=[boxa,boxb]", "cluster.nodes=1"], "cluster.nodes = 1: cluster.hosts names 2"),
        (["cluster.hosts=[boxa,boxa]"], "names boxa twice"),
        (["cluster.hosts=[boxa,'-oProxyCommand=x']"], "is not a host name or address"),
        (["cluster.hosts=[boxa,'user@boxb']"], "is not a host name or address"),
        (["cluster.hosts=[boxa,boxb]", "cluster.kind=slurm"], "cluster.kind is slurm"),
    ],
)
def test_a_list_of_hosts_that_cannot_be_is_refused(overrides: list[str], why: str) -> None:
    assert len(problems(*overrides)) == 1
    assert why in problems(*overrides)[0]


def test_hosts_that_fit_are_no_problem() -> None:
    assert problems("cluster.hosts=[boxa,10.0.0.2,'fe80::1']", "cluster.nodes=3") == []


def test_a_machine_finds_itself_by_name() -> None:
    assert own_index([ELSEWHERE, HERE]) == 1
    assert is_this_host(HERE.upper(), own_names(), set())


def test_a_machine_finds_itself_by_address() -> None:
    assert is_this_host("192.0.2.5", {"other"}, {"192.0.2.5"})
    assert not is_this_host("127.0.0.1", {"other"}, {"192.0.2.5"})  # loopback is every machine's
    assert all(not address.startswith("127.") for address in own_addresses())


def test_a_machine_that_is_not_in_the_list_is_told_its_own_names() -> None:
    with pytest.raises(RunError, match=rf"{HERE.lower()}.*not among cluster\.hosts"):
        own_index([ELSEWHERE, "192.0.2.78"])


def test_a_host_nobody_knows_is_named() -> None:
    with pytest.raises(UserError, match=r"no-such-host\.invalid cannot be reached"):
        interface_to("no-such-host.invalid")


def status_of(index: int, **changes: object) -> HostStatus:
    values: dict[str, object] = {
        "index": index,
        "host": f"box{index}",
        "state": HostState.running,
        "token": "t",
        **changes,
    }
    return HostStatus(**values)  # type: ignore[arg-type]


def paths_in(folder: Path) -> RunPaths:
    paths = RunPaths(folder)
    paths.attempt(1).mkdir(parents=True)
    return paths


def test_what_a_machine_says_is_read_back_whole_while_it_keeps_changing(tmp_path: Path) -> None:
    path = paths_in(tmp_path).host_status(1, 0)
    with OwnStatus(path, status_of(0, error="long " * 300)) as own:
        seen = set()
        deadline = time.monotonic() + 60
        while len(seen) < 3:
            found = find_record(HostStatus, path)
            assert found is not None and found.error == "long " * 300
            seen.add(found.beat)
            assert time.monotonic() < deadline
        own.end(0)
    ended = find_record(HostStatus, path)
    assert ended is not None and (ended.state, ended.exit_code, ended.error) == (HostState.ended, 0, "")


def test_a_machine_that_leaves_by_an_error_says_so(tmp_path: Path) -> None:
    path = paths_in(tmp_path).host_status(1, 1)
    with pytest.raises(WorldError), OwnStatus(path, status_of(1)):
        raise WorldError("no way")
    found = find_record(HostStatus, path)
    assert found is not None and (found.state, found.exit_code, found.error) == (HostState.ended, 4, "no way")


def test_a_machine_that_ended_well_is_not_lost_and_one_that_failed_is(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    others = OtherHosts(paths, 1, ["boxa", "boxb"], 0)
    with OwnStatus(paths.host_status(1, 1), status_of(1)) as own:
        own.end(75)
    assert others.lost() is None
    with OwnStatus(paths.host_status(1, 1), status_of(1)) as own:
        own.end(5)
    lost = OtherHosts(paths, 1, ["boxa", "boxb"], 0).lost()
    assert lost is not None and not lost.is_silent and lost.data["code"] == 5


def test_a_machine_that_falls_silent_is_lost_after_the_limit_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_status, "SILENT_S", 3.0)
    paths = paths_in(tmp_path)
    others = OtherHosts(paths, 1, ["boxa", "boxb"], 0)
    with OwnStatus(paths.host_status(1, 1), status_of(1)):
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert others.lost() is None
            time.sleep(0.05)
    text = paths.host_status(1, 1).read_text().replace('"ended"', '"running"')
    paths.host_status(1, 1).write_text(text)  # as a machine that lost its power leaves it
    began = time.monotonic()
    while not (lost := others.lost()):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert lost.is_silent and lost.data["node"] == "boxb" and time.monotonic() - began > 2.5


HOSTILE = "runs/a b'$(touch pwned)`x`;&|\"\\"


def test_the_remote_shell_gets_every_word_as_it_is(tmp_path: Path) -> None:
    """The far shell is a real one, and what it starts prints its arguments."""
    (tmp_path / "show.py").write_text(
        "import sys, os; print(repr((sys.argv[1:], os.getcwd(), os.environ['LAUNCHER_CACHE'])))"
    )
    shell = tmp_path / "far-shell"
    shell.write_text('#!/bin/sh\necho "$1"\nexec sh -c "$2"\n')
    shell.chmod(0o755)
    folder = tmp_path / "work $(touch pwned)"
    folder.mkdir()
    environ = {"LAUNCHER_REMOTE_SHELL": f"{shell}", "LAUNCHER_CACHE": "/x y;touch pwned"}
    argv = remote_argv("boxb", Path(HOSTILE), environ, folder=folder, python=sys.executable)
    argv[-1] = argv[-1].replace("-m launcher", f"{tmp_path}/show.py", 1)
    said = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ}).stdout.splitlines()
    assert said == ["boxb", repr((["train", "--join", HOSTILE], str(folder), "/x y;touch pwned"))]
    assert not list(tmp_path.rglob("pwned"))


def test_ssh_never_asks_for_a_password() -> None:
    argv = remote_argv("boxb", Path("/runs/x"), {}, folder=Path("/shared"), python="/venv/bin/python")
    assert argv[:3] == ["ssh", "-o", "BatchMode=yes"] and argv[-2] == "boxb"
    assert argv[-1] == "cd /shared && exec env /venv/bin/python -m launcher train --join /runs/x"


@pytest.fixture
def pair(tmp_path: Path, tiny_model: Path) -> Path:
    """A run over this machine, second, and one that is not there."""
    from tests.dist.rig import make_data, make_run

    hosts = f"cluster.hosts=[{ELSEWHERE},{HERE}]"
    return make_run(
        tmp_path / "pair", tiny_model, make_data(tmp_path / "data"), hosts, "strategy=ddp", "fault.meet_limit_s=1"
    )


def test_a_run_is_started_on_its_first_machine(pair: Path) -> None:
    with pytest.raises(RunError, match=rf"{HERE}, number 2 of pair.*{ELSEWHERE}.*launcher train --join"):
        check_leader(pair)


def test_joining_a_run_that_nobody_leads_ends_with_what_to_do(pair: Path) -> None:
    with pytest.raises(WorldError, match=rf"by {ELSEWHERE} was seen here within 1 s.*launcher train --run"):
        join(pair)


def test_a_record_left_by_a_dead_leader_is_not_joined(pair: Path) -> None:
    with OwnStatus(RunPaths(pair).host_status(1, 0), status_of(0, state=HostState.waiting)):
        pass
    text = RunPaths(pair).host_status(1, 0).read_text().replace('"ended"', '"waiting"')
    RunPaths(pair).host_status(1, 0).write_text(text)
    with pytest.raises(WorldError, match="was seen here within 1 s"):
        join(pair)


def test_a_machine_with_other_versions_is_refused_on_both_sides(pair: Path) -> None:
    waiting = status_of(0, state=HostState.waiting, versions={"launcher": "0.0.1"})
    with (
        OwnStatus(RunPaths(pair).host_status(1, 0), waiting),
        pytest.raises(RunError, match=r"differ: launcher .* here, 0\.0\.1"),
    ):
        # The file changes once a second, and the limit is one: give it the time to be seen alive.
        _join_patiently(pair)
    told = find_record(HostStatus, RunPaths(pair).host_status(1, 1))
    assert told is not None and "differ: launcher" in told.error and told.token == "t"


def _join_patiently(run: Path) -> int:
    deadline = time.monotonic() + 60
    while True:
        try:
            return join(run)
        except WorldError:
            assert time.monotonic() < deadline


def test_a_machine_that_does_not_come_is_named_and_the_attempt_is_judged(tmp_path: Path, tiny_model: Path) -> None:
    from tests.dist.rig import make_data, make_run

    hosts = f"cluster.hosts=[{HERE},{ELSEWHERE}]"
    run = make_run(
        tmp_path / "r", tiny_model, make_data(tmp_path / "data"), hosts, "strategy=ddp", "fault.meet_limit_s=1"
    )
    attempt = new_attempt(run)
    with pytest.raises(WorldError, match=rf"{ELSEWHERE} did not join within 1 s.*--join"):
        lead(run, attempt=attempt, lock=None, remote=False)
    verdict = read_verdict(run, attempt)
    assert verdict is not None and verdict.verdict_class.value == "rendezvous"
    left = find_record(HostStatus, RunPaths(run).host_status(attempt, 0))
    assert left is not None and (left.state, left.exit_code) == (HostState.ended, 4)
