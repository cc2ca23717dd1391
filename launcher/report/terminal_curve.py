"""The loss curve in a terminal."""

from __future__ import annotations

import math

from launcher.report.smoothing import centred
from launcher.runs.metrics import Metrics

# Bits of the 2 x 4 dots in a braille cell, by row from the top, then left and right.
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BRAILLE_BLANK = 0x2800
VALIDATION_MARK = "\u25cf"
LABEL_WIDTH = 7


def terminal_curve(metrics: Metrics, width: int = 72, height: int = 14, *, ascii_only: bool = False) -> str:
    """Smoothed training loss as a line and validation losses as marks, `width` x `height` characters with its axes."""
    losses = centred([record.loss for record in metrics.steps])
    line = [(record.step, loss) for record, loss in zip(metrics.steps, losses, strict=True) if math.isfinite(loss)]
    marks = [(record.step, record.loss) for record in metrics.evals if math.isfinite(record.loss)]
    if not line:
        return "no optimizer step recorded"
    canvas = _Canvas(max(8, width - LABEL_WIDTH - 2), max(4, height - 3), line + marks)
    for before, after in zip(line, [*line[1:], line[-1]], strict=True):
        canvas.draw_line(before, after)
    rows = canvas.ascii_rows() if ascii_only else canvas.braille_rows()
    mark = "o" if ascii_only else VALIDATION_MARK
    for step, loss in marks:
        column, row = canvas.cell(step, loss)
        rows[row][column] = mark
    return "\n".join(_framed(rows, canvas, metrics, mark, ascii_only))


class _Canvas:
    """Dots, 2 x 4 to a character, over the range of the points given."""

    def __init__(self, columns: int, rows: int, points: list[tuple[int, float]]) -> None:
        self.columns, self.rows = columns, rows
        self.first, self.last = min(step for step, _ in points), max(step for step, _ in points)
        self.low, self.high = min(loss for _, loss in points), max(loss for _, loss in points)
        self._dots: set[tuple[int, int]] = set()

    def dot(self, step: float, loss: float) -> tuple[int, int]:
        across = (step - self.first) / max(1, self.last - self.first)
        down = (self.high - loss) / ((self.high - self.low) or 1.0)
        return round(across * (self.columns * 2 - 1)), round(down * (self.rows * 4 - 1))

    def cell(self, step: float, loss: float) -> tuple[int, int]:
        column, row = self.dot(step, loss)
        return column // 2, row // 4

    def draw_line(self, before: tuple[int, float], after: tuple[int, float]) -> None:
        (left, top), (right, bottom) = self.dot(*before), self.dot(*after)
        pieces = max(abs(right - left), abs(bottom - top), 1)
        for piece in range(pieces + 1):
            share = piece / pieces
            self._dots.add((round(left + share * (right - left)), round(top + share * (bottom - top))))

    def braille_rows(self) -> list[list[str]]:
        codes = [[BRAILLE_BLANK] * self.columns for _ in range(self.rows)]
        for across, down in self._dots:
            codes[down // 4][across // 2] |= BRAILLE_BITS[down % 4][across % 2]
        return [[chr(code) if code != BRAILLE_BLANK else " " for code in row] for row in codes]

    def ascii_rows(self) -> list[list[str]]:
        filled = {(across // 2, down // 4) for across, down in self._dots}
        return [["*" if (column, row) in filled else " " for column in range(self.columns)] for row in range(self.rows)]


def _framed(rows: list[list[str]], canvas: _Canvas, metrics: Metrics, mark: str, ascii_only: bool) -> list[str]:
    wall, corner, floor, stroke = ("|", "+", "-", "*") if ascii_only else ("\u2502", "\u2514", "\u2500", "\u2500")
    labels = {0: canvas.high, len(rows) // 2: (canvas.high + canvas.low) / 2, len(rows) - 1: canvas.low}
    framed = []
    for index, row in enumerate(rows):
        label = f"{labels[index]:.3g}" if index in labels else ""
        framed.append(f"{label:>{LABEL_WIDTH}} {wall}{''.join(row)}".rstrip())
    left, right = f"step {canvas.first}", f"step {canvas.last} (epoch {metrics.steps[-1].epoch:.4g})"
    gap = max(1, canvas.columns - len(left) - len(right))
    framed.append(f"{'':>{LABEL_WIDTH}} {corner}{floor * canvas.columns}")
    framed.append(f"{'':>{LABEL_WIDTH}}  {left}{' ' * gap}{right}")
    legend = f"loss: {stroke} training, smoothed" + (f"   {mark} validation" if metrics.evals else "")
    framed.append(f"{'':>{LABEL_WIDTH}}  {legend}")
    return framed
