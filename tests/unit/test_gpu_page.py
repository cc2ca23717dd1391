"""docs/gpu.md says of each claim on GPUs what it rests on, and other pages do not go beyond it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gpu.report import Item, Machine, page

DOCS = Path(__file__).resolve().parents[2] / "docs"
CARD = re.compile(r"\b(?:[ABHLT]\d{1,3}|GH200|GB200|RTX \d{4}|MI\d{3})\b")
TORCH = re.compile(r"torch \d+\.\d+")


def claims() -> list[tuple[str, str, str]]:
    text = (DOCS / "gpu.md").read_text(encoding="utf-8")
    table = text.split("| claim | status | where |")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [(row[0].strip(), row[1].strip(), row[2].strip()) for row in rows]


@pytest.mark.parametrize(("claim", "status", "where"), claims())
def test_each_claim_says_what_it_rests_on(claim: str, status: str, where: str) -> None:
    assert status in ("measured", "computed", "not measured"), claim
    if status == "measured":
        assert CARD.search(where) and TORCH.search(where), f"{claim}: which card, which torch?"
    if status == "computed":
        assert where, f"{claim}: computed by what?"


@pytest.mark.parametrize("name", ["performance.md", "reliability.md"])
def test_pages_with_results_point_to_what_was_measured_on_a_gpu(name: str) -> None:
    assert "(gpu.md)" in (DOCS / name).read_text(encoding="utf-8")


def test_the_page_of_a_dry_run_claims_nothing_about_gpus() -> None:
    items = [Item("resume on nccl", "not run", 0.0, "torch sees no GPU"), Item("a | b", "failed", 2.0, "one\ntwo")]
    text = page(Machine([], None, {"torch": "2.13.0+cpu"}), items, dry_run=True)
    assert "shows that the items run, and nothing about a GPU" in text
    assert "Cards: no GPU." in text
    assert "| resume on nccl | not run: torch sees no GPU | 0.0 |" in text
    assert "failed: one two" in text
