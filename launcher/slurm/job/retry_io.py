"""Retries writes to a run directory while its disk is full or its file server is away."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
"""Errors of a file system that may be temporary."""
WAIT_S = 120.0
_PAUSE_S = 1.0

T = TypeVar("T")


def patiently(act: Callable[[], T], what: str, *, wait_s: float = WAIT_S, pause_s: float = _PAUSE_S) -> T:
    """The result of `act`, retried while it fails with one of the PASSING errors.

    Args:
        act: called again from the start at each retry.
        what: for the log message, such as "the verdict".
    Raises:
        OSError: any other error, or no success within `wait_s` seconds.
    """
    give_up_at, said = time.monotonic() + wait_s, False
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() >= give_up_at:
                raise
            if not said:
                said = True
                logger.warning("%s cannot be written: %s; retrying for %.0f s", what, error, wait_s)
            time.sleep(pause_s)
