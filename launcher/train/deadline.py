"""When to stop and save because the job's time runs out, judged by how long this run's own steps and saves take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

_RECENT = 20


class Deadline:
    """The time that is left to the job, and how long recent steps, saves and evaluations took.

    Args:
        end_s: unix seconds; None without a limit.
        margin_s: added to the time that the work takes.
        saves_s, evaluations_s: durations in earlier attempts.
    """

    def __init__(
        self,
        end_s: float | None,
        *,
        margin_s: float,
        saves_s: Iterable[float] = (),
        evaluations_s: Iterable[float] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._end_s = end_s
        self._margin_s = margin_s
        self._clock = clock
        self.steps_s: deque[float] = deque(maxlen=_RECENT)
        self.saves_s: deque[float] = deque(saves_s, maxlen=_RECENT)
        self.evaluations_s: deque[float] = deque(evaluations_s, maxlen=_RECENT)

    def leaves_no_step(self, *, step_s: float, evaluates: bool, saves: bool) -> bool:
        """Near the end of a step: whether the time is too short for all that is due, another step and its save.

        Args:
            step_s: duration of the current step so far.
            evaluates, saves: whether an evaluation or a save is due right after it.
        """
        step = max(step_s, *self.steps_s, 0.0)
        save = max(self.saves_s, default=step)
        evaluation = max(self.evaluations_s, default=step) if evaluates else 0.0
        return self._left_s < evaluation + step + save * (2 if saves else 1) + self._margin_s

    def leaves_only_a_save(self) -> bool:
        """During an evaluation, which can be repeated: whether it must end now to leave time for the save."""
        return self._left_s < max(self.saves_s, default=0.0) + self._margin_s

    @property
    def _left_s(self) -> float:
        return float("inf") if self._end_s is None else self._end_s - self._clock()
