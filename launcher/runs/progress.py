"""The progress that rank 0 shows: a live bar on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from launcher.runs.metrics import EvalRecord, StepRecord

ETA_WINDOW_STEPS = 50
LONGEST_SILENCE_S = 60.0


class Progress:
    """Step, epoch, loss, tokens per second and time left, on stderr (stdout belongs to results).

    Every rank may make one; only the one with `enabled` shows anything. `eta_s` is kept in both.
    """

    def __init__(
        self,
        total_steps: int,
        enabled: bool,
        *,
        line_every_s: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._enabled = enabled
        self._line_every_s = line_every_s
        self._stream = stream or sys.stderr
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque(maxlen=ETA_WINDOW_STEPS + 1)
        self._started_at = clock()
        self._line_at = float("-inf")
        self._line_tenth = -1
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        if enabled and self._stream.isatty():
            self._open_bar()

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step, from the wall time of the newest steps; None before the second one."""
        if len(self._recent) < 2:
            return None
        (first_at, first_step), (last_at, last_step) = self._recent[0], self._recent[-1]
        if last_step <= first_step:
            return None
        return (last_at - first_at) / (last_step - first_step) * max(0, self._total_steps - last_step)

    def update(self, record: StepRecord) -> None:
        """Shows a finished optimizer step."""
        now = self._clock()
        self._recent.append((now, record.step))
        if not self._enabled:
            return
        epoch, loss = f"{record.epoch:.2f}", f"{record.loss:.4f}"
        speed, eta = f"{record.tokens_per_s:,.0f}", duration_text(self.eta_s)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, epoch=epoch, loss=loss, speed=speed, eta=eta)
        elif self._line_is_due(now, record.step):
            step = f"step {record.step}/{self._total_steps}"
            self.note(f"{step}  epoch {epoch}  loss {loss}  {speed} tokens/s  ETA {eta}")

    def evaluated(self, record: EvalRecord) -> None:
        """Shows a validation loss."""
        what = f"epoch {record.epoch:.2f}" if record.epoch_end else f"step {record.step}"
        self.note(f"{what}: validation loss {record.loss:.4f} ({record.eval_time_s:.1f} s)")

    def note(self, text: str) -> None:
        """Shows one line above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._enabled = False

    def _open_bar(self) -> None:
        self._bar = RichProgress(
            TextColumn("[bold]{task.completed:.0f}[/]/{task.total:.0f}"),
            BarColumn(bar_width=None, complete_style="blue", finished_style="green"),
            TextColumn("epoch {task.fields[epoch]}"),
            TextColumn("loss [bold]{task.fields[loss]}[/]"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TextColumn("[dim]ETA {task.fields[eta]}[/]"),
            console=Console(file=self._stream),
            expand=True,
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("", total=self._total_steps, epoch="-", loss="-", speed="-", eta="-")
        self._bar.start()

    def _line_is_due(self, now: float, step: int) -> bool:
        # Lines thin out with the length of the run, so that a day's log can still be read.
        silence_s = min(LONGEST_SILENCE_S, max(self._line_every_s, 0.01 * (now - self._started_at)))
        tenth = step * 10 // max(1, self._total_steps)
        due = now - self._line_at >= silence_s or tenth > self._line_tenth
        if due:
            self._line_at, self._line_tenth = now, tenth
        return due


def duration_text(seconds: float | None) -> str:
    """1:02:03 or 2:03; ? where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
