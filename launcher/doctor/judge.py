"""What the reports of the nodes come to. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from launcher.doctor.findings import CheckResult, fail, ok, warn

MAX_CLOCK_S = 1.0
SLOW_ROUND_TRIP_MS = 5.0
SLOW_MIB_PER_S = 100.0
"""About what 1 Gbit/s Ethernet carries."""
LITTLE_SHM_GIB = 1.0
_MUST_AGREE = ("launcher", "python", "torch", "accelerate", "deepspeed", "transformers", "peft", "numpy")

Report = dict[str, Any]


def judge_nodes(
    reports: Sequence[Report], nodes: Sequence[str], *, device: str, devices_per_node: int, here: dict[str, str | None]
) -> list[CheckResult]:
    """Everything the probes of a job say.

    Args:
        nodes: those of the job. here: versions of the machine that asks.
    """
    silent = [node for node in nodes if node not in {report["node"] for report in reports}]
    found = [fail("nodes", f"{node} did not report", "Look at the end of the job's output below") for node in silent]
    if not reports:
        return found
    if not silent:
        found.append(ok("nodes", f"{len(reports)} nodes answered: {', '.join(nodes)}"))
    found += _folder(reports)
    found += _versions(reports, here)
    found += _gpus(reports, device, devices_per_node)
    found += _memory(reports)
    return found + _links(reports)


def _folder(reports: Sequence[Report]) -> list[CheckResult]:
    blind = [report for report in reports if not report["sees_folder"]]
    hint = "runs_dir must be on a file system that all nodes and this machine see under the same path"
    if blind:
        return [fail("shared folder", f"{one['node']} does not see it: {one['folder_error']}", hint) for one in blind]
    hosts = {str(report["host"]) for report in reports}
    late = [(report["node"], hosts - set(report["sees"])) for report in reports if hosts - set(report["sees"])]
    if late:
        text = "; ".join(f"{node} does not see what {', '.join(sorted(missing))} wrote" for node, missing in late)
        return [warn("shared folder", text, "Changes are seen late: check the caching options of the mount")]
    return [ok("shared folder", "every node sees runs_dir, and what the others write there")]


def _versions(reports: Sequence[Report], here: dict[str, str | None]) -> Iterator[CheckResult]:
    first = reports[0]
    differ = False
    for name in (*_MUST_AGREE, "git_revision"):
        values = {str(report["node"]): report["versions"].get(name) for report in reports}
        if len(set(values.values())) > 1:
            differ = True
            text = f"{name} differs: {', '.join(f'{node} {value}' for node, value in values.items())}"
            yield fail("versions", text, "Use one environment on a shared file system, or one container image")
    drivers = {str(report["node"]): report["driver"] or "none" for report in reports}
    if len(set(drivers.values())) > 1:
        text = f"GPU drivers differ: {', '.join(f'{node} {value}' for node, value in drivers.items())}"
        yield warn("versions", text, "Runs may end differently from node to node: tell the administrator")
    if differ:
        return
    known = {name: first["versions"].get(name) for name in _MUST_AGREE}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value)
    yield ok("versions", f"the same on all nodes: {shown}")
    other = [name for name in _MUST_AGREE if here.get(name) is not None and here.get(name) != known[name]]
    if other:
        text = "; ".join(f"{name} {here[name]} here, {known[name]} on the nodes" for name in other)
        yield warn("versions", text, "Submit from the environment the nodes use")
    if known["torch"] is None:
        yield fail("versions", "torch is not installed on the nodes", 'pip install "tunelaunch[train]" there')


def _gpus(reports: Sequence[Report], device: str, devices_per_node: int) -> Iterator[CheckResult]:
    if device != "cuda":
        yield ok("gpu", "the run uses no GPU (cluster.device)")
        return
    lacking = [report for report in reports if len(report["gpus"]) < devices_per_node]
    for report in lacking:
        text = f"{report['node']} shows {len(report['gpus'])} GPUs, cluster.devices_per_node = {devices_per_node}"
        yield fail("gpu", text, "Check cluster.gpu_request and the driver of that node (nvidia-smi)")
    if not lacking:
        kinds = sorted({name for report in reports for name in report["gpus"]})
        yield ok("gpu", f"{devices_per_node} or more on every node: {', '.join(kinds)}")
        if len(kinds) > 1:
            yield warn("gpu", "nodes have GPUs of different kinds; the slowest sets the pace", "Set cluster.constraint")


def _memory(reports: Sequence[Report]) -> Iterator[CheckResult]:
    least = min(reports, key=lambda report: report["memory_gib"])
    yield ok("memory", f"{least['memory_gib']} GiB and {least['cores']} usable cores on {least['node']}, the smallest")
    for report in reports:
        if report["shm_gib"] is not None and report["shm_gib"] < LITTLE_SHM_GIB:
            text = f"{report['node']} has {report['shm_gib']} GiB free in /dev/shm"
            yield warn("memory", text, "NCCL and data workers share memory there: enlarge it (containers: --shm-size)")


def _links(reports: Sequence[Report]) -> list[CheckResult]:
    links = [(str(report["node"]), link) for report in reports for link in report["links"]]
    if not links:
        return []
    broken = [(node, link) for node, link in links if link["error"]]
    found = [
        fail(
            "network",
            f"{node} cannot reach {link['peer']}: {link['error']}",
            "Ranks talk on any TCP port: names must resolve to addresses, and firewalls between nodes be open",
        )
        for node, link in broken
    ]
    blamed = _in_all(broken)
    if blamed and len(reports) > 2:
        found.append(fail("network", f"{blamed} is in every broken pair", f"Leave it out: cluster.exclude={blamed}"))
    whole = [(node, link) for node, link in links if not link["error"]]
    if not whole:
        return found
    slowest = max(whole, key=lambda one: float(one[1]["round_trip_ms"]))
    text = f"slowest answer after {slowest[1]['round_trip_ms']:.2f} ms ({slowest[0]} to {slowest[1]['peer']})"
    far = slowest[1]["round_trip_ms"] > SLOW_ROUND_TRIP_MS
    found.append(warn("network", text, "Ranks wait for it in every step") if far else ok("network", text))
    thinnest = min(whole, key=lambda one: float(one[1]["mib_per_s"]))
    text = f"least {thinnest[1]['mib_per_s']:,.0f} MiB/s by TCP ({thinnest[0]} to {thinnest[1]['peer']})"
    thin = thinnest[1]["mib_per_s"] < SLOW_MIB_PER_S
    hint = (
        "Gradients cross it in every step; set NCCL_SOCKET_IFNAME in cluster.environment if there is a better network"
    )
    found.append(warn("network", text, hint) if thin else ok("network", text))
    return [*found, _clocks(whole)]


def _in_all(broken: Sequence[tuple[str, Report]]) -> str:
    """The one node that is part of every broken pair, if more than one pair is broken."""
    pairs = {frozenset((node, str(link["peer"]))) for node, link in broken}
    common = frozenset.intersection(*pairs) if len(pairs) > 1 else frozenset()
    return next(iter(common)) if len(common) == 1 else ""


def _clocks(whole: Sequence[tuple[str, Report]]) -> CheckResult:
    node, link = max(whole, key=lambda one: abs(float(one[1]["clock_ahead_s"])))
    ahead_s = float(link["clock_ahead_s"])
    # A clock cannot be told more exactly than by half of the time the question took.
    text = f"clocks of nodes differ by {abs(ahead_s):.3f} s at most ({node}, {link['peer']})"
    if abs(ahead_s) > MAX_CLOCK_S:
        return warn("clock", text, "Times in logs will not fit together, and credentials may be refused: use NTP")
    return ok("clock", text)


def judge_sum(reports: Sequence[Report], world_size: int) -> list[CheckResult]:
    """What the ranks of the sum over all of them say."""
    silent = world_size - len(reports)
    found = [
        fail(
            "collective",
            f"rank {one['rank']} on {one['host']}: {one['error']}",
            "Look at the end of the job's output; NCCL_DEBUG=INFO in cluster.environment makes it say more",
        )
        for one in reports
        if one["error"]
    ]
    if silent:
        hint = "Look at the end of the job's output below"
        found.append(fail("collective", f"{silent} of {world_size} ranks did not report", hint))
    if found or not reports:
        return found
    slowest = max(reports, key=lambda one: float(one["seconds"]))
    text = (
        f"a sum of {slowest['mib']} MiB over {world_size} ranks ({slowest['backend']}) takes "
        f"{slowest['seconds']:.3f} s, {slowest['gib_per_s']:.2f} GiB/s a rank"
    )
    return [ok("collective", text)]
