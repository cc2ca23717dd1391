"""Tests here need a GPU; where there is none they say so and are skipped.

LAUNCHER_GPU_REPORT names the folder of a report on what held (scripts/test --gpu sets it). Under LAUNCHER_GPU_DRY_RUN=1
the items that can run on a CPU do. No item begins after LAUNCHER_GPU_LIMIT_S.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.gpu.report import Item, Status, this_machine, write_report

HERE = Path(__file__).parent
DRY_RUN = os.environ.get("LAUNCHER_GPU_DRY_RUN") == "1"
REPORT = os.environ.get("LAUNCHER_GPU_REPORT")
LIMIT_S = float(os.environ.get("LAUNCHER_GPU_LIMIT_S", "inf"))

_items: dict[str, Item] = {}
_begin_s = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in mine:
        if not (DRY_RUN and item.get_closest_marker("dry_run")):
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if HERE in item.path.parents and time.monotonic() - _begin_s > LIMIT_S:
        pytest.skip(f"out of time: {LIMIT_S:.0f} s had passed")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "tests/gpu/" not in report.nodeid:
        return
    name = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
    before = _items.get(name)
    status: Status = "failed" if report.failed else "not run" if report.skipped else "held"
    if before is not None and before.status != "held":
        status = before.status
    _items[name] = Item(
        name,
        status,
        (before.time_s if before else 0.0) + report.duration,
        _reason(report) or (before.reason if before else ""),
    )


def pytest_sessionfinish() -> None:
    if REPORT and _items:
        write_report(Path(REPORT), this_machine(), list(_items.values()), dry_run=DRY_RUN)


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # skipped: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message)[:300] if crash is not None else ""
