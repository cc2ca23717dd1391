"""Strings that break out of whatever pastes a command together, from a seed; and a program that records its argv."""

from __future__ import annotations

import random
from pathlib import Path

_TRAPS = [
    "$(touch {canary})", "`touch {canary}`", ";touch {canary};", "|touch {canary}", "&& touch {canary} #",
    "\ntouch {canary}\n", "'; touch {canary}; '", '"; touch {canary}; "', '"\\\ntouch {canary}"', "<(touch {canary})",
    ">{canary}", "--wrap=touch {canary}", "#SBATCH --wrap=touch {canary}", "-", "--", "-D/tmp", "\\", "\\\n", "%j",
    "%A_%a", "%%", "${{IFS}}", "$0", "$PATH", "~", "*", "?", "[!a]", "{{a,b}}", "()", "'", '"', "&", "!!", "\0",
    "\x1b[2J", "\r", "\t", " ", "a b", "", "=", ",", ":", "\u202e", "\u2028", "é", "日本", "😀", "\udc80",
    "a" * 300, "x" * 65_536,
    "/etc/passwd", "../..", "ALL", "NONE", "null",
]  # fmt: skip

_LONGEST_ARGUMENT_BYTES = 128 * 1024
"""Linux: MAX_ARG_STRLEN, with the NUL at the end."""


def hostile_texts(seed: int, count: int, canary: Path) -> list[str]:
    """So many different texts; one in eight is a trap as it stands, others are sewn together of several."""
    random_source = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        pieces = random_source.choices(_TRAPS, k=1 if random_source.random() < 0.125 else random_source.randint(2, 4))
        texts.append("".join(pieces).format(canary=canary / f"c{len(texts)}"))
    return texts


def can_be_argument(text: str) -> bool:
    """Whether the operating system itself could hand it to a program."""
    is_short = len(text.encode(errors="replace")) < _LONGEST_ARGUMENT_BYTES
    return is_short and "\0" not in text and "\udc80" not in text


def recorder(folder: Path, record: Path) -> Path:
    """A program that appends its arguments to `record`, each ended by NUL, every call ended by a second one."""
    program = folder / "recorder"
    program.write_text(
        f'#!/bin/bash\n[[ ${{1-}} == -c ]] && exit 0\n{{ printf "%s\\0" "$@"; printf "\\0"; }} >>"{record}"\n'
    )
    program.chmod(0o755)
    return program


def recorded(record: Path) -> list[list[str]]:
    """Arguments of each call."""
    calls = record.read_bytes().decode().split("\0\0")
    return [call.split("\0") for call in calls if call]
