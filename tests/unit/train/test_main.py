"""What the training entry point notes about its own start."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

_TELL = "import time; from launcher.train.main import seconds_since_process_start as s; print(s(), time.time())"


def test_a_process_knows_its_age_to_a_few_hundredths_of_a_second() -> None:
    """The moment of boot is known in whole seconds, by which an age counted from it may be wrong."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True, check=True)
    age_s, told = (float(word) for word in done.stdout.split()[-2:])
    assert age_s == pytest.approx(told - began, abs=0.2)
