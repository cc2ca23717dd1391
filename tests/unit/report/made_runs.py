"""Run directories as training leaves them, with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from launcher.config.frozen import save_config
from launcher.config.schema import FrozenRun, RunConfig
from launcher.files import as_json
from launcher.paths import RunPaths
from launcher.plan.cost import CostEstimate
from launcher.runs.jsonl import AppendLog, utc_text
from launcher.runs.metrics import EvalRecord, MetricsWriter, StepRecord, read_metrics
from tests.made import make_derived

OLD_PLAN = Path(__file__).resolve().parents[2] / "fixtures" / "runs" / "lora" / "plan.json"
START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
STEP_S = 1.4


def step_record(step: int, loss: float, *, epoch: float | None = None, attempt: int = 1) -> StepRecord:
    """A record with a given loss and quiet values elsewhere."""
    return StepRecord(
        step=step,
        epoch=step / 10 if epoch is None else epoch,
        loss=loss,
        lr=1e-4,
        grad_norm=1.5,
        tokens=800,
        supervised_tokens=300,
        tokens_per_s=571.4,
        step_time_s=STEP_S,
        memory_gib=3.25,
        total_tokens=800 * step,
        attempt=attempt,
        time=utc_text(START + timedelta(seconds=STEP_S * step)),
    )


def eval_record(step: int, loss: float, *, epoch: float | None = None, attempt: int = 1) -> EvalRecord:
    return EvalRecord(
        step=step,
        epoch=step / 10 if epoch is None else epoch,
        loss=loss,
        tokens=1200,
        eval_time_s=2.5,
        epoch_end=True,
        attempt=attempt,
        time=utc_text(START + timedelta(seconds=STEP_S * step)),
    )


def make_run(folder: Path, *, epochs: float = 3.0, steps_per_epoch: int = 10) -> RunPaths:
    """A run directory with nothing but its frozen configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig(name=folder.name)
    config.model.name_or_path = "embedded:smollm2-135m-instruct"
    config.data.path = "builtin:next_number"
    config.optim.epochs = epochs
    derived = make_derived(
        num_packs=steps_per_epoch * 8,
        global_sequences=8,
        micro_sequences=4,
        grad_accum_steps=2,
        steps_per_epoch=steps_per_epoch,
        total_steps=math.ceil(epochs * steps_per_epoch),
    )
    save_config(folder / "config.yaml", FrozenRun(config=config, derived=derived))
    return RunPaths(folder)


def write_curve(paths: RunPaths, *, epochs: int, steps_per_epoch: int, seed: int = 0) -> None:
    """metrics.jsonl of a run that learns quickly and flattens, with the noise a real one has."""
    draw = random.Random(seed)
    writer = MetricsWriter(paths.metrics)
    total = epochs * steps_per_epoch
    now = START
    total_tokens = 0
    for step in range(1, total + 1):
        epoch = step / steps_per_epoch
        attempt = 1 if step <= total // 2 else 2
        level = 0.62 + 2.3 * math.exp(-epoch * 1.25) - 0.06 * math.floor(epoch - 1e-9)
        tokens = draw.randrange(3200, 4096)
        step_time_s = tokens / draw.gauss(2450, 90)
        total_tokens += tokens
        now += timedelta(seconds=step_time_s)
        writer.write(
            StepRecord(
                step=step,
                epoch=epoch,
                loss=max(0.05, level * math.exp(draw.gauss(0, 0.11))),
                lr=2e-4 * min(1.0, step / 20) * 0.5 * (1 + math.cos(math.pi * step / total)),
                grad_norm=(0.7 + 2.2 * math.exp(-epoch)) * math.exp(draw.gauss(0, 0.25)),
                tokens=tokens,
                supervised_tokens=tokens // 3,
                tokens_per_s=tokens / step_time_s,
                step_time_s=step_time_s,
                memory_gib=6.75,
                total_tokens=total_tokens,
                attempt=attempt,
                time=utc_text(now),
            )
        )
        if step % steps_per_epoch in (0, steps_per_epoch // 2):
            now += timedelta(seconds=4)
            loss = 0.781 + 2.0 * math.exp(-epoch * 1.6) + draw.gauss(0, 0.0008)
            at_end = step % steps_per_epoch == 0
            writer.write(EvalRecord(step, epoch, loss, 5210, 4.0, at_end, attempt, utc_text(now)))
    writer.close()


def write_story(paths: RunPaths) -> None:
    """What else a finished run has: events of two attempts, checkpoints, plan, audit, versions and eval.json."""
    metrics = read_metrics(paths.metrics)
    last = metrics.steps[-1]
    middle = metrics.steps[len(metrics.steps) // 2]
    story: list[tuple[str, int, dict[str, object]]] = [
        (utc_text(START), 0, {"event": "state", "state": "validating"}),
        (utc_text(START), 1, {"event": "attempt_start", "world_size": 1, "device": "cpu"}),
        (utc_text(START), 1, {"event": "state", "state": "running"}),
        (utc_text(START), 1, {"event": "rehearsal", "seconds": 4.25}),
        (middle.time, 1, {"event": "signal", "name": "SIGTERM"}),
        (
            middle.time,
            1,
            {"event": "attempt_end", "exit_code": 75, "reason": "Preempted", "message": "stopped by SIGTERM"},
        ),
        (middle.time, 1, {"event": "preempted", "signal": "SIGTERM"}),
        (middle.time, 2, {"event": "attempt_start", "world_size": 1, "device": "cpu"}),
        (middle.time, 2, {"event": "resume", "step": middle.step}),
        (last.time, 2, {"event": "attempt_end", "exit_code": 0, "reason": "done"}),
        (last.time, 2, {"event": "state", "state": "succeeded", "step": last.step}),
    ]
    log = AppendLog(paths.events)
    for time, attempt, fields in story:
        log.append({"time": time, "attempt": attempt, "rank": 0, **fields})
    log.close()
    for record in metrics.evals[-3:]:
        folder = paths.checkpoints / f"step-{record.step:06d}"
        folder.mkdir(parents=True)
        state = {"step": record.step, "last_eval_step": record.step, "last_eval_loss": record.loss}
        files = [{"name": "model.safetensors", "size_bytes": 538_090_408, "sha256": "0" * 64}]
        head = {"run_id": "3f9a1c07", "world_size": 1, "strategy": "single", "method": "full", "config_hash": "0"}
        manifest = {**head, "format_version": 1, "attempt": 2, "state": state, "files": files, "time": record.time}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    bill = CostEstimate(1_890_000, 2100.0, "measured", hours=0.25, device_hours=0.25, cost=None)
    paths.plan.write_text(json.dumps({**json.loads(OLD_PLAN.read_text()), "bill": as_json(bill)}))
    paths.versions.write_text(json.dumps({"launcher": "0.1.0", "torch": "2.13.0", "bitsandbytes": None}))
    paths.data.mkdir()
    (paths.data / "audit.json").write_text(json.dumps(AUDIT))
    paths.eval.write_text(json.dumps(EVALUATION))


AUDIT = {
    "vetoed": False,
    "formats": {"/data/train.jsonl": "chat"},
    "counts": {
        "train": {
            "examples_read": 602,
            "examples_kept": 600,
            "examples_dropped": 2,
            "examples_truncated": 0,
            "tokens": 27_431,
            "supervised_tokens": 5_210,
            "tokens_cut": 0,
        },
        "validation": {"examples_read": 100, "examples_kept": 100, "tokens": 4_512, "supervised_tokens": 861},
    },
    "findings": [
        {
            "code": "duplicate",
            "severity": "warning",
            "count": 2,
            "what": "the same example again",
            "todo": "remove copies; each counts as often as it is there",
            "places": [{"file": "/data/train.jsonl", "line": 17, "detail": "same as line 3"}],
            "accepted": False,
            "vetoes": False,
        }
    ],
}

EVALUATION = {
    "examples": 100,
    "step": 140,
    "conditions": {
        "zero_shot": {
            "exact_match": 0.0,
            "exact_match_ci": [0.0, 0.037],
            "token_f1": 0.041,
            "token_f1_ci": [0.02, 0.06],
        },
        "few_shot": {
            "exact_match": 0.2,
            "exact_match_ci": [0.133, 0.289],
            "token_f1": 0.34,
            "token_f1_ci": [0.27, 0.41],
            "shots": 5,
        },
        "tuned": {"exact_match": 0.92, "exact_match_ci": [0.85, 0.959], "token_f1": 0.951, "token_f1_ci": [0.91, 0.98]},
    },
    "heldout_loss": {"base": 3.412, "tuned": 0.781},
    "verdict": "Tuning helped: exact match 92.0% against 20.0% few-shot, difference +72.0 points.",
    "better": True,
    "outcome": "better",
    "difference": {},
    "samples": [
        {"prompt": "twenty two", "expected": "twenty three", "zero_shot": "22 is a number.", "tuned": "twenty three"},
        {"prompt": "-8", "expected": "-7", "zero_shot": "The number -8 comes after -9.", "tuned": "-7"},
        {"prompt": "1,999", "expected": "2,000", "zero_shot": "1,999 is followed by", "tuned": "2,000"},
    ],
}
