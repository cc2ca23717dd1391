"""What an error message or a piece of a log points at."""

from __future__ import annotations

import re

from launcher.diagnose.verdict_class import VerdictClass

_OF_ERROR = {
    "ConfigErrors": VerdictClass.configuration,
    "ModelError": VerdictClass.configuration,
    "RunError": VerdictClass.configuration,
    "UserError": VerdictClass.configuration,
    "ModuleNotFoundError": VerdictClass.configuration,
    "ImportError": VerdictClass.configuration,
    "GatedRepoError": VerdictClass.configuration,
    "RepositoryNotFoundError": VerdictClass.configuration,
    "RevisionNotFoundError": VerdictClass.configuration,
    "LocalEntryNotFoundError": VerdictClass.configuration,
    "OfflineModeIsEnabled": VerdictClass.configuration,
    "DataError": VerdictClass.data,
    "NonFiniteError": VerdictClass.non_finite,
    "WorldError": VerdictClass.rendezvous,
    "DeviceError": VerdictClass.node_failure,
    "CheckpointError": VerdictClass.checkpoint,
    "SupersededError": VerdictClass.superseded,
    "OutOfMemoryError": VerdictClass.out_of_memory_gpu,
    "MemoryError": VerdictClass.out_of_memory_host,
}

OUR_ERRORS = frozenset(
    {"ConfigErrors", "ModelError", "RunError", "UserError", "DataError", "NonFiniteError"}
    | {"WorldError", "DeviceError", "CheckpointError", "SupersededError", "Preempted", "Hang"}
)

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
WATCHDOG = re.compile(r"Watchdog caught collective operation timeout")
OTHER_SETTINGS = re.compile(r"does not fit config\.yaml")

# In this order: an error of the disk is often wrapped into one of the checkpoint, one of the GPU into one of NCCL.
_OF_TEXT: tuple[tuple[VerdictClass, re.Pattern[str]], ...] = (
    (
        VerdictClass.out_of_memory_gpu,
        re.compile(
            r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError"
            r"|torch\.cuda\.OutOfMemoryError|micro-batch of the epoch .* does not fit into memory"
        ),
    ),
    (VerdictClass.node_failure, GPU_FAULT),
    (
        VerdictClass.out_of_memory_host,
        re.compile(
            r"insufficient shared memory|unable to (?:mmap|allocate shared memory)|can't allocate memory|std::bad_alloc"
            r"|Cannot allocate memory|oom[-_]kill|^MemoryError",
            re.MULTILINE,
        ),
    ),
    (
        VerdictClass.disk,
        re.compile(
            r"No space left on device|Disk quota exceeded|Read-only file system|Stale file handle"
            r"|\[Errno (?:5|28|30|116|122)\]|File too large|could not save step"
        ),
    ),
    (
        VerdictClass.configuration,
        re.compile(
            r"^(?:\w+\.)*(?:ModuleNotFoundError|ImportError)\b|No module named|cannot open shared object file"
            r"|(?:401|403) Client Error|GatedRepoError|RepositoryNotFoundError|Invalid user token"
            r"|does not fit config\.yaml",
            re.MULTILINE,
        ),
    ),
    (VerdictClass.hang, WATCHDOG),
    (
        VerdictClass.rendezvous,
        re.compile(
            r"could not meet the others|client socket has timed out|failed to connect to any of the given"
            r"|connectFullMesh failed|DistStoreError|DistNetworkError|[Aa]ddress already in use|EADDRINUSE"
            r"|Call to (?:connect|bind) .*(?:failed|returned)|No route to host|No socket interface found"
            r"|ncclInternalError.*[Bb]ootstrap|Unable to find address for"
        ),
    ),
)

# What the others say when one of them is gone.
_ECHO = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused by peer)|Broken pipe|ncclRemoteError"
    r"|remote process exited or there was a network error|recvValue failed|failed to recv, got 0 bytes"
    r"|Failed to check the .should dump. flag|NCCL communicator was aborted|[Ss]ocket [Cc]losed"
    r"|Read error \[|Write error \[|Application timeout caused pair closure|Timed out waiting \d+ms for (?:recv|send)"
)
_ECHO_ERRORS = ("ErrorOnMain",)


def is_echo(error: str, text: str) -> bool:
    """Whether a rank failed only because another one had gone.

    Args:
        error: class of its exception; empty where it left none.
        text: its message, or the last lines of its log.
    """
    if error in _ECHO_ERRORS:
        return True
    # Our own errors are raised for a reason of their own, whatever they quote.
    return error not in _OF_ERROR and _ECHO.search(text) is not None


def class_of(error: str, text: str) -> VerdictClass | None:
    """The class an error points at; None where it says nothing known.

    Args:
        error: class of the exception, without its module.
        text: message, or the last lines of the log.
    """
    named = _OF_ERROR.get(error)
    if named is VerdictClass.checkpoint and OTHER_SETTINGS.search(text):
        return VerdictClass.configuration
    # The message tells more than these: they wrap whatever went wrong below.
    if named in (None, VerdictClass.checkpoint, VerdictClass.configuration):
        for verdict_class, pattern in _OF_TEXT:
            if pattern.search(text):
                return verdict_class
    return named
