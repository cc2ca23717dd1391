"""The ranks of an attempt that did not end as they should, the one most likely to be first in front."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from launcher.diagnose.error_patterns import class_of, is_echo
from launcher.diagnose.evidence import Evidence, RankEvidence
from launcher.diagnose.log_tail import error_block
from launcher.errors import OUR_ERRORS, ErrorOnMain, ExitCode, VerdictClass
from launcher.runs.rank_end import RankEnd

_OF_CODE: dict[int, VerdictClass] = {
    ExitCode.USER: VerdictClass.configuration,
    ExitCode.CHECKPOINT: VerdictClass.checkpoint,
    ExitCode.WORLD: VerdictClass.rendezvous,
    ExitCode.NON_FINITE: VerdictClass.non_finite,
    ExitCode.SUPERSEDED: VerdictClass.superseded,
    ExitCode.HANG: VerdictClass.hang,
}
_UNKNOWN_ORDER = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One rank that did not end as it should."""

    rank: RankEvidence
    code: int | None
    """-N when signal N ended it; None where its end was not seen."""
    verdict_class: VerdictClass | None
    """None where its error points at nothing known."""
    is_echo: bool
    spoke: bool
    """It left a record of its end, or its log names an error."""
    order: int
    lines: list[str]


def find_failures(evidence: Evidence) -> list[Failure]:
    """Ranks that failed, the one most likely to be the first in front."""
    exits = list(evidence.report.exits)
    exits += [(rank, one.exit_code) for one in evidence.messages for rank in one.ranks if one.exit_code is not None]
    order = {rank: index for index, (rank, _) in reversed(list(enumerate(exits)))}
    codes = {rank: code for rank, code in reversed(exits)}
    found = []
    for rank in evidence.ranks:
        code = rank.end.exit_code if rank.end is not None else codes.get(rank.rank)
        if code in (ExitCode.DONE, ExitCode.PREEMPTED) or code == -signal.SIGTERM:
            continue
        found.append(_failure(rank, code, order.get(rank.rank, _UNKNOWN_ORDER)))
    # Without the order of the exits, the earliest record; a rank without one was often killed afterwards.
    return sorted(found, key=lambda failure: (failure.order, _end_time(failure)))


def _end_time(failure: Failure) -> tuple[bool, str]:
    end = failure.rank.end
    return end is None, end.time if end is not None else ""


def _failure(rank: RankEvidence, code: int | None, order: int) -> Failure:
    block, end = error_block(rank.log), rank.end
    verdict_class, echo = _class_and_echo(end, "\n".join(block))
    return Failure(
        rank=rank,
        code=code,
        verdict_class=verdict_class,
        is_echo=echo,
        spoke=end is not None or verdict_class is not None or "Traceback (most recent call last)" in rank.log,
        order=order,
        lines=block if block or end is None else end.message.splitlines()[-10:],
    )


def _class_and_echo(end: RankEnd | None, logged: str) -> tuple[VerdictClass | None, bool]:
    """By the error's class and fields; of errors of other packages also by message and log."""
    if end is None:
        return class_of("", {}, logged), is_echo("", logged)
    text = f"{end.error}: {end.message}" if end.message else logged
    if not end.kind:  # written by an older version: the fields are only in its message
        found = class_of("", {}, text) or class_of(end.error, {}, "")
    else:
        found = class_of(end.kind, end.data, text)
    if end.error == ErrorOnMain.__name__:
        return found, True
    if found is None and kind_of(end) not in OUR_ERRORS:
        found = class_of("", {}, logged)
    return found or class_of_code(end.exit_code), is_echo(kind_of(end), text)


def kind_of(end: RankEnd) -> str:
    """Class of the error of a rank; records of older versions hold only the public name."""
    return end.kind or end.error


def class_of_code(code: int | None) -> VerdictClass | None:
    """The class of failure that one of our exit codes stands for."""
    return _OF_CODE.get(code) if code is not None else None


def named(rank: RankEvidence) -> str:
    """rank 3 on n2."""
    return f"rank {rank.rank}" + (f" on {rank.node}" if rank.node else "")
