"""SHA-256 of files, remembered by path, size and time of change, so that big files are not read twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from launcher.files import find_record, write_json
from launcher.paths import cache_dir, new_cache_dir


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A file as it was when it was hashed: path, size, modification time and inode."""

    stamp: tuple[str, int, int, int]
    sha256: str


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    stat = path.stat()
    stamp = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    name = f"{hashlib.sha256(stamp[0].encode()).hexdigest()[:32]}.json"
    memo = new_cache_dir() / "hashes" / name
    for file in dict.fromkeys([memo, cache_dir() / "hashes" / name]):
        known = find_record(_Hashed, file)
        if known is not None and known.stamp == stamp:
            return known.sha256
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_json(memo, _Hashed(stamp, digest), durable=False)
    return digest
