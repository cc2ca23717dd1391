"""A lock around the building of DeepSpeed's CPU parts that ends with its holder."""

from __future__ import annotations

from filelock import FileLock, Timeout


class BuildLock:
    """In place of torch's FileBaton, which holds its lock as long as a file exists.

    A rank that is killed while it builds, or only checks whether it must, leaves that file behind, and every later run
    under the same home folder waits for it forever, silently.
    """

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None) -> None:
        # Its own name: the file stays, and programs that use torch's lock would take that one for held.
        self._lock = FileLock(f"{lock_file_path}.held")

    def try_acquire(self) -> bool:
        """True for the one process that is to build."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def wait(self) -> None:
        """Returns when the builder is done, or dead."""
        with self._lock:
            pass

    def release(self) -> None:
        self._lock.release()


def use_build_lock() -> None:
    """Makes torch use it. Ranks: all, before DeepSpeed makes its first engine or optimizer."""
    from torch.utils import cpp_extension

    vars(cpp_extension)["FileBaton"] = BuildLock
