from __future__ import annotations

import pytest

from launcher.errors import UserError
from launcher.slurm.job.allocation import read_allocation

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2,07]"}


def test_nodes_come_in_the_order_of_ranks() -> None:
    assert read_allocation(JOB).nodes == ("n1", "n2", "n07")


def test_a_member_of_an_array_is_called_by_its_place() -> None:
    environ = {**JOB, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "2"}
    allocation = read_allocation(environ)
    assert (allocation.name, allocation.job_id, allocation.array_task, allocation.restart) == ("5_0", "7", 0, 2)


def test_outside_of_a_job_it_says_how_to_start_one() -> None:
    with pytest.raises(UserError, match=r"SLURM_JOB_ID .* is not set.*sbatch --nodes"):
        read_allocation({"SLURM_JOB_NODELIST": "n1"})
