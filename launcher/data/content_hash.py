"""SHA-256 of files, remembered by path, size and time of change, so that big files are not read twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from launcher.files import write_json
from launcher.paths import cache_dir, new_cache_dir


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    stat = path.stat()
    stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    name = f"{hashlib.sha256(str(stamp[0]).encode()).hexdigest()[:32]}.json"
    memo = new_cache_dir() / "hashes" / name
    for place in dict.fromkeys([memo, cache_dir() / "hashes" / name]):
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
            if known["stamp"] == stamp:
                return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_json(memo, {"stamp": stamp, "sha256": digest}, durable=False)
    return digest
