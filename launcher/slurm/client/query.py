"""A client of Slurm's command-line tools, with time-outs and retries while the controller does not answer."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from launcher.errors import SlurmError, SlurmMissing, SlurmUnavailable, UnknownJob
from launcher.slurm.client.parse import (
    SACCT,
    SINFO,
    SQUEUE,
    JobInfo,
    Partition,
    parse_jobs,
    parse_partitions,
    parse_sacct,
    parse_slurm_time,
    parse_squeue,
)

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
# What the tools print while the controller is down, busy or failing over: the same call may succeed later.
_TEMPORARY = (
    "unable to contact slurm controller",
    "unable to establish controller",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "zero bytes were transmitted",
    "unexpected message received",
    "transport endpoint is not connected",
    "communication connection failure",
    "in standby mode",
    "slurm temporarily unable",
    "resource temporarily unavailable",
)
RETRY_S = 30.0
_SQUEUE = ("squeue", "--noheader", f"--format={'|'.join(SQUEUE.values())}")
_SACCT = ("sacct", "--allocations", "--noheader", "--parsable2", f"--format={','.join(SACCT.values())}")
_SINFO = ("sinfo", "--all", "--exact", "--noheader", f"--format={'|'.join(SINFO.values())}")
# Such variables in the user's shell would change what a call does or prints.
_DROPPED = ("SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")


class Slurm:
    """The cluster this host belongs to.

    Args:
        retry_s: how long to retry while the controller does not answer; left out: RETRY_S.
        timeout_s: time limit of one call of a tool.
    """

    def __init__(self, *, retry_s: float | None = None, timeout_s: float = 30.0) -> None:
        self.retry_s = RETRY_S if retry_s is None else retry_s
        self.timeout_s = timeout_s
        self._has_accounting = True

    def job(self, job_id: str) -> JobInfo | None:
        """A job, or a member of an array (ARRAY_TASK); None when neither Slurm nor its accounting knows it.

        Raises:
            SlurmUnavailable: the controller did not answer.
        """
        found: list[JobInfo] = []
        with suppress(UnknownJob):
            # Of an array: each member that has a record of its own, and one entry for the pending rest.
            found = parse_jobs(self._ask("scontrol", "--oneliner", "show", "job", _checked(job_id)))
        found = found or self.history([job_id])
        return next((job for job in found if job.job_id == job_id), found[0] if found else None)

    def my_jobs(self) -> list[JobInfo]:
        """This user's pending and running jobs, array members one by one; without restart counts."""
        return parse_squeue(self._ask(*_SQUEUE, "--array", f"--user={os.getuid()}"))

    def listed(self, job_ids: list[str]) -> list[JobInfo]:
        """Those of these jobs that Slurm or its accounting knows, finished ones too; same fields as `my_jobs`."""
        if not job_ids:
            return []
        found: list[JobInfo] = []
        # Only if it is asked for a single job; of several it leaves the unknown ones out.
        with suppress(UnknownJob):
            found = parse_squeue(self._ask(*_SQUEUE, "--array", "--states=all", _jobs(job_ids)))
        known = {name for job in found for name in (job.job_id, job.name, job.array_job_id)}
        return [*found, *self.history([job_id for job_id in job_ids if job_id not in known])]

    def history(self, job_ids: list[str]) -> list[JobInfo]:
        """Finished jobs that the controller no longer lists (minutes after their end), from sacct if the site has it.

        Only finished ones: accounting shows a job whose end it missed as running forever. No retries: callers can do
        without the answer.
        """
        if not job_ids or not self._has_accounting:
            return []
        try:
            text = run_tool([*_SACCT, _jobs(job_ids)], timeout_s=self.timeout_s)
        except SlurmError:
            self._has_accounting = False
            return []
        return [job for job in parse_sacct(text) if job.finished]

    def partitions(self) -> list[Partition]:
        """All partitions, including hidden ones, with their nodes."""
        return parse_partitions(self._ask(*_SINFO))

    def submit(self, argv: list[str], environ: Mapping[str, str], *, comment: str) -> str:
        """Queues a job and returns its id. If sbatch gives no answer, looks for the job by its comment before a retry.

        Args:
            argv: the sbatch command, including --parsable.
            comment: as in the command; no other job of this user, unfinished or queued after this call, may have it.
        Raises:
            SlurmError: sbatch refused, with its own message. SlurmUnavailable: whether the job was queued is not known.
        """
        began = datetime.now(UTC)
        unanswered = False

        def attempt() -> str:
            nonlocal unanswered
            if unanswered and (job_id := self._queued(comment, began)):
                return job_id
            try:
                return run_tool(argv, timeout_s=self.timeout_s, environ=environ).strip().partition(";")[0]
            except SlurmUnavailable:
                unanswered = True
                raise
            except SlurmError:
                # The first call may have gone through late and be the reason for this refusal.
                if unanswered and (job_id := self._queued(comment, began)):
                    return job_id
                raise

        return self._retried(attempt)

    def _queued(self, comment: str, since: datetime) -> str:
        """Id of the job that an unanswered call queued: unfinished, or submitted after `since`; "" if it queued none.

        Raises:
            SlurmUnavailable: it cannot be determined. An error of squeue must not look like a refusal by sbatch.
        """
        since -= timedelta(seconds=30)  # the clocks of two hosts differ a little
        try:
            jobs = parse_squeue(self._ask(*_SQUEUE, f"--user={os.getuid()}", "--states=all"))
        except SlurmUnavailable:
            raise
        except SlurmError as error:
            raise SlurmUnavailable(f"sbatch gave no answer, and its job cannot be looked for: {error}") from error
        for job in jobs:
            is_new = job.submitted is not None and job.submitted > since
            if job.comment == comment and (is_new or not job.finished):
                return job.array_job_id or job.job_id
        return ""

    def estimate_start(self, argv: list[str], environ: Mapping[str, str]) -> datetime | None:
        """When Slurm expects a job to start if submitted now; None if it does not say."""
        asked = ["sbatch", "--test-only", *(argument for argument in argv[1:] if argument != "--parsable")]
        env = tool_environment(environ)
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=self.timeout_s, check=False, env=env)
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = re.search(r"to start at (\S+)", done.stderr)
        return parse_slurm_time(match[1]) if match is not None else None

    def requeue(self, job_id: str) -> None:
        """Requeues a job of this user; Slurm ends its processes."""
        self._ask("scontrol", "requeue", _checked(job_id))

    def exclude(self, job_id: str, nodes: list[str]) -> None:
        """Replaces the nodes that a pending or completing job must not get."""
        self._ask("scontrol", "update", f"jobid={_checked(job_id)}", f"excnodelist={','.join(nodes)}")

    def cancel(self, job_id: str, *, signal: str | None = None) -> None:
        """Cancels a job, or with `signal` (a name such as USR2) only signals its steps."""
        self._ask("scancel", *([f"--signal={signal}"] if signal else []), _checked(job_id))

    def signal_steps(self, job_id: str, signal: str) -> None:
        """Signals the job steps but not the batch script, which a KILL sent to the whole job would reach."""
        listed = self._ask("squeue", "--noheader", "--steps", _jobs([job_id]), "--format=%i")
        if steps := [name for name in listed.split() if re.fullmatch(r"[0-9]+(_[0-9]+)?\.[0-9]+", name)]:
            self._ask("scancel", f"--signal={signal}", *steps)

    def _ask(self, *argv: str) -> str:
        return self._retried(lambda: run_tool(argv, timeout_s=self.timeout_s))

    def _retried(self, call: Callable[[], str]) -> str:
        """The result of `call`, repeated with growing pauses while the controller does not answer."""
        deadline = time.monotonic() + self.retry_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except SlurmUnavailable as error:
                if isinstance(error, SlurmMissing) or time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def run_tool(argv: Sequence[str], *, timeout_s: float, environ: Mapping[str, str] | None = None) -> str:
    """Standard output of one call of a Slurm tool.

    Args:
        environ: the tool's whole environment; by default tool_environment(os.environ).
    Raises:
        SlurmUnavailable: it is missing, or the controller did not answer. SlurmError: it refused, with its own message.
    """
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env=tool_environment(os.environ) if environ is None else dict(environ),
        )
    except FileNotFoundError:
        raise SlurmMissing(f"{argv[0]} is not installed here or not in PATH: is this a login node?") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{argv[0]} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise SlurmError(f"{argv[0]} could not be started: {error}") from error
    message = done.stderr.strip() or done.stdout.strip()
    if done.returncode == 0 and not _is_temporary(done.stderr):
        return done.stdout
    text = f"{' '.join(argv[:2])}: {message or f'exit code {done.returncode}, no message'}"
    if _is_temporary(message):
        raise SlurmUnavailable(text)
    if "configuration source" in message or "slurm.conf" in message:
        raise SlurmMissing(f"{text}\nNo Slurm cluster is configured on this host")
    if done.returncode == 0:  # scancel warns about a job that has ended, and succeeds
        return done.stdout
    raise (UnknownJob if "invalid job id" in message.lower() else SlurmError)(text)


def tool_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without variables that change what a Slurm tool does or prints."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_DROPPED)}
    return {**kept, "TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


def _is_temporary(text: str) -> bool:
    text = text.lower()
    return any(sign in text for sign in _TEMPORARY)


def _jobs(job_ids: list[str]) -> str:
    return f"--jobs={','.join(map(_checked, job_ids))}"


def _checked(job_id: str) -> str:
    """Refuses anything but a job id: ids come from files that people edit."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job_id):
        raise SlurmError(f"{job_id!r} is not a Slurm job id")
    return job_id
