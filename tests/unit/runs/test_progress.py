from __future__ import annotations

import io

from launcher.runs.progress import Progress, duration_text
from tests.unit.report.made_runs import eval_record, step_record


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(total_steps: int, step_s: float, *, enabled: bool = True, line_every_s: float = 5.0) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(total_steps, enabled, stream=stream, clock=clock, line_every_s=line_every_s)
    for step in range(1, total_steps + 1):
        clock.now += step_s
        progress.update(step_record(step, 2.0))
    progress.close()
    return stream.getvalue().splitlines()


def test_a_line_has_step_epoch_loss_speed_and_time_left() -> None:
    assert run(40, 6.0)[1] == "step 2/40  epoch 0.20  loss 2.0000  571 tokens/s  ETA 3:48"


def test_a_short_run_prints_a_line_every_tenth() -> None:
    assert len(run(1000, 0.001)) == 11


def test_lines_come_no_faster_than_asked_and_thin_out() -> None:
    lines = run(100_000, 1.0)
    assert len(lines) < 2000


def test_a_rank_that_is_not_enabled_prints_nothing() -> None:
    assert run(10, 6.0, enabled=False) == []


def test_time_left_is_known_to_a_rank_that_shows_nothing() -> None:
    clock = Clock()
    progress = Progress(100, enabled=False, clock=clock)
    assert progress.eta_s is None
    for step in (51, 52, 53):
        clock.now += 2.0
        progress.update(step_record(step, 2.0))
    assert progress.eta_s == 2.0 * 47


def test_validation_losses_and_notes_are_shown_at_once() -> None:
    stream = io.StringIO()
    progress = Progress(10, enabled=True, stream=stream)
    progress.evaluated(eval_record(10, 1.25, epoch=1.0))
    progress.note("checkpoint at step 10 [bold]")
    assert stream.getvalue() == "epoch 1.00: validation loss 1.2500 (2.5 s)\ncheckpoint at step 10 [bold]\n"


def test_a_terminal_gets_a_bar_and_notes_above_it() -> None:
    terminal = Terminal()
    progress = Progress(3, enabled=True, stream=terminal)
    progress.update(step_record(3, 1.5, epoch=1.0))
    progress.note("saved [1/2]")
    progress.close()
    progress.close()
    assert "1.5000" in terminal.getvalue()
    assert "saved [1/2]" in terminal.getvalue()


def test_durations_read_like_a_clock() -> None:
    assert [duration_text(value) for value in (None, 59.6, 61, 3725)] == ["?", "1:00", "1:01", "1:02:05"]
