"""launcher doctor: checks this machine, or with cluster=SITE a whole site, by a small job on its nodes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.config.compose import compose_with_problems
from launcher.config.schema import RunConfig
from launcher.doctor.filesystem import folder_findings, shared_finding
from launcher.doctor.findings import CheckLevel, CheckResult, has_failed, of_problem, ok
from launcher.doctor.machine import machine_findings
from launcher.doctor.site import plan_job, run_job, site_findings, tool_findings
from launcher.errors import ExitCode, Problem, UserError
from launcher.files import as_json
from launcher.slurm.client.query import Slurm

_COLOURS = {CheckLevel.ok: "green", CheckLevel.warn: "yellow", CheckLevel.fail: "bold red"}


def run(args: argparse.Namespace) -> int:
    if args.wait <= 0:
        raise UserError(f"--wait {args.wait:g}: give more than 0 seconds")
    config, problems = compose_with_problems(args.overrides, extra_dir=args.conf_dir)
    mine = [problem for problem in problems if _concerns_site(problem, args.overrides)]
    if args.dry_run:
        return _dry_run(args, config)
    findings = _look(args, config, mine)
    if args.json:
        failed = sum(finding.level is CheckLevel.fail for finding in findings)
        print(json.dumps({"failed": failed, "findings": as_json(findings)}, indent=2))
    else:
        _show(findings)
    return ExitCode.USER if has_failed(findings) else ExitCode.DONE


def _concerns_site(problem: Problem, overrides: list[str]) -> bool:
    """Data and model settings do not matter here, unless the user typed them."""
    typed = {override.partition("=")[0] for override in overrides}
    return problem.key.partition(".")[0] in ("cluster", "runs_dir", "--conf-dir") or problem.key in typed


def _look(args: argparse.Namespace, config: RunConfig, problems: list[Problem]) -> list[CheckResult]:
    # Short retries: whether the controller answers at all is one of the findings.
    slurm = Slurm(retry_s=5.0)
    findings = [*machine_findings(), *folder_findings(Path(config.runs_dir))]
    findings += tool_findings(slurm, needed=config.cluster.is_slurm)
    if not config.cluster.is_slurm:
        return [*findings, *(of_problem("settings", problem) for problem in problems)]
    if has_failed(finding for finding in findings if finding.check == "slurm"):
        return findings
    settings = site_findings(config, problems, slurm)
    findings += settings
    if args.no_job:
        left_out = ok("job", "left out (--no-job): nodes and network were not looked at")
        return [*findings, shared_finding(Path(config.runs_dir), []), left_out]
    if has_failed(settings):
        return [*findings, ok("job", "left out: the settings must be right first")]
    seen = run_job(plan_job(config, os.environ), slurm, wait_s=args.wait)
    return [*findings, shared_finding(Path(config.runs_dir), seen), *seen]


def _dry_run(args: argparse.Namespace, config: RunConfig) -> int:
    argv = plan_job(config, os.environ).argv if config.cluster.is_slurm and not args.no_job else []
    if args.json:
        print(json.dumps({"dry_run": True, "argv": argv}, indent=2))
        return ExitCode.DONE
    print("would look at: Python and packages, GPUs, runs_dir, Slurm's tools" + (", site settings" if argv else ""))
    if argv:
        print(f"would queue, and wait {args.wait:g} s for:\n  {shlex.join(argv)}")
    print("dry run: nothing was created or queued")
    return ExitCode.DONE


def _show(findings: list[CheckResult]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        text = Text(finding.text)
        if finding.hint and finding.level is not CheckLevel.ok:
            text.append(f"\n-> {finding.hint}", style="cyan")
        table.add_row(Text(finding.level.value, style=_COLOURS[finding.level]), finding.check, text)
    console.print(table)
    count = Counter(finding.level for finding in findings)
    print(f"{count[CheckLevel.fail]} failed, {count[CheckLevel.warn]} warnings, {count[CheckLevel.ok]} fine")
