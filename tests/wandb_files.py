"""Reads back what W&B wrote on this machine: the history rows of `.wandb` files.

A `.wandb` file is a LevelDB log of protobuf records: a header of 7 bytes, then blocks of 32 KiB with chunks of
(crc32, length, type, payload); a record larger than the room left in a block is cut into first, middle and last chunks.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

FILE_HEADER_BYTES = 7
BLOCK_BYTES = 32768
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history_rows(wandb_dir: Path) -> Iterator[dict[str, object]]:
    """Every row logged into the offline `.wandb` files under a run's wandb folder, oldest file first.

    ImportError without the wandb package.
    """
    from wandb.proto import wandb_internal_pb2

    for path in sorted(wandb_dir.glob("offline-run-*/*.wandb")):
        for payload in _payloads(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(payload)
            if record.WhichOneof("record_type") != "history":
                continue
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _payloads(data: bytes) -> Iterator[bytes]:
    """Whole records up to the first damaged or missing byte."""
    # The file header counts as part of the first block.
    position = FILE_HEADER_BYTES
    parts: list[bytes] = []
    while position + CHUNK_HEADER.size <= len(data):
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < CHUNK_HEADER.size:
            position += room
            continue
        crc, length, kind = CHUNK_HEADER.unpack_from(data, position)
        if kind == 0 and length == 0:
            position += room
            continue
        start = position + CHUNK_HEADER.size
        payload = data[start : start + length]
        if len(payload) < length or zlib.crc32(payload, zlib.crc32(bytes([kind]))) != crc:
            return
        position = start + length
        parts = [payload] if kind in (FULL, FIRST) else [*parts, payload]
        if kind in (FULL, LAST):
            yield b"".join(parts)
