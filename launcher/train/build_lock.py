"""A lock around the building of DeepSpeed's CPU parts that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from launcher.files import try_lock


class BuildLock:
    """In place of torch's FileBaton, whose lock is that a file exists.

    A rank that is killed while it builds, or only looks whether it must, leaves that file behind, and every later run
    under the same home folder waits for ever without a word.
    """

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None) -> None:
        # A name of its own: this file stays, and programs that use torch's lock would take it for held.
        self._path = Path(f"{lock_file_path}.held")
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """True for the one process that is to build."""
        self._descriptor = try_lock(self._path)
        return self._descriptor is not None

    def wait(self) -> None:
        """Returns when the builder is done, or dead."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """The file stays: taking it away would let two hold locks on two files of that name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def use_build_lock() -> None:
    """Has torch use it. Ranks: all, before DeepSpeed makes its first engine or optimizer."""
    from torch.utils import cpp_extension

    vars(cpp_extension)["FileBaton"] = BuildLock
