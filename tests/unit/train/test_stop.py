"""A stop signal sets a flag and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from launcher.runs.stop_requests import RANK_STOP_SIGNALS
from launcher.train.stop import StopFlag


@pytest.fixture
def armed() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in RANK_STOP_SIGNALS}
    flag = StopFlag()
    flag.arm()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_stop_signal_is_remembered_and_survived(armed: StopFlag, number: signal.Signals) -> None:
    assert not armed.requested
    os.kill(os.getpid(), number)
    assert armed.requested and armed.signal_name == number.name


def test_the_first_signal_is_the_reason(armed: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert armed.signal_name == "SIGUSR2"


def test_other_signals_are_left_alone(armed: StopFlag) -> None:
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_only_the_main_thread_can_arm() -> None:
    seen: list[type[BaseException]] = []

    def arm() -> None:
        try:
            StopFlag().arm()
        except AssertionError as error:
            seen.append(type(error))

    thread = threading.Thread(target=arm)
    thread.start()
    thread.join()
    assert seen == [AssertionError]


def test_it_is_armed_before_torch_is_loaded() -> None:
    code = "import sys, launcher.train.stop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
