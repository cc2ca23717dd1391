from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher.errors import RunError
from launcher.evaluate.compare import EvalResult
from launcher.files import record_from
from launcher.paths import RunPaths
from launcher.plan.cost import CostEstimate
from launcher.report import run_facts
from launcher.report.cost import make_bill
from launcher.report.goodput import run_goodput
from launcher.report.report import gather, headline, make_report, number_text, page_html, size_text
from launcher.runs.events import EventWriter, read_events
from launcher.runs.jsonl import AppendLog, seconds_between
from launcher.runs.metrics import MetricsWriter, read_metrics
from tests.unit.report.made_runs import EVALUATION, eval_record, make_run, step_record, write_curve, write_story

HOSTILE = (
    '</td><script>alert("x")</script><img src=https://evil.example/x onerror=alert(1)> {{ 7*7 }} \x00\x1b[31m\ud800'
)


class Page(HTMLParser):
    """What a browser would make of the page: its text, its elements, and what it would fetch or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The whole page of such a run, made once."""
    paths = make_story(tmp_path_factory.mktemp("runs") / "demo")
    return make_report(paths.root).paths.report.read_text("utf-8")


@pytest.fixture
def story(tmp_path: Path) -> RunPaths:
    """A run of seven epochs over two attempts, evaluated."""
    return make_story(tmp_path / "demo")


def make_story(folder: Path) -> RunPaths:
    paths = make_run(folder, epochs=7, steps_per_epoch=20)
    write_curve(paths, epochs=7, steps_per_epoch=20)
    write_story(paths)
    return paths


def html_without_figures(paths: RunPaths) -> str:
    """The page, made quickly."""
    paths.metrics.unlink(missing_ok=True)
    return page_html(gather(paths.root))


def test_the_page_has_verdict_advice_curves_and_every_section(html: str) -> None:
    text = Page(html).text
    for part in (
        "Tuning helped: exact match 92.0%",
        "flattens after epoch",
        "base, 5-shot",
        "Epochs",
        "learning rate",
        "tokens per second",
        "twenty three",
        "train.jsonl:17",
        "Device-hours",
        "step-000140",
        "stopped by SIGTERM",
        "optim",
        "weight_decay",
        "2.13.0",
    ):
        assert part in text, part
    assert "Not on this page" not in text


def test_the_page_needs_no_network_and_runs_no_script(html: str) -> None:
    page = Page(html)
    assert page.outside == [] and page.handlers == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!#)|@import", html)


def test_every_element_is_closed(html: str) -> None:
    for tag in ("table", "tr", "td", "section", "div", "span", "ul", "li", "svg", "g", "text", "figure", "dl", "p"):
        opened = len(re.findall(rf"<{tag}[\s>]", html))
        closed = len(re.findall(rf"</{tag}>", html)) + len(re.findall(rf"<{tag}\b[^>]*/>", html))
        assert opened == closed, tag


def test_hostile_text_is_shown_and_does_nothing(story: RunPaths) -> None:
    values = json.loads(story.eval.read_text())
    values["verdict"] = HOSTILE
    values["samples"] = [{"prompt": HOSTILE, "expected": HOSTILE, "zero_shot": HOSTILE, "tuned": HOSTILE}]
    story.eval.write_text(json.dumps(values))
    EventWriter(story.events, attempt=2, rank=0).write("warning", message=HOSTILE)
    audit = json.loads((story.data / "audit.json").read_text())
    place = {"file": HOSTILE, "line": 1, "detail": HOSTILE}
    audit["findings"][0] |= {"code": HOSTILE, "what": HOSTILE, "todo": HOSTILE, "places": [place]}
    (story.data / "audit.json").write_text(json.dumps(audit))
    html = html_without_figures(story)
    page = Page(html)
    assert page.outside == [] and page.handlers == []
    assert not {"script", "img"} & set(page.tags)
    assert "{{ 7*7 }}" in page.text and '<script>alert("x")</script>' in page.text
    assert not re.search("[\x00\x1b]", html)


def test_secrets_of_the_environment_are_not_shown(story: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanary")
    EventWriter(story.events, attempt=2, rank=0).write(
        "warning", message="refused hf_canarycanary at https://a:b@host/"
    )
    text = html_without_figures(story)
    assert "hf_canarycanary" not in text and "a:b@" not in text
    assert "refused [secret] at https://[secret]@host/" in text


def test_a_run_that_failed_before_its_first_step_has_a_page_too(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "early")
    EventWriter(paths.events, 1, 0).write("attempt_start", world_size=1)
    EventWriter(paths.events, 1, 0).write("state", state="failed", reason="no GPU was found")
    report = make_report(paths.root)
    text = Page(report.paths.report.read_text("utf-8")).text
    assert report.headline.text == "The run failed: no GPU was found"
    assert "The run failed: no GPU was found" in text
    assert "No optimizer step was recorded." in text
    assert len(report.missing) == 3
    assert (paths.plots / "loss.png").is_file()


def test_a_run_with_nothing_but_its_configuration_has_a_page(tmp_path: Path) -> None:
    report = make_report(make_run(tmp_path / "bare").root)
    assert "The run is unknown" in Page(report.paths.report.read_text("utf-8")).text
    assert "comparison with the base model: launcher eval bare" in report.missing


@pytest.mark.parametrize("name", ["eval", "plan", "versions", "audit", "manifest"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', '{"findings": 3, "conditions": [], "files": 1}'])
def test_a_damaged_file_leaves_a_page_without_it(story: RunPaths, name: str, content: str) -> None:
    path = {
        "eval": story.eval,
        "plan": story.plan,
        "versions": story.versions,
        "audit": story.data / "audit.json",
        "manifest": next(story.checkpoints.glob("*/manifest.json")),
    }[name]
    path.write_text(content)
    assert "Settings" in html_without_figures(story)


def test_a_loss_that_is_no_number_does_not_stop_the_page(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "nan")
    writer = MetricsWriter(paths.metrics)
    for step, loss in enumerate([2.0, 1.5, math.nan, math.inf], start=1):
        writer.write(step_record(step, loss))
    report = make_report(paths.root)
    assert "loss is not finite in 2 steps" in Page(report.paths.report.read_text("utf-8")).text


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml does not exist"):
        make_report(tmp_path)


def test_settings_that_differ_from_their_default_are_marked(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "demo", epochs=5)
    html = make_report(paths.root).paths.report.read_text("utf-8")
    assert re.search(
        r'<tr class="changed"><td><code>epochs</code></td><td><code>5</code> <span class="soft">\[3\]', html
    )
    assert re.search(r"<tr><td><code>weight_decay</code></td><td><code>0</code></td></tr>", html)


def test_device_hours_add_up_over_attempts_and_ranks(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "demo")
    log = AppendLog(paths.events)
    for attempt, event, time in [
        (1, "attempt_start", "2026-03-02T10:00:00.000Z"),
        (1, "attempt_end", "2026-03-02T11:30:00.000Z"),
        (2, "attempt_start", "2026-03-03T10:00:00.000Z"),
        (2, "warning", "2026-03-03T10:30:00.000Z"),
    ]:
        log.append({"time": time, "event": event, "attempt": attempt, "rank": 0})
    account = run_goodput(paths.root)
    assert [seconds_between(span.started, span.ended) for span in account.spans] == [5400.0, 1800.0]
    hours = account.device_hours
    planned = CostEstimate(1000, 500.0, "measured", hours=12.0, device_hours=12.0, cost=30.0)
    found = make_bill(8 * hours, price_per_device_hour=2.5, planned=planned)
    assert (found.device_hours, found.cost, found.planned_device_hours, found.planned_cost) == (16.0, 40.0, 12.0, 30.0)
    assert (found.more_device_hours, found.more_cost) == (4.0, 10.0)


@pytest.mark.parametrize(
    ("story_events", "state"),
    [
        ([], "unknown"),
        ([("state", "queued")], "queued"),
        ([("attempt_start", ""), ("state", "running")], "running"),
        ([("attempt_start", ""), ("state", "running"), ("preempted", "")], "preempted"),
        ([("attempt_start", ""), ("state", "running"), ("preempted", ""), ("attempt_start", "")], "running"),
        ([("preempted", ""), ("state", "cancelled")], "cancelled"),
    ],
)
def test_the_state_follows_the_events(tmp_path: Path, story_events: list[tuple[str, str]], state: str) -> None:
    writer = EventWriter(tmp_path / "events.jsonl", 1, 0)
    for event, name in story_events:
        writer.write(event, **({"state": name} if name else {}))
    assert run_facts.recorded_state(read_events(tmp_path / "events.jsonl"))[0] == state


def test_counts_epochs_places_and_defaults_read_as_in_a_paper(story: RunPaths) -> None:
    values = json.loads(story.eval.read_text())
    values["heldout_loss_difference"] = {"difference": -2.631, "ci": [-2.8, -2.4], "examples": 100}
    story.eval.write_text(json.dumps(values))
    audit = json.loads((story.data / "audit.json").read_text())
    audit["findings"][0]["places"] = [{"file": "training data", "line": 0, "detail": "4 examples"}]
    (story.data / "audit.json").write_text(json.dumps(audit))
    story.metrics.unlink()
    writer = MetricsWriter(story.metrics)
    for step in range(1, 7):
        writer.write(step_record(step, 2.0, epoch=step / 7))
    writer.write(eval_record(6, 1.5, epoch=6 / 7))
    text = Page(page_html(gather(story.root))).text
    assert "Exact match on 100 validation examples" in text
    assert "step 6, epoch 0.86" in text and "0.857143" not in text
    assert "training data 4 examples" in text and "training data:0" not in text
    assert "???" not in text
    assert "tuned 0.7810 (difference -2.6310, 95 % interval -2.8000 to -2.4000)." in text


def test_one_example_is_not_called_examples(story: RunPaths) -> None:
    story.eval.write_text(json.dumps({**json.loads(story.eval.read_text()), "examples": 1}))
    assert "Exact match on 1 validation example, with" in Page(html_without_figures(story)).text


@pytest.mark.parametrize(("effect", "tone"), [("better", "good"), ("unclear", "open"), ("worse", "bad")])
def test_a_verdict_that_is_open_is_not_coloured_as_bad(effect: str, tone: str) -> None:
    result = record_from(EvalResult, {**EVALUATION, "outcome": effect})
    assert headline(result, "succeeded", "", "demo").tone == tone


def test_what_w_and_b_lacks_is_on_the_page_and_in_the_report(story: RunPaths) -> None:
    events = EventWriter(story.events, attempt=2, rank=-1)
    events.write("warning", source="wandb", message="W&B refused the key (401): WANDB_API_KEY holds no key")
    said = "W&B incomplete: launcher sync demo (W&B refused the key (401): WANDB_API_KEY holds no key)"
    assert said in Page(html_without_figures(story)).text
    assert make_report(story.root).as_dict()["notes"] == [said]
    events.write("wandb", complete=True, url="https://wandb.ai/me/p/runs/1")
    assert "W&B incomplete" not in Page(html_without_figures(story)).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0, "0"),
        (0.0, "0"),
        (525, "525"),
        (1234567, "1,234,567"),
        (0.7806, "0.781"),
        (2444.4, "2,444"),
        (0.00012345, "0.000123"),
        (math.nan, "nan"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number_text(value) == text


def test_sizes_read_well() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.00 TiB",
    ]


def test_a_long_run_makes_a_page_one_can_open(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "long")
    writer = MetricsWriter(paths.metrics)
    for step in range(1, 6_001):
        writer.write(step_record(step, 1 + 1 / step, epoch=step / 200))
    assert len(read_metrics(paths.metrics).steps) == 6_000
    assert make_report(paths.root).paths.report.stat().st_size < 700_000
