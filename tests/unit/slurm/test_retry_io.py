from __future__ import annotations

import errno

import pytest

from launcher.slurm.job.retry_io import patiently


def failing(number: int, times: int) -> list[OSError]:
    return [OSError(number, "no") for _ in range(times)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_disk_that_comes_back_is_waited_for(number: int) -> None:
    errors = failing(number, 3)

    def write() -> str:
        if errors:
            raise errors.pop()
        return "written"

    assert patiently(write, "a file", pause_s=0.001) == "written"


def test_a_disk_that_stays_full_is_an_error_in_the_end() -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        patiently(write, "a file", wait_s=0.05, pause_s=0.01)
    assert len(calls) > 1


def test_what_waiting_cannot_mend_is_not_waited_for() -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise PermissionError(errno.EACCES, "not yours")

    with pytest.raises(PermissionError):
        patiently(write, "a file", pause_s=0.001)
    assert calls == [1]
