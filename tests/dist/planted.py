"""Trouble in ranks that a test does not start itself: it waits in the import of the module it is for.

Read by a sitecustomize of the test, before anything else of the rank; so this file imports next to nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterImport(MetaPathFinder):
    """Changes one module as soon as it is there."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self.name, self.change = name, change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self.change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def plant_hang(kind: str) -> None:
    """Rank 1 hangs as tests.dist.trouble:hang has it."""

    def change(module: ModuleType) -> None:
        from tests.dist.trouble import block_in_save, hang_in_third_batch

        if kind == "save":
            block_in_save(module)
        else:
            hang_in_third_batch(module, kind)

    name = "launcher.train.saving" if kind == "save" else "launcher.train.step"
    sys.meta_path.insert(0, _AfterImport(name, change))
