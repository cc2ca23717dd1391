"""launcher resume: the next attempt of a run that is there; the same as `launcher train --run RUN`."""

from __future__ import annotations

import argparse

from launcher.commands.options import add_json, add_run, add_runs_dir
from launcher.commands.train import continue_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--dry-run", action="store_true", help="show where it would resume; start nothing")
    add_json(parser, "print one JSON document at the end")
    add_runs_dir(parser)


def run(args: argparse.Namespace) -> int:
    return continue_run(args.run, runs_dir=args.runs_dir, dry_run=args.dry_run, as_json=args.json)
