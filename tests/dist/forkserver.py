"""Imports torch, DeepSpeed and the trainer once, then forks the ranks of each trial: 2 s a trial instead of 12.

A request is one JSON line on stdin:
{"call": "module:function", "args": [...], "world_size": 2, "timeout_s": 120, "log": path}.
The answer is one JSON line: a list with {"rc": 0, "value": ...} of every rank.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path


def preload() -> None:
    """Everything a rank needs. No process group and no thread pool may be made here: they do not survive a fork."""
    import accelerate
    import deepspeed
    import peft
    import torch
    import transformers

    import launcher.train.main

    torch.set_num_threads(1)
    assert accelerate and deepspeed and peft and transformers and launcher.train.main


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_rank(request: dict[str, object], rank: int, port: int, answer: Path) -> None:
    """Body of a forked rank; never returns."""
    world_size = int(str(request["world_size"]))
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if world_size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    rc, value = 1, None
    try:
        module, _, function = str(request["call"]).partition(":")
        value = getattr(importlib.import_module(module), function)(*request["args"])  # type: ignore[misc]
        rc = 0
    except BaseException as error:
        traceback.print_exc()
        value = f"{type(error).__name__}: {error}"
        rc = int(getattr(error, "exit_code", 1))
    answer.write_text(json.dumps({"rc": rc, "value": value}))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: interpreter shutdown of a forked child may wait for threads that exist only in the parent.
    os._exit(rc)


def serve(request: dict[str, object]) -> list[dict[str, object]]:
    world_size = int(str(request["world_size"]))
    port = free_port()
    answers = [Path(f"{request['log']}.{rank}.json") for rank in range(world_size)]
    for answer in answers:
        answer.unlink(missing_ok=True)
    children: dict[int, int] = {}
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            run_rank(request, rank, port, answers[rank])
        children[pid] = rank
    deadline = time.monotonic() + float(str(request["timeout_s"]))
    waiting, timed_out = dict(children), False
    while waiting:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid in waiting:
            del waiting[pid]
        elif time.monotonic() > deadline:
            timed_out = True
            for child in waiting:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            deadline += 3600
        else:
            time.sleep(0.02)
    missing = {"rc": -9, "value": "timed out" if timed_out else "killed"}
    return [json.loads(a.read_text()) if a.exists() else missing for a in answers]


def main() -> None:
    # Answers go to a private copy of stdout, so that a library that prints cannot spoil them.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    preload()
    channel.write("ready\n")
    channel.flush()
    for line in sys.stdin:
        channel.write(json.dumps(serve(json.loads(line))) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
