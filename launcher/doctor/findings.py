"""What `launcher doctor` found: one line each, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from launcher.errors import Problem
from launcher.files import as_json


class CheckLevel(Enum):
    ok = "OK"
    warn = "WARN"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at."""

    check: str
    level: CheckLevel
    text: str
    hint: str = field(default="", metadata={"json": "todo"})

    def as_dict(self) -> dict[str, str]:
        return cast("dict[str, str]", as_json(self))


def ok(check: str, text: str) -> CheckResult:
    return CheckResult(check, CheckLevel.ok, text)


def warn(check: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.warn, text, hint)


def fail(check: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.fail, text, hint)


def of_problem(check: str, problem: Problem) -> CheckResult:
    """A problem of the settings."""
    return fail(check, f"{problem.key} = {problem.value!r}: {problem.why}", problem.hint)


def has_failed(findings: Iterable[CheckResult]) -> bool:
    return any(finding.level is CheckLevel.fail for finding in findings)
