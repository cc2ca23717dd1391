from __future__ import annotations

import itertools
import socket

import pytest

from launcher.slurm.job import rendezvous
from launcher.slurm.job.rendezvous import free_meeting_port, meeting_ports


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    for job in (1, 7, 123_456_789):
        ports = list(meeting_ports(str(job), 0, 1))
        assert len(set(ports)) == len(ports)
        assert all(10_000 <= port < 32_000 for port in ports)


def test_neighbouring_jobs_and_the_attempts_of_a_job_begin_at_other_ports() -> None:
    firsts = [next(meeting_ports(str(job), restart, restart + 1)) for job in range(1000, 1020) for restart in range(5)]
    assert len(set(firsts)) == len(firsts)


def test_a_port_somebody_holds_is_passed_over() -> None:
    first = free_meeting_port("4242", 0, 1)
    with socket.socket() as holder:
        holder.bind(("", first))
        holder.listen()
        assert free_meeting_port("4242", 0, 1) != first


def test_an_interface_is_named_only_where_the_host_name_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert rendezvous.rank_interface(["localhost", "127.0.0.1"]) == "lo"
    assert rendezvous.rank_interface(["localhost"]) == ""
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "192.0.2.1")
    assert rendezvous.rank_interface(["a", "127.0.0.1"]) == ""


def test_so_many_ports_are_tried_that_a_busy_machine_has_one() -> None:
    assert len(list(itertools.islice(meeting_ports("1", 0, 1), 500))) == 200
