"""launcher sync: sends a run to its trackers after the fact."""

from __future__ import annotations

import argparse
import json

from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.metrics import read_metrics
from launcher.runs.run_dir import find_run
from launcher.tracking.sync import sync


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    metrics = read_metrics(RunPaths(run_dir).metrics)
    recorded = len(metrics.steps) + len(metrics.evals)
    if args.dry_run:
        document: dict[str, object] = {"run": run_dir.name, "rows_recorded": recorded}
        parts = f"{len(metrics.steps)} steps, {len(metrics.evals)} evaluations"
        text = f"{run_dir.name} has {recorded} rows for its trackers ({parts})"
    else:
        synced = sync(run_dir, timeout_s=args.timeout_s)
        # The fields of the time when W&B was the only tracker.
        main = next((one for one in synced if one.tracker == "wandb"), synced[0] if synced else None)
        document = {
            "run": run_dir.name,
            "rows_recorded": recorded,
            "rows_sent": main.rows if main else 0,
            "url": main.url if main else None,
            "trackers": {one.tracker: {"rows_sent": one.rows, "url": one.url} for one in synced},
        }
        text = "\n".join(
            f"{one.title} has all {recorded} rows, {one.rows} of them sent now{f': {one.url}' if one.url else ''}"
            for one in synced
        )
    print(json.dumps(document, indent=2) if args.json else text)
    return ExitCode.DONE
