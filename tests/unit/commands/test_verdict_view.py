from __future__ import annotations

import io

from rich.console import Console, RenderableType

from launcher.commands.verdict_view import goodput_page, verdict_page
from launcher.diagnose.verdict import Action, Verdict
from launcher.errors import VerdictClass
from launcher.plan.cost import CostEstimate
from launcher.report.cost import make_bill
from launcher.report.goodput import AttemptSpan, Goodput


def shown(page: RenderableType) -> str:
    sink = io.StringIO()
    Console(file=sink, width=100, highlight=False).print(page)
    return sink.getvalue()


VERDICT = Verdict(
    attempt=3,
    verdict_class=VerdictClass.hang,
    action=Action.requeue,
    summary="rank 2 on n2 hung",
    rank=2,
    node="n2",
    exit_code=-9,
    lines=["  File batch.py, line 31 in collate", "[red]not a colour[/red] \x1b[31m"],
    place="launcher/train/micro_batch.py:31 collate",
    step_start=15,
    step_end=22,
    checkpoint_before=10,
    checkpoint_after=20,
    device_hours=4.0,
    device_hours_lost=0.5,
    setting="fault.step_limit_s=600",
    hint="it goes on by itself from step 20",
    job_id="17",
)


def test_one_page_says_what_where_and_what_to_do() -> None:
    page = shown(verdict_page(VERDICT))
    for text in (
        "3, job 17: hang",
        "rank 2, node n2, exit code -9",
        "launcher/train/micro_batch.py:31 collate",
        "15 to 22",
        "step 20",
        "4.00 device-hours, of which 0.50 device-hours must be done again",
        "fault.step_limit_s=600",
        "start it again",
        "it goes on by itself from step 20",
        "line 31 in collate",
    ):
        assert text in page
    assert len(page.splitlines()) < 30


def test_lines_of_a_log_are_shown_as_they_are_and_command_no_terminal() -> None:
    page = shown(verdict_page(VERDICT))
    assert "[red]not a colour[/red]" in page and "\x1b" not in page


def test_goodput_shows_the_parts_and_the_bill_beside_the_estimate() -> None:
    parts = dict.fromkeys(Goodput().parts_ms, 0) | {"useful": 5_400_000, "redone": 1_800_000}
    spans = [AttemptSpan(attempt=number, devices=1, started="", ended="") for number in (1, 2)]
    account = Goodput(parts_ms=parts, allocated_ms=7_200_000, queue_ms=3_600_000, spans=spans)
    planned = CostEstimate(1000, 500.0, "measured", hours=1.5, device_hours=1.5, cost=3.0)
    page = shown(goodput_page(account, make_bill(account.device_hours, price_per_device_hour=2.0, planned=planned)))
    for text in ("75.0% of 2.00 device-hours in 2 attempts", "redone steps", "1.00 hours of waiting", "0.50", "4.00"):
        assert text in page
    assert "evaluation" not in page
