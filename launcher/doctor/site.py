"""`launcher doctor` on a cluster: its tools, its settings, and a small job that checks nodes and network."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.config.schema import RunConfig
from launcher.config.shipped_files import share_dir
from launcher.config.topology import Topology, resolve_topology
from launcher.doctor.findings import CheckResult, fail, has_failed, of_problem, ok, warn
from launcher.doctor.job import SITE
from launcher.doctor.judge import judge_nodes, judge_sum
from launcher.doctor.reports import JobReport, NodeReport, SumReport, read_reports
from launcher.errors import Problem, SlurmError, SlurmMissing
from launcher.files import find_record, write_json
from launcher.runs.run_dir import versions
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm, run_tool
from launcher.slurm.client.sbatch import (
    JobRequest,
    comment,
    job_variables,
    sbatch_argv,
    sbatch_environment,
    sbatch_problems,
)
from launcher.slurm.submit.site import site_problems, site_warnings

TOOLS = ("sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
WALLTIME_MIN = 10
_OUT = ("down", "drain", "drng", "fail", "maint", "unk", "inval", "pow")
_POLL_S = 1.0
_LATE_FILES_S = 20.0
"""How long the job's files may take to appear here: network file systems cache that a file does not exist."""
_TAIL_LINES = 15


def tool_findings(slurm: Slurm, *, needed: bool) -> list[CheckResult]:
    """Slurm's tools and whether they answer. A host without any is fine unless a cluster is `needed`."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if len(missing) == len(TOOLS):
        text = "no Slurm tools on this host"
        hint = "Run launcher doctor on a login node of the cluster"
        return [fail("slurm", text, hint) if needed else ok("slurm", f"{text}: runs here are local")]
    found = [fail("slurm", f"{tool} is missing", "Install the Slurm client package") for tool in missing]
    try:
        version = run_tool(["sinfo", "--version"], timeout_s=slurm.timeout_s).strip()
        partitions = slurm.partitions()
    except SlurmError as error:
        # A host that merely has the package is not a login node.
        if isinstance(error, SlurmMissing) and not needed:
            return [*found, ok("slurm", f"tools are installed, but there is no cluster: {error}".replace("\n", "; "))]
        return [*found, fail("slurm", str(error), "Is this a host of the cluster, and is slurmctld up?")]
    nodes = ", ".join(f"{one.name} ({one.nodes} nodes{', default' if one.is_default else ''})" for one in partitions)
    accounting = "accounting answers (sacct)"
    try:
        run_tool(["sacct", "--noheader", "--allocations", "--starttime=now"], timeout_s=slurm.timeout_s)
    except SlurmError as error:
        reason = str(error).splitlines()[-1]
        accounting = f"no accounting ({reason}): verdicts rest on squeue, scontrol and our own record"
    found += [ok("slurm", f"{version}; partitions: {nodes or 'none'}"), ok("slurm", accounting)]
    return [*found, *_nodes_out(slurm)]


def _nodes_out(slurm: Slurm) -> Iterator[CheckResult]:
    """Nodes that take no jobs, or do not answer the controller (marked * by Slurm)."""
    try:
        lines = run_tool(["sinfo", "--all", "--noheader", "--format=%N|%t|%E"], timeout_s=slurm.timeout_s)
    except SlurmError:
        return
    for line in sorted(set(lines.splitlines())):
        nodes, state, reason = [*line.split("|", 2), "", ""][:3]
        if state.endswith("*") or state.startswith(_OUT):
            why = "does not answer the controller" if reason in ("none", "", "Not responding") else reason
            hint = f"If it works again: scontrol update nodename={nodes} state=resume"
            yield warn("slurm", f"{nodes} is {state.rstrip('*')}: {why}", hint)


def site_findings(config: RunConfig, config_problems: list[Problem], slurm: Slurm) -> list[CheckResult]:
    """Compares the site's settings with what sbatch takes and the cluster has."""
    found = [of_problem("settings", problem) for problem in [*config_problems, *sbatch_problems(config)]]
    try:
        partitions = slurm.partitions()
    except SlurmError as error:
        return [*found, fail("settings", f"not compared with the cluster: {error}")]
    found += [of_problem("settings", problem) for problem in site_problems(config, partitions)]
    found += [warn("settings", text) for text in site_warnings(config, partitions)]
    found += _missing_paths(config.cluster)
    return found or [ok("settings", "sbatch takes them, and the cluster has what they ask for")]


def _missing_paths(cluster: ClusterConfig) -> Iterator[CheckResult]:
    image = cluster.container_image
    if image is not None and image.startswith("/") and not Path(image).exists():
        yield fail("settings", f"cluster.container_image = {image!r} does not exist", "Build it, or give its path")
    for mount in cluster.container_mounts:
        source = mount.partition(":")[0]
        if not Path(source).exists():
            yield warn("settings", f"cluster.container_mounts: {source} does not exist here", "It must on the nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorJob:
    """A job that is ready to be queued."""

    folder: Path
    token: str
    argv: list[str]
    environment: dict[str, str]
    comment: str
    world: Topology
    cluster: ClusterConfig


def plan_job(config: RunConfig, environ: Mapping[str, str]) -> DoctorJob:
    """Creates nothing. Raises: ConfigErrors for settings sbatch would not take."""
    token = secrets.token_hex(8)
    folder = Path(config.runs_dir).expanduser().absolute() / f".doctor-{token}"
    world = resolve_topology(config, [])
    cluster = replace(config.cluster, walltime_min=WALLTIME_MIN, signal_lead_s=30, mail_user=None, mail_type=None)
    variables = job_variables(cluster, environ)
    request = JobRequest(
        stage="train",
        job_name="launcher-doctor",
        key=f"doctor-{token}",
        script=share_dir("slurm") / "doctor.sbatch",
        script_args=[str(folder), token, world.device, str(world.devices_per_node)],
        log_dir=folder,
        variables=sorted(variables),
    )
    return DoctorJob(
        folder=folder,
        token=token,
        argv=sbatch_argv(replace(config, cluster=cluster), request),
        environment=sbatch_environment(environ, variables),
        comment=comment(request.key, request.stage),
        world=world,
        cluster=cluster,
    )


def run_job(job: DoctorJob, slurm: Slurm, *, wait_s: float) -> list[CheckResult]:
    """Queues the job, waits for it and judges its reports. Its folder stays only if something is wrong."""
    job.folder.mkdir(mode=0o700, parents=True)
    (job.folder / "token").write_text(job.token, encoding="utf-8")
    write_json(job.folder / SITE, job.cluster)
    try:
        job_id = slurm.submit(job.argv, job.environment, comment=job.comment)
    except SlurmError as error:
        shutil.rmtree(job.folder, ignore_errors=True)
        hint = "Fix the setting it names; launcher doctor --dry-run shows the command"
        return [fail("job", f"sbatch: {error}", hint)]
    try:
        info = _wait(job_id, slurm, wait_s)
    except BaseException:
        slurm.cancel(job_id)
        raise
    if info is None or not info.finished:
        slurm.cancel(job_id)
        found = [_never_ran(job_id, info, wait_s), *_nodes_out(slurm)]
    else:
        found = _judge(job, info)
    if has_failed(found):
        return [*found, *_output(job, job_id)]
    shutil.rmtree(job.folder, ignore_errors=True)
    return found


def _wait(job_id: str, slurm: Slurm, wait_s: float) -> JobInfo | None:
    """The job after it ended, or after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        info = slurm.job(job_id)
        if info is None or info.finished or time.monotonic() > deadline:
            return info
        time.sleep(_POLL_S)


def _never_ran(job_id: str, info: JobInfo | None, wait_s: float) -> CheckResult:
    if info is None:
        return fail("job", f"Slurm does not know job {job_id} any more", "Run launcher doctor again")
    reason = f" ({info.reason})" if info.reason else ""
    if info.state == "PENDING":
        hint = "Wait longer (--wait), ask for fewer nodes, or see why: squeue --start"
        return fail("job", f"job {job_id} did not start within {wait_s:g} s{reason}; it was cancelled", hint)
    where = f" on {', '.join(info.nodes)}" if info.nodes else ""
    text = f"job {job_id}{where} was {info.state} after {wait_s:g} s; it was cancelled"
    return fail("job", text, "Wait longer (--wait), or look at its output below")


def _job_report(job: DoctorJob, info: JobInfo) -> JobReport | None:
    """None if it cannot be seen here."""
    deadline = time.monotonic() + (_LATE_FILES_S if info.state == "COMPLETED" else 0.0)
    while True:
        report = find_record(JobReport, job.folder / "job.json")
        if (report is not None and report.ended) or time.monotonic() > deadline:
            return report
        list(job.folder.iterdir())  # makes a network file system look again
        time.sleep(0.2)


def _judge(job: DoctorJob, info: JobInfo) -> list[CheckResult]:
    report, world = _job_report(job, info), job.world
    nodes = info.nodes or (report.nodes if report is not None else [])
    where, ended_as = ", ".join(nodes), f"job {info.job_id} ended as {info.state} ({info.exit_code})"
    if report is None:
        if info.state != "COMPLETED":
            return [fail("job", f"{ended_as} on {where}")]
        text = f"job {info.job_id} ran on {where}, but its files in {job.folder} cannot be seen here"
        return [fail("shared folder", text, "runs_dir must be on a file system that all nodes and this host see")]
    if not report.ended:
        found = [fail("job", f"{ended_as} before it was finished")]
    elif report.probe_exit != 0:
        found = [fail("job", f"srun ended with {report.probe_exit} on {where}", "See its output below")]
    else:
        queued_s = (info.started - info.submitted).total_seconds() if info.started and info.submitted else 0.0
        found = [ok("job", f"job {info.job_id} started after {queued_s:.0f} s on {where}")]
    here = versions()
    found += judge_nodes(
        read_reports(NodeReport, job.folder, "probe-*.json"),
        nodes,
        device=world.device,
        devices_per_node=world.devices_per_node,
        # An image has packages of its own; only the launcher must be the same.
        here=here if job.cluster.container is ContainerRuntime.none else {"launcher": here["launcher"]},
    )
    if report.sum_exit is not None:
        sums = read_reports(SumReport, job.folder, "link-*.json")
        found += judge_sum(sums, world.world_size)
    elif not has_failed(found):
        found.append(ok("collective", "not tried: one rank, or no torch on the nodes"))
    return found


def _output(job: DoctorJob, job_id: str) -> list[CheckResult]:
    """The last lines of the job's output."""
    path = job.folder / f"slurm-{job_id}.out"
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []
    return [warn("output", f"{path}:\n" + "\n".join(lines))] if lines else []
