"""The ways an attempt can end, and the one action each asks for."""

from __future__ import annotations

from enum import Enum

from launcher.errors import VerdictClass as VerdictClass


class Action(Enum):
    """What to do after an attempt."""

    none = "none"
    """It has finished."""
    requeue = "requeue"
    requeue_without_node = "requeue_without_node"
    """Again, but not on the node that is blamed."""
    stop = "stop"
    """Somebody has to look first."""


ACTIONS = {
    VerdictClass.done: Action.none,
    VerdictClass.preempted: Action.requeue,
    VerdictClass.timeout: Action.requeue,
    VerdictClass.cancelled: Action.stop,
    VerdictClass.node_failure: Action.requeue_without_node,
    VerdictClass.rendezvous: Action.requeue_without_node,
    VerdictClass.hang: Action.requeue,
    VerdictClass.out_of_memory_host: Action.requeue,
    VerdictClass.out_of_memory_gpu: Action.requeue,
    VerdictClass.non_finite: Action.stop,
    VerdictClass.configuration: Action.stop,
    VerdictClass.data: Action.stop,
    VerdictClass.disk: Action.requeue,
    VerdictClass.checkpoint: Action.stop,
    VerdictClass.superseded: Action.stop,
    VerdictClass.bug: Action.requeue,
}

NOT_A_FAILURE = frozenset({VerdictClass.done, VerdictClass.preempted, VerdictClass.cancelled})
"""Ends that say nothing against the run: they never count as a fruitless attempt."""
