"""Tests on a real Slurm: `cluster` has nodes n1 to n3, `gpu_cluster` two with pretended GPUs; tests leave them tidy.

Where no cluster can run, all of them are left out, and the session says so at its end; LAUNCHER_REQUIRE_SLURM=1 makes
that an error.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, remove_forgotten, start_cluster, why_no_cluster
from tests.slurm.rig import Goldens

_HERE = Path(__file__).parent
_NOT_RUN = pytest.StashKey[str]()
_UP: dict[str, Cluster] = {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("slurm")
    yield  # pytest takes out here what -m and -k do not want
    ours = [item for item in items if _HERE in item.path.parents]
    if not ours or not (reason := why_no_cluster()):
        return
    message = f"NOT RUN: {len(ours)} Slurm tests, no cluster can run here: {reason}"
    if os.environ.get("LAUNCHER_REQUIRE_SLURM") == "1":
        raise pytest.UsageError(f"{message}\nLAUNCHER_REQUIRE_SLURM=1 demands them.")
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]
    config.stash[_NOT_RUN] = message


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if message := config.stash.get(_NOT_RUN, ""):
        terminalreporter.section("Slurm", red=True, bold=True)
        terminalreporter.write_line(message, red=True, bold=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Nodes n1 to n3, or as many as LAUNCHER_TEST_NODES says, without GPUs."""
    yield from _session("cluster", int(os.environ.get("LAUNCHER_TEST_NODES", "3")))


@pytest.fixture(scope="session")
def gpu_cluster() -> Iterator[Cluster]:
    """Nodes n1 and n2 with 4 pretended GPUs each: Slurm gives them out, nothing can compute on them."""
    yield from _session("gpu_cluster", 2, "--gpus", "4")


def _session(name: str, num_nodes: int, *options: str) -> Iterator[Cluster]:
    remove_forgotten()
    cluster = _UP[name] = start_cluster(num_nodes, *options)
    yield cluster
    del _UP[name]
    cluster.down()


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds all nodes idle, and fails if a process of its jobs is left."""
    yield
    used = [cluster for name, cluster in _UP.items() if name in request.fixturenames]
    left = [process for cluster in used for process in cluster.restore()]
    assert not left, "processes outlived their jobs:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """Losses of undisturbed runs, each made once a session; see tests/slurm/rig.py."""
    return Goldens()
