"""Rank 0 on a terminal: its bar is alive there, and its log holds plain lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.local.terminal import LogFilter
from launcher.paths import RunPaths

SHOW_A_BAR = """
from rich.console import Console
from rich.progress import Progress
print("terminal:", sys.stderr.isatty(), os.get_terminal_size(2).columns if sys.stderr.isatty() else 0, flush=True)
with Progress(console=Console(file=sys.stderr)) as bar:
    task = bar.add_task("steps", total=20)
    for step in range(20):
        bar.advance(task)
        time.sleep(0.02)
        if step == 10: bar.console.print("epoch 1: validation loss 0.5")
print("done", flush=True)
"""
START = """
import sys
from pathlib import Path
from launcher.local.ranks import run_local
from launcher.runs.run_dir import new_attempt
run = Path(sys.argv[1])
sys.exit(run_local(run, attempt=new_attempt(run), worker=[sys.executable, sys.argv[2]]))
"""


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (b"plain\n", b"plain\n"),
        (b"\x1b[31mred\x1b[0m and \x1b[1mbold\x1b[0m\r\n", b"red and bold\n"),
        (b"\r\x1b[2K10%\r\x1b[2K20%\r\x1b[2Knote\n\r\x1b[2K30%", b"note\n30%\n"),
        (b"10%\r20%\r30%\n", b"30%\n"),
        (b"\x1b]0;title\x07text\n", b"text\n"),
        (b"caf\xc3\xa9\n", b"caf\xc3\xa9\n"),
        (b"no newline at the end", b"no newline at the end\n"),
        (b"", b""),
    ],
)
def test_what_was_sent_to_a_terminal_becomes_plain_lines(sent: bytes, logged: bytes) -> None:
    whole = LogFilter()
    assert whole.feed(sent) + whole.close() == logged
    pieces = LogFilter()
    assert b"".join(pieces.feed(sent[at : at + 1]) for at in range(len(sent))) + pieces.close() == logged


@pytest.mark.parametrize("redraw", [b"\r\x1b[2Kstep %d", b"\rstep %d", b"step %d\r"])
def test_a_bar_that_redraws_for_hours_takes_no_memory(redraw: bytes) -> None:
    plain = LogFilter()
    for step in range(10_000):
        assert plain.feed(redraw % step) == b""
    assert len(plain._pending) < 100


def run_on_a_terminal(command: list[str]) -> tuple[int, bytes]:
    """Exit code, and what a terminal of 100 columns showed."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=theirs, check=True)
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        shown += data
    os.close(ours)
    return process.wait(20), shown


def test_rank_0_has_the_terminal_and_its_log_has_plain_lines(
    make_run: Callable[..., Path], make_worker: Callable[[str], list[str]]
) -> None:
    run = make_run()
    worker = make_worker(SHOW_A_BAR)
    code, shown = run_on_a_terminal([sys.executable, "-c", START, str(run), worker[1]])
    assert code == 0
    assert b"\x1b[2K" in shown and b"100%" in shown
    log = RunPaths(run).rank_log(1, 0).read_bytes()
    assert b"\x1b" not in log and b"\r" not in log
    lines = log.decode().splitlines()
    assert lines[0] == "terminal: True 100"
    assert "epoch 1: validation loss 0.5" in lines
    assert lines[-1] == "done"


def test_rank_0_without_a_terminal_is_copied_line_by_line(
    make_run: Callable[..., Path], make_worker: Callable[[str], list[str]]
) -> None:
    run = make_run(world_size=2)
    worker = make_worker("print('rank', rank, sys.stderr.isatty())")
    done = subprocess.run(
        [sys.executable, "-c", START, str(run), worker[1]], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert done.stderr == "rank 0 False\n" == RunPaths(run).rank_log(1, 0).read_text()
    assert RunPaths(run).rank_log(1, 1).read_text() == "rank 1 False\n"
