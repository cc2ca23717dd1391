"""The lock around DeepSpeed's CPU parts lets one process build, others wait, and nobody wait for the dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.train.build_lock import BuildLock

_HOLD = "import sys; from launcher.train.build_lock import BuildLock; lock = BuildLock(sys.argv[1]); "
_HOLD += "print(lock.try_acquire(), flush=True); sys.stdin.read()"


def test_one_builds_and_the_next_does_after_it(tmp_path: Path) -> None:
    first, second = BuildLock(str(tmp_path / "lock")), BuildLock(str(tmp_path / "lock"))
    assert first.try_acquire() and not second.try_acquire()
    first.release()
    second.wait()
    assert second.try_acquire()


def test_a_killed_builder_holds_up_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", _HOLD, path], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        lock = BuildLock(path)
        assert not lock.try_acquire()
        holder.kill()
        lock.wait()
        assert lock.try_acquire()


def test_a_file_left_by_torchs_own_lock_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert BuildLock(str(tmp_path / "lock")).try_acquire()
