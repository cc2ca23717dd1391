"""Whether a run continues by itself after an attempt, by its end, and by the number and progress of earlier ones."""

from __future__ import annotations

from dataclasses import replace

from launcher.config.cluster_schema import FaultConfig
from launcher.diagnose.verdict import NOT_A_FAILURE, Action, Verdict
from launcher.errors import VerdictClass

_GOES_ON = (Action.requeue, Action.requeue_without_node)


def decide(fault: FaultConfig, verdicts: list[Verdict]) -> Verdict:
    """The newest verdict with the action that follows from all attempts. Pure.

    Args:
        verdicts: of the attempts that count together, such as all of one job, oldest first; at least one.
    Returns: the last one. Its action is `stop` where a limit is reached, and the summary then says which; where its
        class asks to leave out a node but none is blamed, or there is no other, it is a plain requeue. A node that the
        failure before blamed as well is left out whatever the class. Limits count anew once somebody has started the
        run again after a stop.
    """
    newest = verdicts[-1]
    if newest.action not in _GOES_ON:
        return newest
    mine = _since_last_stop(verdicts)
    fruitless = fruitless_in_a_row(mine)
    if fruitless >= fault.max_fruitless_attempts and _is_fruitless(newest):
        times = f"{fruitless} attempts in a row" if fruitless > 1 else "1 attempt"
        why = f"{times} ended without a new checkpoint (fault.max_fruitless_attempts={fault.max_fruitless_attempts})"
        return _stopped(newest, why)
    # By their numbers: an attempt in between may have left no verdict.
    made = newest.attempt - mine[0].attempt + 1
    if made >= fault.max_attempts:
        return _stopped(newest, f"{made} attempts were made (fault.max_attempts={fault.max_attempts})")
    without = bool(newest.node) and (newest.num_nodes > 1 or bool(newest.job_id))
    if newest.action is Action.requeue_without_node and not without:
        return replace(newest, action=Action.requeue)
    if newest.action is Action.requeue and without and _blamed_again(verdicts):
        return replace(newest, action=Action.requeue_without_node)
    return newest


def fruitless_in_a_row(verdicts: list[Verdict]) -> int:
    """How many attempts failed one after the other, up to the newest, without a new checkpoint.

    Preempted and cancelled attempts are passed over: they neither count nor reset. Whatever made a checkpoint resets.
    """
    count = 0
    for verdict in reversed(verdicts):
        if verdict.made_progress or verdict.verdict_class is VerdictClass.done:
            break
        count += _is_fruitless(verdict)
    return count


def _is_fruitless(verdict: Verdict) -> bool:
    return verdict.verdict_class not in NOT_A_FAILURE and not verdict.made_progress


def _since_last_stop(verdicts: list[Verdict]) -> list[Verdict]:
    """Attempts after the last one that was not to be followed by another: somebody looked, and started the run anew."""
    stops = [index for index, verdict in enumerate(verdicts[:-1]) if verdict.action not in _GOES_ON]
    return verdicts[stops[-1] + 1 :] if stops else verdicts


def _blamed_again(verdicts: list[Verdict]) -> bool:
    """Whether the last two attempts that failed both blame the same node."""
    failed = [verdict for verdict in verdicts if verdict.verdict_class not in NOT_A_FAILURE]
    blamed = [verdict.node for verdict in failed[-2:] if verdict.verdict_class in _MAY_BE_THE_NODE]
    return len(blamed) == 2 and blamed[0] == blamed[1] != ""


_MAY_BE_THE_NODE = (VerdictClass.hang, VerdictClass.out_of_memory_host, VerdictClass.disk, VerdictClass.bug)


def _stopped(verdict: Verdict, why: str) -> Verdict:
    hint = f"it does not continue by itself: {verdict.setting or 'see the last lines'}; launcher resume tries once more"
    return replace(verdict, action=Action.stop, summary=f"{verdict.summary}; stopped: {why}", hint=hint)
