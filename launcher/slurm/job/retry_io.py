"""Retries writes to a run directory while its disk is full or its file server is away."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

TEMPORARY = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of a file system that may go away."""

T = TypeVar("T")


def patiently(act: Callable[[], T], what: str, *, wait_s: float = 120.0, pause_s: float = 1.0) -> T:
    """The result of `act`, called again while it fails with one of the TEMPORARY errors.

    Args:
        what: for the log message, such as "the verdict".
    Raises:
        OSError: any other error, or no success within `wait_s` seconds.
    """
    deadline, is_logged = time.monotonic() + wait_s, False
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in TEMPORARY or time.monotonic() >= deadline:
                raise
            if not is_logged:
                logger.warning("%s cannot be written: %s; retrying for %.0f s", what, error, wait_s)
                is_logged = True
            time.sleep(pause_s)
