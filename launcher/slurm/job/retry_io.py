"""Writing into a run directory whose disk is full, or whose server is away, for a moment."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
"""Errors of a disk that may go by while one waits."""
WAIT_S = 120.0
_PAUSE_S = 1.0

T = TypeVar("T")


def patiently(act: Callable[[], T], what: str, *, wait_s: float = WAIT_S, pause_s: float = _PAUSE_S) -> T:
    """The result of `act`, tried again while the disk is the reason that it fails.

    Args:
        act: may be called several times; each call starts over.
        what: for people, such as "the verdict".
    Raises:
        OSError: another reason, or the disk was no better after `wait_s` seconds.
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
                logger.warning("%s cannot be written: %s; trying for %.0f s", what, error, wait_s)
            time.sleep(pause_s)
