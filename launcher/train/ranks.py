"""Who this process is among the ranks, as whoever started it tells. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping


def rank_from_environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) as torchrun, accelerate or srun tell them; (0, 0, 1) without any."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), int(env["WORLD_SIZE"])
    # SLURM_STEP_ID is absent in a bare batch script, where SLURM_NTASKS would promise tasks that nobody started.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        return int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0")), int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    return 0, 0, 1


def name_of(rank: int, environ: Mapping[str, str]) -> str:
    """`rank 3 on n2` where the node is known, also of a rank that never came: ranks are dealt to nodes in blocks."""
    nodes = [node for node in environ.get("LAUNCHER_NODES", "").split(",") if node]
    per_node = environ.get("LAUNCHER_RANKS_PER_NODE", "")
    place = rank // int(per_node) if per_node.isdigit() and int(per_node) > 0 else len(nodes)
    if place < len(nodes):
        return f"rank {rank} on {nodes[place]}"
    job_nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    return f"rank {rank} (nodes {job_nodes})" if job_nodes else f"rank {rank}"
