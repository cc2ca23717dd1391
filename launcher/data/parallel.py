"""Encodes chunks in several processes, in order, with a bounded number in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from launcher.data.encode import EncodedChunk, Encoder
from launcher.data.readers import CHUNK_BYTES, Chunk
from launcher.errors import DataError

MakeEncoder = Callable[[], Encoder]
"""Sent to each process, so it must be picklable."""

_encoder: Encoder | None = None


def num_processes(asked: int, size_bytes: int) -> int:
    """Processes to start: `asked` (0: all cores), but no more than there are chunks."""
    cores = asked or len(os.sched_getaffinity(0))
    return max(1, min(cores, size_bytes // CHUNK_BYTES))


def encode_all(make_encoder: MakeEncoder, chunks: Iterable[Chunk], processes: int) -> Iterator[EncodedChunk]:
    """The encoded chunks, in order; at most two per process are in memory."""
    if processes <= 1:
        encoder = make_encoder()
        for chunk in chunks:
            yield encoder.encode(chunk)
        return
    # spawn: forking a process with threads is unsafe.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(make_encoder,))
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
            "a data preparation process was killed, probably out of memory; lower data.num_workers and try again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(make_encoder: MakeEncoder) -> None:
    global _encoder
    # Ctrl-C reaches the whole process group; the parent ends the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = make_encoder()


def _encode(chunk: Chunk) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.encode(chunk)
