"""What `launcher doctor` found: one line each, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from launcher.errors import Problem


class CheckLevel(Enum):
    ok = "OK"
    warn = "WARN"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check."""

    check: str
    level: CheckLevel
    text: str
    hint: str = field(default="", metadata={"json": "todo"})


def ok(check: str, text: str) -> CheckResult:
    return CheckResult(check, CheckLevel.ok, text)


def warn(check: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.warn, text, hint)


def fail(check: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.fail, text, hint)


def warn_if(condition: bool, check: str, text: str, hint: str) -> CheckResult:
    return warn(check, text, hint) if condition else ok(check, text)


def of_problem(check: str, problem: Problem) -> CheckResult:
    return fail(check, f"{problem.key} = {problem.value!r}: {problem.why}", problem.hint)


def has_failed(findings: Iterable[CheckResult]) -> bool:
    return any(finding.level is CheckLevel.fail for finding in findings)
