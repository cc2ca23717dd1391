"""launcher resume: the next attempt of a run that is there; the same as `launcher train --run RUN`."""

from __future__ import annotations

import argparse

from launcher.commands.train import continue_run

HELP = "go on with a run that was stopped or failed, from its newest good checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, its name, or latest")
    parser.add_argument("--dry-run", action="store_true", help="say where it would go on, and start nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where RUN is looked for (default: runs)")


def run(args: argparse.Namespace) -> int:
    return continue_run(args.run, runs_dir=args.runs_dir, dry_run=args.dry_run, as_json=args.json)
