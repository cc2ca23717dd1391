"""The ranks of an attempt that did not end as they should, the one most likely to be first in front."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from launcher.diagnose.error_patterns import class_of, is_echo
from launcher.diagnose.evidence import Evidence, RankEvidence
from launcher.diagnose.log_tail import error_block
from launcher.diagnose.verdict_class import VerdictClass
from launcher.errors import ExitCode

OF_CODE = {
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
    """-N when signal N ended it; None where nobody saw its end."""
    verdict_class: VerdictClass | None
    """None where its words point at nothing."""
    is_echo: bool
    spoke: bool
    """It left a last word, or its log names an error."""
    order: int
    lines: list[str]


def find_failures(evidence: Evidence) -> list[Failure]:
    """Ranks that failed, the one that is most likely the first one first."""
    exits = list(evidence.exits)
    exits += [(rank, fact.exit_code) for fact in evidence.words for rank in fact.ranks if fact.exit_code is not None]
    order = {rank: place for place, (rank, _) in reversed(list(enumerate(exits)))}
    codes = {rank: code for rank, code in reversed(exits)}
    found = []
    for rank in evidence.ranks:
        code = rank.end.exit_code if rank.end is not None else codes.get(rank.rank)
        if code in (ExitCode.DONE, ExitCode.PREEMPTED) or code == -signal.SIGTERM:
            continue
        found.append(_failure(rank, code, order.get(rank.rank, _UNKNOWN_ORDER)))
    # Without the order of the exits, the earliest last word; a rank that nobody saw end was often killed afterwards.
    return sorted(found, key=lambda failure: (failure.order, failure.rank.end is None, _end_time(failure)))


def _end_time(failure: Failure) -> str:
    return failure.rank.end.time if failure.rank.end is not None else ""


def _failure(rank: RankEvidence, code: int | None, order: int) -> Failure:
    block = error_block(rank.log)
    error = rank.end.error if rank.end is not None else ""
    text = f"{rank.end.error}: {rank.end.message}" if rank.end is not None and rank.end.message else "\n".join(block)
    verdict_class = class_of(error, text)
    if verdict_class is None and rank.end is not None and error != "ErrorOnMain":
        verdict_class = class_of(error, "\n".join(block))
        known = OF_CODE.get(ExitCode(code)) if code in set(ExitCode) else None
        verdict_class = verdict_class or known
    spoke = rank.end is not None or verdict_class is not None or "Traceback (most recent call last)" in rank.log
    lines = block if block or rank.end is None else rank.end.message.splitlines()[-10:]
    return Failure(
        rank=rank,
        code=code,
        verdict_class=verdict_class,
        is_echo=is_echo(error, text) or (rank.end is None and is_echo("", "\n".join(block))),
        spoke=spoke,
        order=order,
        lines=lines,
    )


def rank_name(rank: RankEvidence) -> str:
    """rank 3 on n2."""
    return f"rank {rank.rank}" + (f" on {rank.node}" if rank.node else "")
