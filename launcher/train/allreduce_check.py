"""One rank of a doctor's job: meets the others and times a sum over all of them, as training does after every step.

srun python -m launcher.train.allreduce_check DEVICE    DEVICE is cpu (gloo) or cuda (nccl); prints one JSON object
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from launcher.runs.rank_environment import rank_numbers
from launcher.train.world import use_device

_LIMIT = timedelta(seconds=60)
_MIB = {"cpu": 16, "cuda": 256}
_ROUNDS = 3


def main(argv: list[str]) -> int:
    """0 if the sum was right."""
    device_type = argv[0]
    rank, local_rank, size = rank_numbers(os.environ)
    report: dict[str, object] = {"rank": rank, "size": size, "host": socket.gethostname(), "error": ""}
    try:
        report |= _check(device_type, rank, local_rank, size)
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(report), flush=True)
    # Destructors of process groups can wait forever (train/world.py).
    os._exit(1 if report["error"] else 0)


def _check(device_type: str, rank: int, local_rank: int, size: int) -> dict[str, object]:
    device = use_device(device_type, rank, local_rank)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=_LIMIT)
    mib = _MIB[device_type]
    values = torch.full((mib * 2**20 // 4,), 1.0, device=device)
    dist.all_reduce(values)
    if not bool((values == size).all()):
        raise RuntimeError(f"the sum over {size} ranks came out wrong")
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(values)
    if device_type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / _ROUNDS
    # The volume that every rank sends and receives in a ring.
    moved_gib = 2 * (size - 1) / size * mib / 1024
    return {"backend": backend, "mib": mib, "seconds": round(seconds, 4), "gib_per_s": round(moved_gib / seconds, 3)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
