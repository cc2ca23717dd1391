"""The ranks of a run: which one this process is, its device, and the process group."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore

from launcher.config.cluster_schema import FaultConfig
from launcher.config.devices import working_gpus
from launcher.config.schema import Derived
from launcher.errors import CheckpointError, DeviceError, ErrorOnMain, LauncherError, TorchLacksGpu, WorldError
from launcher.runs.rank_end import fields_of
from launcher.runs.rank_environment import rank_numbers
from launcher.train.rendezvous import find_all, first_collective
from launcher.train.stop import STOP

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Of every collective after the first: rank 0 may plan a run or write a large checkpoint while the others wait."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This rank among all; its methods are the collectives, which do nothing with a single process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over ranks, in place. Ranks: all."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Ranks: all."""
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in rank order, on every rank. Ranks: all."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_main(self, value: T | None) -> T:
        """Rank 0's value, on every rank. Ranks: all."""
        values: list[T | None] = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)  # on the CPU: no GPU kernel spins while rank 0 works
        return values[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def on_main(world: World, act: Callable[[], T]) -> T:
    """Runs file work on rank 0 and returns its result on all. Ranks: all.

    Raises: on rank 0 the error of the work (a CheckpointError for an OSError), on the others ErrorOnMain.
    """
    value: T | None = None
    error: LauncherError | None = None
    if world.is_main:
        try:
            value = act()
        except OSError as failure:
            error = CheckpointError(f"{type(failure).__name__}: {failure}", **fields_of(failure))
        except LauncherError as failure:
            error = failure
    failed = None if error is None else (str(error), error.exit_code, error.kind, fields_of(error))
    shared, failed_on_main = world.from_main((value, failed))
    if error is not None:
        raise error
    if failed_on_main is not None:
        raise ErrorOnMain(*failed_on_main)
    return shared  # type: ignore[return-value]


def leave_if_stopped(world: World, doing: str) -> None:
    """Ends all ranks if any of them received a stop signal, where there is nothing to save yet. Ranks: all.

    Raises: Preempted.
    """
    if world.any(STOP.requested):
        raise STOP.preempted(f"while {doing}; nothing was trained yet in this attempt")


def join_world(derived: Derived, *, limit_s: float = FaultConfig().meet_limit_s) -> World:
    """Meets the other ranks and compares them with the plan.

    The process group is never destroyed: gloo's worker thread may still need the GIL to free the last collective's
    tensors, and a destructor that holds it then waits forever (seen with DDP on gloo). The process ends by `os._exit`
    instead.

    Raises: WorldError if the number of ranks is not the planned one (training with it would silently change the
    batch), or one did not come within `limit_s`. Ranks: all.
    """
    rank, local_rank, size = rank_numbers(os.environ)
    if size != derived.world_size:
        raise WorldError(
            f"{size} process{'es' if size != 1 else ''} started but the run was planned for {derived.world_size} "
            f"(RANK={rank}, LOCAL_RANK={local_rank}); start that many, or make a new run with other cluster settings"
        )
    if derived.device == "cpu" and derived.threads_per_process:  # 0: as the job's OMP_NUM_THREADS says
        torch.set_num_threads(derived.threads_per_process)
    return meet(derived.device, limit_s=limit_s)


def meet(device_type: str, *, limit_s: float = FaultConfig().meet_limit_s) -> World:
    """Makes the process group of all ranks that were started, planned or not.

    Raises: WorldError naming the ranks that cannot be reached; Preempted when a stop signal came meanwhile. Ranks: all.
    """
    rank, local_rank, size = rank_numbers(os.environ)
    device = use_device(device_type, rank, local_rank)
    # Accelerate, DeepSpeed and torch read these; srun sets none of them. They take LOCAL_RANK for the number of the
    # GPU, which is another one where each rank sees only its own.
    ordinal = local_rank if device.index is None else device.index
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(ordinal), WORLD_SIZE=str(size))
    world = World(rank=rank, size=size, device=device)
    if not dist.is_initialized():
        _make_process_group(world, limit_s)
    return world


def use_device(device_type: str, rank: int, local_rank: int) -> torch.device:
    """Makes this rank's device the current one.

    Raises: DeviceError when this node has too few GPUs; TorchLacksGpu when it has some that torch cannot use.
    """
    if device_type == "cpu":
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        refuse_torch_without_gpu(torch.version.cuda, torch.version.hip, len(working_gpus()))
    device = torch.device("cuda", gpu_of(rank, local_rank, num_gpus))
    torch.cuda.set_device(device)
    return device


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """CUDA compute capability; None for a CPU or a GPU of AMD."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.version.hip is None else None


def refuse_torch_without_gpu(cuda: str | None, hip: str | None, num_installed: int) -> None:
    """Tells a node without GPUs from a torch that cannot use them, which no other node would cure.

    Args:
        cuda, hip: what torch was built for. num_installed: GPUs that a working driver lists.
    Raises: TorchLacksGpu.
    """
    if cuda is None and hip is None:
        raise TorchLacksGpu(
            f"torch {torch.__version__} was built without GPU support; install a build for CUDA or ROCm that fits your "
            "driver, see https://pytorch.org/get-started/locally"
        )
    if num_installed:
        built_for = f"CUDA {cuda}" if cuda else f"ROCm {hip}"
        raise TorchLacksGpu(
            f"{socket.gethostname()} has {num_installed} GPU{'s' if num_installed > 1 else ''}, and torch "
            f"{torch.__version__}, built for {built_for}, sees none: the driver may be too old for it, the job may "
            "have been given no GPU, or CUDA_VISIBLE_DEVICES hides them. Look at nvidia-smi there"
        )


def gpu_of(rank: int, local_rank: int, num_gpus: int) -> int:
    """Index of a rank's GPU among those it sees: the only one, or else by local rank.

    Raises: DeviceError when this node has too few.
    """
    if num_gpus == 1:
        return 0
    if local_rank < num_gpus:
        return local_rank
    seen = f"{num_gpus} GPUs are" if num_gpus else "no GPU is"
    raise DeviceError(
        f"rank {rank} on {socket.gethostname()} is the node's rank {local_rank}, and {seen} visible there. "
        "Look at nvidia-smi on that node; leave it out with cluster.exclude, or ask for as many GPUs as ranks"
    )


def _make_process_group(world: World, limit_s: float) -> None:
    # gloo beside nccl: object collectives and CPU tensors then need no GPU memory.
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    if world.size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise WorldError(
            f"{world.size} processes were started but {' and '.join(missing)} is not set, so they cannot meet; "
            "start them with launcher train, accelerate launch, torchrun, or slurm/train.sbatch"
        )
    store = find_all(world.rank, world.size, limit_s=limit_s)

    group_store = PrefixStore("group", store)
    # A short time limit: otherwise a node whose network is cut is noticed only half an hour later.
    timeout = timedelta(seconds=limit_s)

    def talk() -> None:
        dist.init_process_group(backend, store=group_store, rank=world.rank, world_size=world.size, timeout=timeout)
        # From here on the limit is that of _sum_within: NCCL's own aborts the process, which then cannot say why.
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
        _sum_within(torch.ones(()), limit_s)
        present = int(_sum_within(torch.ones((), device=world.device), limit_s).item())
        if present != world.size:
            raise RuntimeError(f"{present} ranks answered, {world.size} were started")

    first_collective(store, world.rank, world.size, talk)


def _sum_within(tensor: Tensor, limit_s: float) -> Tensor:
    """Sums a tensor over ranks, in place. Ranks: all.

    Raises: RuntimeError, also where a rank does not take part in time.
    """
    failed: list[BaseException] = []

    def add() -> None:
        try:
            work = dist.all_reduce(tensor, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(0.005)
            work.wait()
        except BaseException as error:
            failed.append(error)

    # In a thread, because NCCL connects the ranks inside the call, and waits there without a limit of ours.
    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise RuntimeError(f"a sum over all ranks, on their {tensor.device.type}, took longer than {limit_s:.0f} s")
    if failed:
        raise failed[0]
    return tensor
