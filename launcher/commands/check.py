"""launcher check: all problems of a run and its plan, before anything starts."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from launcher.commands.plan_view import in_short, print_plan
from launcher.config.compose import compose_with_problems
from launcher.config.devices import visible_gpus
from launcher.config.frozen import to_yaml
from launcher.config.package_floors import package_problems
from launcher.config.path_checks import machine_problems
from launcher.config.schema import RunConfig
from launcher.errors import DataError, ExitCode, Problem
from launcher.files import as_json
from launcher.plan.plan import Plan
from launcher.plan.run_plan import allow_problems, plan_cheaply
from launcher.slurm.client.sbatch import sbatch_problems


def run(args: argparse.Namespace) -> int:
    config, problems = compose_with_problems(args.overrides, extra_dir=args.conf_dir)
    if config.cluster.is_slurm:  # what sbatch would refuse; whether the site has it, `launcher submit` asks there
        problems += sbatch_problems(config)
    if args.cfg and not args.json:
        if problems:
            print("\n".join(map(str, problems)), file=sys.stderr)
            return ExitCode.USER
        print(to_yaml(config), end="")
        return ExitCode.DONE
    preview = _Preview()
    # A plan can still be made if only these settings are wrong.
    if all(problem.key.split(".")[0].lstrip("+~") in ("name", "runs_dir", "track") for problem in problems):
        preview = _plan(config)
        problems = problems + preview.problems
    if args.json:
        document = {
            "ok": not problems,
            "problems": problems,
            "warnings": preview.warnings,
            "unaudited": preview.unaudited or None,
            "plan": preview.plan,
            **({"config": config} if args.cfg else {}),
        }
        print(json.dumps(as_json(document), indent=2))
    else:
        options = ["--conf-dir", str(args.conf_dir)] if args.conf_dir else []
        _print(config, preview, problems, [*options, *args.overrides])
    return ExitCode.USER if problems else ExitCode.DONE


@dataclass(slots=True)
class _Preview:
    """The result of planning."""

    plan: Plan | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Of the plan, of the data audit, of this machine."""
    unaudited: str = ""
    """As PlannedRun.unaudited."""
    is_elsewhere: bool = False
    """This host cannot run it; another one may."""


def _plan(config: RunConfig) -> _Preview:
    problems = package_problems(config) + allow_problems(config)
    lacking = machine_problems(config, visible_gpus())
    warnings = [f"this machine cannot run it: {problem}" for problem in lacking]
    try:
        planned = plan_cheaply(config)
    except DataError as error:
        found = error.problems or [Problem("data.path", config.data.path, str(error))]
        return _Preview(None, problems + found, warnings)
    audit = [in_short(finding) for finding in planned.findings if not finding.blocks]
    plan = planned.plan
    return _Preview(plan, problems + plan.problems, plan.warnings + audit + warnings, planned.unaudited, bool(lacking))


def _print(config: RunConfig, preview: _Preview, problems: list[Problem], overrides: list[str]) -> None:
    console = Console(highlight=False)
    if preview.plan is not None:
        print_plan(preview.plan, config)
    for warning in preview.warnings:
        console.print(f"[yellow]warning[/]  {escape(warning)}", soft_wrap=True)
    for problem in problems:
        console.print(f"[red]problem[/]  {escape(str(problem))}", soft_wrap=True)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        console.print(f"[bold red]{count}: this run should not start[/]", soft_wrap=True)
    else:
        console.print(_conclusion(config, preview, overrides), soft_wrap=True)


def _conclusion(config: RunConfig, preview: _Preview, overrides: list[str]) -> str:
    """The last line for a run without problems, as rich markup."""
    so_far = "[bold green]nothing wrong was found[/]"
    if preview.is_elsewhere:
        so_far = "[bold green]this plan is fine[/] for a host with its devices and packages"
    if preview.unaudited:
        prepare = escape(shlex.join(["launcher", "prepare", *overrides]))
        return f"{so_far}; the audit has not run on all of it: {escape(preview.unaudited)}. {prepare} runs it"
    if preview.is_elsewhere:
        return so_far
    verb = "submit" if config.cluster.is_slurm else "train"
    return "[bold green]this run can start[/]  " + escape(shlex.join(["launcher", verb, *overrides]))
