"""The end of a log: the lines that say why, without progress bars and chatter."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 64 * 1024
MOST_LINES = 14
LONGEST_LINE_CHARS = 400

_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>.+)$')
_NOISE = re.compile(
    r"^[\s^~]*$"
    r"|\*\*\* (?:STEP|JOB) \S+ ON \S+ CANCELLED"
    r"|^\d\d:\d\d:\d\d (?:INFO|DEBUG) "
    r"|\d+%\|"
    r"|(?:Future|User|Deprecation|Runtime)Warning"
    r"|NCCL INFO|^(?:\[rank\d+\]:)?\[[WI]\d{4} "
    r"|^\s*warnings\.warn\("
)
_INSTALLED = re.compile(r"(?:site|dist)-packages/(?!launcher/)")
_PYTHON = re.compile(r"^<|/lib/python3[\d.]*/(?!(?:site|dist)-packages/)")


def read_tail(path: Path, limit_bytes: int = TAIL_BYTES) -> str:
    """The last part of a file, from the start of a line; empty where there is none or it cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit_bytes))
            data = file.read(limit_bytes)
    except OSError:
        return ""
    if size > limit_bytes:
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", errors="replace")


def error_block(text: str) -> list[str]:
    """The last lines that matter: the end of the last traceback or error message; without one, the last lines.

    Pure. At most MOST_LINES lines, each cut to LONGEST_LINE_CHARS characters.
    """
    # As a terminal would leave them: text that a carriage return wrote over is gone.
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    starts = [i for i, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if errors and errors[-1] > (starts[-1] if starts else -1):
        block = [line for line in lines[errors[-1] :] if not _NOISE.search(line)][:MOST_LINES]
    elif starts:
        block = _end_of_traceback(lines[starts[-1] + 1 :])
    else:
        block = [line for line in lines if not _NOISE.search(line)][-MOST_LINES:]
    return [line[:LONGEST_LINE_CHARS] for line in block]


def _end_of_traceback(lines: list[str]) -> list[str]:
    """The innermost frames, and the exception with its message."""
    frames = [i for i, line in enumerate(lines) if _FRAME.match(line)]
    first = frames[-3] if len(frames) >= 3 else frames[0] if frames else 0
    # The exception is the first line behind the frames that is not indented.
    last = frames[-1] if frames else -1
    head = next((i for i in range(last + 1, len(lines)) if lines[i] and not lines[i][0].isspace()), len(lines))
    message = [line for line in lines[head : head + MOST_LINES] if not _NOISE.search(line)]
    return [*(line for line in lines[first:head] if not _NOISE.search(line)), *message[: MOST_LINES // 2]]


def exception_line(block: list[str]) -> str:
    """The one line of a block that names the error; empty without any line."""
    named = [line for line in block if re.match(r"^(?:error: |[\w.]*(?:Error|Exception|Interrupt|Exit)\b)", line)]
    return named[0] if named else block[-1] if block else ""


def traceback_place(text: str) -> str:
    """`file:line function` of the innermost frame outside libraries of the last traceback; empty without one."""
    start = text.rfind(_TRACEBACK)
    if start < 0:
        return ""
    frames = frames_of(text[start:])
    own = [frame for frame in frames if not is_library(frame["file"])]
    return frame_text((own or frames)[-1]) if frames else ""


def is_library(file: str) -> bool:
    """Whether a source file belongs to Python or to an installed package other than this one."""
    return _INSTALLED.search(file) is not None or _PYTHON.search(file) is not None


def frame_text(frame: re.Match[str]) -> str:
    """A frame as `file:line function`, the file shortened."""
    file = frame["file"]
    inside = file.rfind("launcher/")
    short = file[inside:] if inside >= 0 else "/".join(Path(file).parts[-2:])
    return f"{short}:{frame['line']} {frame['function']}"


def frames_of(stack: str) -> list[re.Match[str]]:
    """Frames of one thread as they were dumped."""
    return [match for line in stack.splitlines() if (match := _FRAME.match(line))]
