"""When to stop and save because the job's time runs out: from the time this run's own steps and saves take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

_RECENT = 20


class Deadline:
    """What rank 0 knows of the time that is left. Without a limit nothing is ever near.

    Args:
        end_s: unix seconds; None without a limit.
        margin_s: added to what the work itself takes.
        saves_s, evaluations_s: how long the latest ones took, in earlier attempts too.
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
        self._steps_s: deque[float] = deque(maxlen=_RECENT)
        self._saves_s: deque[float] = deque(saves_s, maxlen=_RECENT)
        self._evaluations_s: deque[float] = deque(evaluations_s, maxlen=_RECENT)

    def stepped(self, seconds: float) -> None:
        self._steps_s.append(seconds)

    def saved(self, seconds: float) -> None:
        self._saves_s.append(seconds)

    def evaluated(self, seconds: float) -> None:
        self._evaluations_s.append(seconds)

    def leaves_no_step(self, *, step_s: float, evaluates: bool, saves: bool) -> bool:
        """Asked near the end of a step: whether what comes, another step and its save do not fit any more.

        Args:
            step_s: how long the step under way took so far.
            evaluates, saves: what is due right after it.
        """
        step = max(step_s, *self._steps_s, 0.0)
        save = max(self._saves_s, default=step)
        evaluation = max(self._evaluations_s, default=step) if evaluates else 0.0
        return self._left_s < evaluation + step + save * (2 if saves else 1) + self._margin_s

    def leaves_only_a_save(self) -> bool:
        """Asked during an evaluation, which can be done again: whether it has to make way for the save."""
        return self._left_s < max(self._saves_s, default=0.0) + self._margin_s

    @property
    def _left_s(self) -> float:
        return float("inf") if self._end_s is None else self._end_s - self._clock()
