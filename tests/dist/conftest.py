"""Ranks for tests: `ranks(call, *args, world_size=2)` runs a function of tests/dist/trials.py on each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class RankResult:
    """What one rank's function returned, or the text of its error with its exit code."""

    rc: int
    value: object


Ranks = Callable[..., list[RankResult]]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Runs `tests.dist.trials:<name>`, or `module:<name>`, on forked gloo ranks."""
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("ranks")
    errors = (folder / "forkserver.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.dist.forkserver"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    ready = server.stdout.readline()
    assert ready == "ready\n", (folder / "forkserver.log").read_text()
    count = 0

    def run(
        name: str, *args: object, world_size: int = 2, timeout_s: float = 300, check: bool = True
    ) -> list[RankResult]:
        nonlocal count
        count += 1
        log = folder / f"{count:04d}-{name.rpartition(':')[2]}"
        request = {
            "call": name if ":" in name else f"tests.dist.trials:{name}",
            "args": args,
            "world_size": world_size,
            "timeout_s": timeout_s,
            "log": str(log),
        }
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request, default=str) + "\n")
        server.stdin.flush()
        results = [RankResult(**answer) for answer in json.loads(server.stdout.readline())]
        if check and any(r.rc != 0 for r in results):
            tails = "\n".join(
                f"--- rank {rank}\n{Path(f'{log}.{rank}').read_text()[-4000:]}" for rank in range(world_size)
            )
            pytest.fail(f"{name}{args}: {results}\n{tails}")
        return results

    yield run
    server.stdin.close()
    server.wait(timeout=30)
    errors.close()
