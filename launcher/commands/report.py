"""launcher report: one page about a run, its figures, and advice for the next one."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import webbrowser

from launcher.commands.console import printable
from launcher.errors import ExitCode
from launcher.report.report import Report, make_report
from launcher.report.terminal_curve import terminal_curve
from launcher.runs.run_dir import find_run


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    report = make_report(run_dir)
    if args.json:
        print(json.dumps({"run": run_dir.name, **report.as_dict()}, indent=2))
    else:
        _show(report)
    page = report.paths.report.resolve()
    if args.open and not webbrowser.open(page.as_uri()):
        print(f"no browser could be started; open {page}", file=sys.stderr)
    return ExitCode.DONE


def _show(report: Report) -> None:
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    if report.metrics.steps:
        print(terminal_curve(report.metrics, width, 14, ascii_only=ascii_only))
        print()
    print(printable(report.headline.text))
    for finding in report.advice.findings:
        print(f"- {finding.text}")
    for what in report.missing:
        print(f"- missing: {what}")
    for note in report.notes:
        print(f"- {printable(note)}")
    print()
    more = "(also .pdf and .svg; training.png has learning rate, gradient norm, throughput)"
    print(f"page   {report.paths.report}")
    print(f"loss   {report.paths.plots / 'loss.png'}  {more}")
