"""launcher export: the tuned model as one Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launcher.errors import ExitCode
from launcher.files import as_json
from launcher.runs.run_dir import find_run


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)

    from launcher.export.export import export

    to = Path(args.to).expanduser()
    info = export(run_dir, to, step=args.step, merge=args.merge, dtype=args.dtype, dry_run=args.dry_run)
    if args.json:
        print(json.dumps(as_json(info), indent=2))
        return ExitCode.DONE
    kind = "all weights" if info.method == "full" or info.merged else f"{info.method} adapter"
    what = f"{kind} of step {info.step}: {info.num_tensors} tensors, {info.num_parameters:,} parameters in {info.dtype}"
    if info.dry_run:
        print(f"would write to {to}: {what}")
    else:
        print(f"wrote {to} ({info.size_bytes / 2**20:,.1f} MiB): {what}")
        print("read back: every tensor is as trained")
    for warning in info.warnings:
        print(f"note: {warning}")
    return ExitCode.DONE
