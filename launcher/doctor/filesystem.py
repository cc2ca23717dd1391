"""Checks that a folder behaves as run directories need it; some network mounts do not."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from launcher.doctor.findings import CheckLevel, CheckResult, fail, ok, warn, warn_if
from launcher.files import fsync, try_lock

SLOW_FSYNC_S = 2.0
MAX_SKEW_S = 2.0
LITTLE_GIB, NO_GIB = 20.0, 1.0
FEW_INODES = 10_000

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "f2fs"}


def folder_findings(runs_dir: Path) -> list[CheckResult]:
    """Tries everything in a temporary folder next to the runs, and leaves nothing behind."""
    folder = existing_parent(runs_dir)
    found: list[CheckResult] = []
    try:
        with tempfile.TemporaryDirectory(prefix=".launcher-doctor-", dir=folder) as scratch:
            found += semantics(Path(scratch))
    except OSError as error:
        return [*found, fail("runs_dir", f"{folder} cannot be written to: {error}", "Choose another runs_dir")]
    return [*found, *room(folder)]


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    absolute = path.expanduser().absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())


def semantics(scratch: Path) -> Iterator[CheckResult]:
    """One finding for each property that runs rely on."""
    tries: list[tuple[str, Callable[[Path], str], str]] = [
        ("a rename replaces a file at once", _replace, "Checkpoints and status files need it: choose another runs_dir"),
        ("a folder is renamed whole", _rename_folder, "Checkpoints are published this way: choose another runs_dir"),
        (
            "only one of two makes a file or a folder",
            _exclusive,
            "Attempts are numbered by it: choose another runs_dir",
        ),
        ("fsync of files and folders", _fsync, "A power failure could lose saved files: ask the administrator"),
        ("locks (flock)", _locks, "Mount with flock (Lustre: -o flock), or choose another runs_dir"),
        ("links", _links, "A run links to its data: choose another runs_dir"),
        ("private folders (mode 0700)", _private, "Others may read your runs here: choose another runs_dir"),
    ]
    for what, attempt, hint in tries:
        try:
            wrong = attempt(scratch)
        except OSError as error:
            wrong = f"{errno.errorcode.get(error.errno or 0, 'error')}: {error}"
        yield fail("runs_dir", f"{what}: {wrong}", hint) if wrong else ok("runs_dir", what)
    yield _speed(scratch)
    yield _skew(scratch)


def _replace(scratch: Path) -> str:
    old, new = scratch / "old", scratch / "new"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)
    return "" if old.read_text() == "new" and not new.exists() else "the old file was still seen"


def _rename_folder(scratch: Path) -> str:
    (scratch / "draft").mkdir()
    (scratch / "draft" / "file").write_text("x")
    (scratch / "draft").rename(scratch / "final")
    return "" if (scratch / "final" / "file").read_text() == "x" else "its files were not seen under the new name"


def _exclusive(scratch: Path) -> str:
    for what, make in (("file", partial(Path.touch, exist_ok=False)), ("folder", Path.mkdir)):
        make(scratch / what)
        with suppress(FileExistsError):
            make(scratch / what)
            return f"a {what} was made twice"
    return ""


def _fsync(scratch: Path) -> str:
    (scratch / "synced").write_text("x")
    fsync(scratch / "synced")
    fsync(scratch)
    return ""


def _locks(scratch: Path) -> str:
    held = [one for one in (try_lock(scratch / "lock"), try_lock(scratch / "lock")) if one is not None]
    for descriptor in held:
        os.close(descriptor)
    return "two held the same lock" if len(held) > 1 else ""


def _links(scratch: Path) -> str:
    (scratch / "link").symlink_to(scratch / "lock")
    return "" if (scratch / "link").resolve() == (scratch / "lock").resolve() else "a link leads elsewhere"


def _private(scratch: Path) -> str:
    folder = scratch / "private"
    folder.mkdir(mode=0o700)
    mode = folder.stat().st_mode & 0o777
    return "" if mode == 0o700 else f"the mode became {mode:04o}"


def _speed(scratch: Path) -> CheckResult:
    started = time.monotonic()
    _fsync(scratch)
    took_s = time.monotonic() - started
    hint = "Saving will be slow: the file system is overloaded, or not made for this"
    return warn_if(took_s > SLOW_FSYNC_S, "runs_dir", f"a small file is on disk after {1000 * took_s:.0f} ms", hint)


def _skew(scratch: Path) -> CheckResult:
    """A file's time comes from the file server; on a local disk there is no second clock."""
    before = time.time()
    (scratch / "clock").write_text("x")
    after = time.time()
    stamp = (scratch / "clock").stat().st_mtime
    # Kernels stamp files with a clock that ticks a few times in a hundredth of a second.
    skew_s = max(before - stamp, stamp - after, 0.0)
    text = f"its clock and this host's differ by {skew_s:.1f} s"
    return warn_if(skew_s > MAX_SKEW_S, "runs_dir", text, "Times in logs will not match: synchronise both clocks (NTP)")


def room(folder: Path) -> Iterator[CheckResult]:
    """Free space and inodes."""
    free_gib = shutil.disk_usage(folder).free / 2**30
    text = f"{free_gib:,.1f} GiB free in {folder}"
    if free_gib < NO_GIB:
        yield fail("disk", text, "Free some space, or choose another runs_dir")
    else:
        hint = "launcher check shows what a run needs; your quota may be lower than this"
        yield warn_if(free_gib < LITTLE_GIB, "disk", text, hint)
    inodes = os.statvfs(folder)
    if inodes.f_files and inodes.f_favail < FEW_INODES:
        yield warn("disk", f"room for {inodes.f_favail:,} more files in {folder}", "Remove small files you do not need")


def shared_finding(runs_dir: Path, seen: list[CheckResult]) -> CheckResult:
    """The file system of the runs. A local disk is wrong for a cluster, unless all nodes were seen to share it.

    Args:
        seen: what the job on the nodes found, if there was one.
    """
    folder = existing_parent(runs_dir)
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    mount = max(mounts, key=lambda one: len(one.mountpoint), default=None)
    kind, where = (mount.fstype, mount.mountpoint) if mount is not None else ("unknown", "?")
    is_shared = any(finding.check == "shared folder" and finding.level is CheckLevel.ok for finding in seen)
    hint = "That is a local disk; the nodes must see the same folder (see the job below)"
    return warn_if(kind in _LOCAL and not is_shared, "runs_dir", f"{folder} is on {kind} ({where})", hint)
