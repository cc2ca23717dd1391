"""report.html: one self-contained page about a run. Missing parts are named, and never an error."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from launcher.checkpoint.commit import committed
from launcher.checkpoint.manifest import Manifest
from launcher.config.frozen import load_prepared
from launcher.config.schema import Derived, RunConfig
from launcher.data.audit import Audit, Location
from launcher.diagnose.verdict import Verdict, read_verdicts
from launcher.evaluate.compare import NAMES, TUNED, EvalResult, Scores, TuningEffect
from launcher.files import as_json, find_record, write_atomically
from launcher.paths import RunPaths
from launcher.plan.plan import Plan
from launcher.report import plots, run_facts
from launcher.report.advice import Advice, Level, plateau_advice
from launcher.report.cost import make_bill
from launcher.report.epochs import best_eval, snapshots
from launcher.report.goodput import PARTS, AttemptSpan, Goodput, run_goodput
from launcher.runs.events import Event, read_events
from launcher.runs.jsonl import seconds_between
from launcher.runs.metrics import Metrics, read_metrics
from launcher.runs.redact import redacted
from launcher.tracking.replay import incomplete_note, tracker_warnings
from launcher.tracking.tracker import flat

MOST_SAMPLES = 8
MOST_EVENTS = 120
LONGEST_TEXT_CHARS = 1200
DASH = "\u2013"
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Headline(NamedTuple):
    """The sentence at the top of the page; `tone` is good, bad or open."""

    tone: str
    text: str


@dataclass(frozen=True)
class Report:
    """The content of the page, read from the run directory."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    metrics: Metrics
    events: list[Event]
    plan: Plan | None
    result: EvalResult | None
    audit: Audit | None
    advice: Advice
    goodput: Goodput
    verdicts: dict[int, Verdict]
    """By attempt."""

    @property
    def name(self) -> str:
        return self.paths.root.name

    @property
    def headline(self) -> Headline:
        return headline(self.result, *run_facts.recorded_state(self.events), self.name)

    @property
    def notes(self) -> list[str]:
        """Trackers that lack something, and why."""
        return [incomplete_note(self.name, tracker, why) for tracker, why in tracker_warnings(self.events).items()]

    @property
    def missing(self) -> list[str]:
        """Parts the page lacks, and how to get them."""
        checks = {
            "loss curves: no optimizer step was recorded": self.metrics.steps,
            "validation loss: no evaluation was recorded": self.metrics.evals or not self.metrics.steps,
            f"comparison with the base model: launcher eval {self.name}": self.result,
            "data audit: data/audit.json is missing or damaged": self.audit,
            "attempts and events: events.jsonl is missing or empty": self.events,
        }
        return [text for text, is_there in checks.items() if not is_there]

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        best = best_eval(self.metrics)
        return {
            "page": str(self.paths.report),
            "loss_png": str(self.paths.plots / "loss.png"),
            "verdict": self.headline.text,
            "advice": {"headline": self.advice.headline, **as_json(self.advice)},
            "steps": len(self.metrics.steps),
            "best": None if best is None else {"step": best.step, "epoch": best.epoch, "loss": best.loss},
            "epochs": as_json(snapshots(self.metrics)),
            "missing": self.missing,
            "notes": self.notes,
        }


def make_report(run_dir: Path) -> Report:
    """Writes report.html and plots/ of a run.

    Raises: RunError when `run_dir` has no config.yaml, OSError when the disk is full.
    """
    report = gather(run_dir)
    write_atomically(report.paths.report, page_html(report).encode("utf-8", "replace"), durable=False)
    plots.write_figures(report.paths.plots, report.metrics)
    return report


def gather(run_dir: Path) -> Report:
    """Reads the run directory.

    Raises: RunError when it has no config.yaml.
    """
    paths = RunPaths(run_dir)
    config, derived = load_prepared(paths.config)
    metrics = read_metrics(paths.metrics)
    return Report(
        paths=paths,
        config=config,
        derived=derived,
        metrics=metrics,
        events=read_events(paths.events),
        plan=find_record(Plan, paths.plan),
        result=find_record(EvalResult, paths.eval),
        audit=find_record(Audit, paths.data / "audit.json"),
        advice=plateau_advice(metrics, config),
        goodput=run_goodput(run_dir),
        verdicts={verdict.attempt: verdict for verdict in read_verdicts(run_dir)},
    )


def page_html(report: Report) -> str:
    """The page."""
    metrics, derived, plan = report.metrics, report.derived, report.plan
    epochs = snapshots(metrics)
    urls = [url for event in report.events if event.event == "wandb" and (url := event.fields.get("url"))]
    speeds = [record.tokens_per_s for record in metrics.steps if math.isfinite(record.tokens_per_s)]
    values = {
        **vars(report),
        "name": report.name,
        "state": run_facts.recorded_state(report.events)[0],
        "headline": report.headline,
        "samples": report.result.samples[:MOST_SAMPLES] if report.result is not None else [],
        "last": metrics.steps[-1] if metrics.steps else None,
        "best": best_eval(metrics),
        "median_speed": statistics.median_high(speeds) if speeds else None,
        "figures": _figures(metrics),
        "snapshots": epochs,
        "lowest": min((shot.validation_loss for shot in epochs if shot.validation_loss is not None), default=None),
        "attempts": _attempts(report),
        "parts": PARTS,
        "bill": make_bill(
            report.goodput.device_hours,
            price_per_device_hour=report.config.cluster.price_per_device_hour,
            planned=plan.bill if plan is not None else None,
        ),
        "unit": "GPU-hours" if derived.device == "cuda" else "Device-hours",
        "checkpoints": _checkpoints(report.paths),
        "timeline": timeline(report.events),
        "settings": run_facts.settings(report.config),
        "derived_settings": {key: run_facts.shown(value) for key, value in flat(as_json(derived)).items()},
        "versions": find_record(dict[str, str | None], report.paths.versions),
        "wandb_url": urls[-1] if urls else None,
        "tracker_notes": report.notes,
        "missing": report.missing,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return _environment().get_template("report.html.j2").render(values)


def _attempts(report: Report) -> list[tuple[AttemptSpan, float, list[int]]]:
    """Every attempt with its duration in seconds and its optimizer steps."""
    steps: dict[int, list[int]] = {}
    for record in report.metrics.steps:
        steps.setdefault(record.attempt, []).append(record.step)
    spans = report.goodput.spans
    return [(span, seconds_between(span.started, span.ended), steps.get(span.attempt, [])) for span in spans]


def _checkpoints(paths: RunPaths) -> list[tuple[Manifest, bool]]:
    """Committed checkpoints, oldest first, and whether each is the best. Their files are not verified here."""
    manifests = [checkpoint.manifest for checkpoint in reversed(committed(paths))]
    best = min(((one.eval_loss, one.step) for one in manifests if one.eval_loss is not None), default=None)
    return [(one, best is not None and one.step == best[1]) for one in manifests]


def _figures(metrics: Metrics) -> dict[str, Markup]:
    """SVGs by name; none without a step."""
    if not metrics.steps:
        return {}
    # Safe as markup: figures hold our own numbers and labels only.
    panels = "Loss, learning rate, gradient norm, throughput"
    return {
        "loss": Markup(plots.page_svg(plots.loss_figure(metrics, (8.6, 3.8)), name="Loss over optimizer steps")),
        "panels": Markup(plots.page_svg(plots.panels_figure(metrics, (8.6, 5.4)), name=panels)),
    }


def headline(result: EvalResult | None, state: str, reason: str, name: str) -> Headline:
    """Whether tuning helped; if that was not measured, the state of the run."""
    if result is not None:
        tones = {TuningEffect.better: "good", TuningEffect.worse: "bad", TuningEffect.unclear: "open"}
        return Headline(tones[result.effect], result.verdict)
    if state == "failed":
        return Headline("bad", f"The run failed{': ' + reason if reason else '.'}")
    if state == "cancelled":
        return Headline("open", f"The run was cancelled; launcher eval {name} measures the model it left.")
    if state == "succeeded":
        return Headline("open", f"Trained, but not yet measured against its base: launcher eval {name}")
    return Headline("open", f"The run is {state}{': ' + reason if reason else '; this page shows it as it stands'}.")


def timeline(events: list[Event]) -> list[tuple[Event, str]]:
    """The newest events with their fields as text, without saves, which have their own table."""
    shown = [event for event in events if event.event not in ("checkpoint", "checkpoint_prepared")][-MOST_EVENTS:]

    def text(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return [(event, "  ".join(f"{key}={text(value)}" for key, value in event.fields.items())) for event in shown]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(
        num=number_text,
        share=lambda value: DASH if value is None else f"{value * 100:.1f} %",
        moment=lambda time: time[:19].replace("T", " ") or DASH,
        duration=rounded_duration,
        size=size_text,
        clip=_clip,
        loss=lambda value: number_text(value, 4),
        epoch=lambda value: f"{value:.2f}".rstrip("0").rstrip("."),
        location=location_text,
        interval=lambda ends: f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]",
        condition=condition_text,
    )
    environment.globals["Level"] = Level
    return environment


def _printable(value: object) -> object:
    """User text without secrets and characters that HTML forbids; our own markup unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return UNPRINTABLE.sub("\ufffd", redacted(value))


def _clip(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TEXT_CHARS else text[:LONGEST_TEXT_CHARS] + " [...]"


def number_text(value: float | None, digits: int = 3) -> str:
    """Rounded to significant digits, thousands set apart; a dash for None."""
    if value is None or not math.isfinite(value):
        return DASH if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 10**digits or value == 0:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def location_text(location: Location) -> str:
    """File and line of a finding; only the file if the finding concerns all of it."""
    name = location.file.split("/")[-1]
    return f"{name}:{location.line}" if location.line else name


def condition_text(name: str, scores: Scores) -> str:
    """A condition of an evaluation, such as: base, 5-shot."""
    if name == "few_shot" and scores.shots:
        return f"base, {scores.shots}-shot"
    if name == "retrieval" and scores.shots:
        return f"base, {scores.shots} retrieved examples"
    return name if name == TUNED else f"base, {NAMES[name]}"


def rounded_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size_text(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
