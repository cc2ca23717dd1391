"""The class of failure of an error: ours by class and fields; those of others by name, errno, and here alone by text.

No pattern here may match a message of our own (tests/unit/diagnose/test_reworded.py).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping

from launcher.errors import OUR_ERRORS, VerdictClass

# Classes of other packages, by name: a verdict is made without importing them.
_OF_FOREIGN = {
    "ModuleNotFoundError": VerdictClass.configuration,
    "ImportError": VerdictClass.configuration,
    "GatedRepoError": VerdictClass.configuration,
    "RepositoryNotFoundError": VerdictClass.configuration,
    "RevisionNotFoundError": VerdictClass.configuration,
    "LocalEntryNotFoundError": VerdictClass.configuration,
    "OfflineModeIsEnabled": VerdictClass.configuration,
    "OutOfMemoryError": VerdictClass.out_of_memory_gpu,
    "MemoryError": VerdictClass.out_of_memory_host,
}

_OF_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG), VerdictClass.disk),
    errno.ENOMEM: VerdictClass.out_of_memory_host,
}
# What the operating system said tells more than these: they wrap whatever went wrong below.
_WRAPPERS = (None, VerdictClass.checkpoint, VerdictClass.configuration, VerdictClass.disk)

GPU_FAULT = re.compile(
    r"uncorrectable (?:ECC|NVLink) error"
    r"|NVRM: Xid|\bXid \(PCI"
    r"|GPU has fallen off the bus"
    r"|Unable to determine the device handle for GPU"
    r"|no CUDA-capable device is detected"
    r"|all CUDA-capable devices are busy or unavailable"
    r"|Driver/library version mismatch"
    r"|CUDA (?:driver )?initialization failed"
    r"|CUDA error: system not yet initialized",
    re.IGNORECASE,
)

# In this order: an error of the disk is often wrapped into one of the checkpoint, one of the GPU into one of NCCL.
_OF_TEXT = tuple(
    (verdict_class, re.compile(pattern, re.MULTILINE))
    for verdict_class, pattern in (
        (
            VerdictClass.out_of_memory_gpu,
            r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError"
            r"|torch\.cuda\.OutOfMemoryError",
        ),
        (VerdictClass.node_failure, f"(?i:{GPU_FAULT.pattern})"),
        (
            VerdictClass.out_of_memory_host,
            r"insufficient shared memory|unable to (?:mmap|allocate shared memory)|can't allocate memory|std::bad_alloc"
            r"|Cannot allocate memory|oom[-_]kill|^MemoryError",
        ),
        (
            VerdictClass.disk,
            r"No space left on device|Disk quota exceeded|Read-only file system|Stale file handle"
            r"|\[Errno (?:5|28|30|116|122)\]|File too large",
        ),
        (
            VerdictClass.configuration,
            r"^(?:\w+\.)*(?:ModuleNotFoundError|ImportError)\b|No module named|cannot open shared object file"
            r"|(?:401|403) Client Error|GatedRepoError|RepositoryNotFoundError|Invalid user token",
        ),
        (VerdictClass.hang, "Watchdog caught collective operation timeout"),
        (
            VerdictClass.rendezvous,
            r"client socket has timed out|failed to connect to any of the given"
            r"|connectFullMesh failed|DistStoreError|DistNetworkError|[Aa]ddress already in use|EADDRINUSE"
            r"|Call to (?:connect|bind) .*(?:failed|returned)|No route to host|No socket interface found"
            r"|ncclInternalError.*[Bb]ootstrap|Unable to find address for",
        ),
    )
)

# What the other ranks report when one of them is gone.
_ECHO = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused by peer)|Broken pipe|ncclRemoteError"
    r"|remote process exited or there was a network error|recvValue failed|failed to recv, got 0 bytes"
    r"|Failed to check the .should dump. flag|NCCL communicator was aborted|[Ss]ocket [Cc]losed"
    r"|Read error \[|Write error \[|Application timeout caused pair closure|Timed out waiting \d+ms for (?:recv|send)"
)


def is_echo(kind: str, text: str) -> bool:
    """Whether a rank failed only because another one had gone.

    Args:
        kind: class of its exception; empty where it left none.
        text: its message, or the last lines of its log.
    """
    # An error that we know is raised for a reason of its own, whatever it quotes.
    return kind not in OUR_ERRORS and kind not in _OF_FOREIGN and _ECHO.search(text) is not None


def class_of(kind: str, data: Mapping[str, object], text: str) -> VerdictClass | None:
    """The class of failure that an error points at; None where it says nothing known.

    Args:
        kind: class of the exception, without its module; empty where only a log is left.
        data: its fields.
        text: its message, or the last lines of the log; read only where the error is not one of ours.
    """
    number = data.get("errno")
    by_errno = _OF_ERRNO.get(number) if isinstance(number, int) else None
    if kind in OUR_ERRORS:
        failure = OUR_ERRORS[kind].failure
        return by_errno or failure if failure in _WRAPPERS else failure
    named = _OF_FOREIGN.get(kind)
    if named not in (None, VerdictClass.configuration):
        return named
    by_text = (verdict_class for verdict_class, pattern in _OF_TEXT if pattern.search(text))
    return by_errno or next(by_text, None) or named
