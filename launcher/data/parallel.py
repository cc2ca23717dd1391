"""Encoding in several processes, in order, with a bounded number of chunks in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from launcher.data.encode import EncodedChunk, Encoder, EncoderSettings
from launcher.data.readers import CHUNK_BYTES, Chunk
from launcher.errors import DataError

_encoder: Encoder | None = None


def num_processes(asked: int, size_bytes: int) -> int:
    """Processes worth starting: `asked` (0: all cores), but no more than there are chunks."""
    cores = asked or len(os.sched_getaffinity(0))
    return max(1, min(cores, size_bytes // CHUNK_BYTES))


def encode_all(settings: EncoderSettings, chunks: Iterable[Chunk], processes: int) -> Iterator[EncodedChunk]:
    """The chunks encoded, in their order. At most two a process are in memory at once."""
    if processes <= 1:
        encoder = Encoder(settings)
        for chunk in chunks:
            yield encoder.encode(chunk)
        return
    # spawn: a fork would copy threads of libraries that are loaded already.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(settings,))
    try:
        waiting: deque[Future[EncodedChunk]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_encode, chunk))
            if len(waiting) >= 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that prepares data was killed, most often for lack of memory; "
            "lower data.num_workers and try again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(settings: EncoderSettings) -> None:
    global _encoder
    # Ctrl-C reaches the whole group; the parent ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(settings)


def _encode(chunk: Chunk) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.encode(chunk)
