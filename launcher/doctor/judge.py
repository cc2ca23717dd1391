"""Judges the reports of a doctor's job. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from launcher.doctor.findings import CheckResult, fail, ok, warn, warn_if
from launcher.doctor.reports import Link, NodeReport, SumReport

MAX_CLOCK_S = 1.0
SLOW_ROUND_TRIP_MS = 5.0
SLOW_MIB_PER_S = 100.0
"""About what 1 Gbit/s Ethernet carries."""
LITTLE_SHM_GIB = 1.0
_MUST_AGREE = ("launcher", "python", "torch", "accelerate", "deepspeed", "transformers", "peft", "numpy")
_SEE_OUTPUT = "Look at the end of the job's output below"


def judge_nodes(
    reports: Sequence[NodeReport],
    nodes: Sequence[str],
    *,
    device: str,
    devices_per_node: int,
    here: Mapping[str, str | None],
) -> list[CheckResult]:
    """Everything the probes of a job found.

    Args:
        nodes: those of the job. here: versions on the host that asks.
    """
    reported = {report.node for report in reports}
    silent = [fail("nodes", f"{node} did not report", _SEE_OUTPUT) for node in nodes if node not in reported]
    if not reports:
        return silent
    return [
        *(silent or [ok("nodes", f"{len(reports)} nodes answered: {', '.join(nodes)}")]),
        *_folder(reports),
        *_versions(reports, here),
        *_gpus(reports, device, devices_per_node),
        *_memory(reports),
        *_links(reports),
    ]


def _folder(reports: Sequence[NodeReport]) -> list[CheckResult]:
    blind = [report for report in reports if not report.sees_folder]
    hint = "runs_dir must be on a file system that all nodes and this host see under the same path"
    if blind:
        return [fail("shared folder", f"{one.node} does not see it: {one.folder_error}", hint) for one in blind]
    hosts = {report.host for report in reports}
    late = [(report.node, hosts - set(report.sees)) for report in reports if hosts - set(report.sees)]
    if late:
        text = "; ".join(f"{node} does not see what {', '.join(sorted(missing))} wrote" for node, missing in late)
        return [warn("shared folder", text, "Changes are seen late: check the caching options of the mount")]
    return [ok("shared folder", "every node sees runs_dir, and what the others write there")]


def _versions(reports: Sequence[NodeReport], here: Mapping[str, str | None]) -> Iterator[CheckResult]:
    different = []
    for name in (*_MUST_AGREE, "git_revision"):
        if text := _differing(name, {report.node: report.versions.get(name) for report in reports}):
            hint = "Use one environment on a shared file system, or one container image"
            different.append(fail("versions", text, hint))
    yield from different
    if text := _differing("GPU driver", {report.node: report.driver or "none" for report in reports}):
        yield warn("versions", text, "Results may differ from node to node: tell the administrator")
    if different:
        return
    known = {name: reports[0].versions.get(name) for name in _MUST_AGREE}
    yield ok("versions", f"the same on all nodes: {', '.join(f'{k} {value}' for k, value in known.items() if value)}")
    other = [name for name in _MUST_AGREE if here.get(name) is not None and here.get(name) != known[name]]
    if other:
        text = "; ".join(f"{name} {here[name]} here, {known[name]} on the nodes" for name in other)
        yield warn("versions", text, "Submit from the environment the nodes use")
    if known["torch"] is None:
        yield fail("versions", "torch is not installed on the nodes", 'pip install "tunelaunch[train]" there')


def _differing(name: str, values: Mapping[str, str | None]) -> str:
    """The values by node, if they are not all the same."""
    shown = ", ".join(f"{node} {value}" for node, value in values.items())
    return f"{name} differs: {shown}" if len(set(values.values())) > 1 else ""


def _gpus(reports: Sequence[NodeReport], device: str, devices_per_node: int) -> Iterator[CheckResult]:
    if device != "cuda":
        yield ok("gpu", "the run uses no GPU (cluster.device)")
        return
    lacking = [report for report in reports if len(report.gpus) < devices_per_node]
    for report in lacking:
        text = f"{report.node} shows {len(report.gpus)} GPUs, cluster.devices_per_node = {devices_per_node}"
        yield fail("gpu", text, "Check cluster.gpu_request and the driver of that node (nvidia-smi)")
    if not lacking:
        kinds = sorted({name for report in reports for name in report.gpus})
        yield ok("gpu", f"{devices_per_node} or more on every node: {', '.join(kinds)}")
        if len(kinds) > 1:
            yield warn("gpu", "nodes have GPUs of different kinds; the slowest sets the pace", "Set cluster.constraint")


def _memory(reports: Sequence[NodeReport]) -> Iterator[CheckResult]:
    least = min(reports, key=lambda report: report.memory_gib)
    yield ok("memory", f"{least.memory_gib} GiB and {least.cores} usable cores on {least.node}, the smallest")
    for report in reports:
        if report.shm_gib is not None and report.shm_gib < LITTLE_SHM_GIB:
            text = f"{report.node} has {report.shm_gib} GiB free in /dev/shm"
            yield warn("memory", text, "NCCL and data workers share memory there: enlarge it (containers: --shm-size)")


def _links(reports: Sequence[NodeReport]) -> Iterator[CheckResult]:
    links = [(report.node, link) for report in reports for link in report.links]
    broken = [(node, link) for node, link in links if link.error]
    for node, link in broken:
        hint = "Ranks talk on any TCP port: names must resolve to addresses, and firewalls between nodes be open"
        yield fail("network", f"{node} cannot reach {link.peer}: {link.error}", hint)
    culprit = _in_all(broken)
    if culprit and len(reports) > 2:
        yield fail("network", f"{culprit} is in every broken pair", f"Leave it out: cluster.exclude={culprit}")
    working = [(node, link) for node, link in links if not link.error]
    if not working:
        return
    node, link = max(working, key=lambda one: one[1].round_trip_ms)
    text = f"slowest answer after {link.round_trip_ms:.2f} ms ({node} to {link.peer})"
    yield warn_if(link.round_trip_ms > SLOW_ROUND_TRIP_MS, "network", text, "Ranks wait for it in every step")
    node, link = min(working, key=lambda one: one[1].mib_per_s)
    text = f"least {link.mib_per_s:,.0f} MiB/s by TCP ({node} to {link.peer})"
    hint = "Every step sends gradients over it; if there is a faster network, name it: NCCL_SOCKET_IFNAME in "
    yield warn_if(link.mib_per_s < SLOW_MIB_PER_S, "network", text, f"{hint}cluster.environment")
    # Half of the time a question took is the accuracy of the other clock.
    node, link = max(working, key=lambda one: abs(one[1].clock_ahead_s))
    text = f"clocks of nodes differ by {abs(link.clock_ahead_s):.3f} s at most ({node}, {link.peer})"
    hint = "Times in logs will not match, and credentials may be refused: use NTP"
    yield warn_if(abs(link.clock_ahead_s) > MAX_CLOCK_S, "clock", text, hint)


def _in_all(broken: Sequence[tuple[str, Link]]) -> str:
    """The one node that is part of every broken pair, if more than one pair is broken."""
    pairs = {frozenset((node, link.peer)) for node, link in broken}
    common = frozenset.intersection(*pairs) if len(pairs) > 1 else frozenset()
    return next(iter(common)) if len(common) == 1 else ""


def judge_sum(reports: Sequence[SumReport], world_size: int) -> list[CheckResult]:
    """The sum over all ranks."""
    found = []
    for report in reports:
        if report.error:
            hint = "Look at the end of the job's output; NCCL_DEBUG=INFO in cluster.environment makes it say more"
            found.append(fail("collective", f"rank {report.rank} on {report.host}: {report.error}", hint))
    if silent := world_size - len(reports):
        found.append(fail("collective", f"{silent} of {world_size} ranks did not report", _SEE_OUTPUT))
    if found or not reports:
        return found
    slowest = max(reports, key=lambda report: report.seconds)
    text = f"a sum of {slowest.mib} MiB over {world_size} ranks ({slowest.backend}) takes {slowest.seconds:.3f} s"
    return [ok("collective", f"{text}, {slowest.gib_per_s:.2f} GiB/s a rank")]
