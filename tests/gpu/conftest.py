"""Tests here need a GPU; where there is none they say so and are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    import torch

    if not torch.cuda.is_available():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
