"""The loss curve in a terminal."""

from __future__ import annotations

import math
from itertools import pairwise

from launcher.report.smoothing import centred
from launcher.runs.metrics import Metrics

# Bits of the 2 x 4 dots in a braille cell, by row from the top, then left and right.
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BRAILLE_BLANK = 0x2800
LABEL_WIDTH = 7


def terminal_curve(metrics: Metrics, width: int = 72, height: int = 14, *, ascii_only: bool = False) -> str:
    """Smoothed training loss as a line and validation losses as marks, `width` x `height` characters with its axes."""
    smooth = centred([record.loss for record in metrics.steps])
    line = [(record.step, loss) for record, loss in zip(metrics.steps, smooth, strict=True) if math.isfinite(loss)]
    marks = [(record.step, record.loss) for record in metrics.evals if math.isfinite(record.loss)]
    if not line:
        return "no optimizer step recorded"
    steps, losses = zip(*line, *marks, strict=True)
    first, last, low, high = min(steps), max(steps), min(losses), max(losses)
    columns, rows = max(8, width - LABEL_WIDTH - 2), max(4, height - 3)

    def dot(step: int, loss: float) -> tuple[int, int]:
        across, down = (step - first) / max(1, last - first), (high - loss) / ((high - low) or 1.0)
        return round(across * (columns * 2 - 1)), round(down * (rows * 4 - 1))

    bits = [[0] * columns for _ in range(rows)]
    for before, after in pairwise([line[0], *line]):
        for x, y in _straight(dot(*before), dot(*after)):
            bits[y // 4][x // 2] |= BRAILLE_BITS[y % 4][x % 2]
    cells = [[_character(cell, ascii_only) for cell in row] for row in bits]
    mark, wall, corner, floor, stroke = "o|+-*" if ascii_only else "\u25cf\u2502\u2514\u2500\u2500"
    for step, loss in marks:
        x, y = dot(step, loss)
        cells[y // 4][x // 2] = mark
    labels = {0: f"{high:.3g}", rows // 2: f"{(high + low) / 2:.3g}", rows - 1: f"{low:.3g}"}
    framed = [f"{labels.get(y, ''):>{LABEL_WIDTH}} {wall}{''.join(row)}".rstrip() for y, row in enumerate(cells)]
    left, right = f"step {first}", f"step {last} (epoch {metrics.steps[-1].epoch:.4g})"
    indent = " " * LABEL_WIDTH
    framed.append(f"{indent} {corner}{floor * columns}")
    framed.append(f"{indent}  {left}{' ' * max(1, columns - len(left) - len(right))}{right}")
    legend = f"   {mark} validation" if metrics.evals else ""
    framed.append(f"{indent}  loss: {stroke} training, smoothed{legend}")
    return "\n".join(framed)


def _straight(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a line."""
    (left, top), (right, bottom) = start, end
    pieces = max(abs(right - left), abs(bottom - top), 1)
    shares = [piece / pieces for piece in range(pieces + 1)]
    return [(round(left + share * (right - left)), round(top + share * (bottom - top))) for share in shares]


def _character(bits: int, ascii_only: bool) -> str:
    if not bits:
        return " "
    return "*" if ascii_only else chr(BRAILLE_BLANK + bits)
