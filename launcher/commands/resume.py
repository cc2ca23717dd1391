"""launcher resume: the next attempt of a run that is there; the same as `launcher train --run RUN`."""

from __future__ import annotations

import argparse

from launcher.commands.train import continue_run


def run(args: argparse.Namespace) -> int:
    return continue_run(args.run, runs_dir=args.runs_dir, dry_run=args.dry_run, as_json=args.json)
