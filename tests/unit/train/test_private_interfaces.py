"""The private interfaces of other packages that docs/extending.md lists exist as we use them."""

from __future__ import annotations

import inspect

import pytest
import torch.distributed as dist


def test_torch_has_the_stores_and_the_time_limit_of_a_process_group() -> None:
    from torch._C import _distributed_c10d as c10d

    assert all(hasattr(c10d, name) for name in ("HashStore", "PrefixStore", "Store", "TCPStore"))
    assert next(iter(inspect.signature(dist.distributed_c10d._set_pg_timeout).parameters)) == "timeout"


@pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch is built without NCCL")
def test_nccl_can_tell_its_last_collectives() -> None:
    from torch._C import _distributed_c10d as c10d

    assert hasattr(c10d, "_dump_nccl_trace_json")


def test_torch_builds_extensions_under_a_lock_that_can_be_replaced() -> None:
    from torch.utils import cpp_extension, file_baton

    assert {"try_acquire", "wait", "release"} <= set(dir(file_baton.FileBaton))
    assert "FileBaton(" in inspect.getsource(cpp_extension._jit_compile)


def test_deepspeed_has_what_the_zero_engine_sets() -> None:
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero import stage_1_and_2

    assert "self.ds_opt_adam.create_adam(self.opt_id" in inspect.getsource(DeepSpeedCPUAdam)
    assert "self.checkpoint_engine.save(" in inspect.getsource(DeepSpeedEngine)
    assert "self.check_grad_overflow" in inspect.getsource(stage_1_and_2)


def test_wandb_has_the_experimental_settings() -> None:
    wandb = pytest.importorskip("wandb")
    fields = wandb.Settings.model_fields
    assert {"x_save_requirements", "x_disable_stats", "x_disable_machine_info", "x_stats_pid"} <= set(fields)
