"""`launcher sync RUN`: sends a run to W&B after the fact."""

from __future__ import annotations

import argparse
import json

from launcher.commands.options import add_json, add_run, add_runs_dir
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.metrics import read_metrics
from launcher.runs.run_dir import find_run
from launcher.tracking.wandb_sync import sync


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, metavar="S", help="give up after S seconds (default: 600)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent; send nothing")
    add_json(parser)
    add_runs_dir(parser)


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    metrics = read_metrics(RunPaths(run_dir).metrics)
    recorded = len(metrics.steps) + len(metrics.evals)
    if args.dry_run:
        document: dict[str, object] = {"run": run_dir.name, "rows_recorded": recorded}
        text = (
            f"{run_dir.name} has {recorded} rows for W&B ({len(metrics.steps)} steps, {len(metrics.evals)} evaluations)"
        )
    else:
        synced = sync(run_dir, timeout_s=args.timeout_s)
        document = {"run": run_dir.name, "rows_recorded": recorded, "rows_sent": synced.rows, "url": synced.url}
        text = f"W&B has all {recorded} rows, {synced.rows} of them sent now: {synced.url}"
    print(json.dumps(document, indent=2) if args.json else text)
    return ExitCode.DONE
