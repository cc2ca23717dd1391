"""What reaches the user's terminal: our own lines, and of the libraries only what is worth reading."""

from __future__ import annotations

import subprocess
import sys

CHATTER = """
import sys, warnings
from launcher.log import setup_logging
setup_logging(rank={rank}, verbose={verbose})
warnings.warn_explicit("old_name is deprecated", FutureWarning, "library.py", 1)
warnings.warn_explicit("your numbers look odd", UserWarning, "library.py", 2)
import logging
library = logging.getLogger("DeepSpeed")
library.addHandler(logging.StreamHandler(sys.stdout))
library.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
library.warning("the optimizer cannot be built")
logging.getLogger("launcher.train").info("saved step=%d", 3)
"""


def said(*, rank: int = 0, verbose: bool = False) -> str:
    program = CHATTER.format(rank=rank, verbose=verbose)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


def test_library_noise_is_left_out_and_library_news_is_not() -> None:
    text = said()
    assert "deprecated" not in text and "Setting accelerator" not in text
    assert "your numbers look odd" in text and "the optimizer cannot be built" in text


def test_debug_shows_everything() -> None:
    text = said(verbose=True)
    assert "deprecated" in text and "Setting accelerator" in text


def test_only_rank_0_speaks_of_progress() -> None:
    assert "INFO saved step=3" in said(rank=0)
    assert "saved step=3" not in said(rank=1)
