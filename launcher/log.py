"""Logging, set up the same way in every process."""

from __future__ import annotations

import logging
import sys
import warnings

# Messages of libraries, on every start or step, that no user can act on.
_NOISE = ("Setting accelerator to CPU", "You are using ZeRO with an untested optimizer")


def setup_logging(*, rank: int = 0, verbose: bool = False) -> None:
    """Sends records to stderr; rank 0 logs from INFO (DEBUG if verbose), other ranks from WARNING with their rank.

    Ranks: all, once, before anything logs.
    """
    level = logging.DEBUG if verbose else logging.INFO if rank == 0 else logging.WARNING
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("launcher")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    if not verbose:
        _quiet_libraries()


def _quiet_libraries() -> None:
    # It warns at import, at any use of peft, about a kernel package that is not needed here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed sets its level when it is imported, so only a filter lasts; and it logs to stdout, where --json writes.
    logging.getLogger("DeepSpeed").addFilter(lambda record: not any(noise in record.getMessage() for noise in _NOISE))
    # "Deprecated, use the other function": torch and transformers tell DeepSpeed and Accelerate so, twice a step.
    warnings.filterwarnings("ignore", category=FutureWarning)
