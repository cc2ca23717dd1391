"""Figures of a run in print quality: the loss, and four panels.

Drawn with matplotlib's object interface, without pyplot, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, MaxNLocator

from launcher.report.epochs import best_eval
from launcher.report.smoothing import centred
from launcher.runs.metrics import Metrics

# Okabe and Ito's palette: the pair can be told apart with every common colour blindness, and in grey print.
TRAIN_COLOR = "#0072B2"
VALIDATION_COLOR = "#D55E00"
INK = "#2b2f36"
GRID = "#d9dce1"
# Colours of the page (report.html.j2), which has a light and a dark theme.
PAGE_COLORS = {
    INK: "currentColor",
    GRID: "var(--rule)",
    TRAIN_COLOR: "var(--blue)",
    VALIDATION_COLOR: "var(--orange)",
    "#ffffff": "var(--paper)",
}
MOST_POINTS = 1500
DPI = 200
# Single losses this far above the rest are left outside the axis and counted.
SPIKE_RATIO = 1.5
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,
    "svg.hashsalt": "launcher",
}


def write_figures(folder: Path, metrics: Metrics) -> None:
    """loss.png (200 dpi), .pdf and .svg, and the four panels as training.png and .pdf."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"loss": (loss_figure, ("png", "pdf", "svg")), "training": (panels_figure, ("png", "pdf"))}
    for name, (draw, formats) in figures.items():
        with matplotlib.rc_context(STYLE):
            figure = draw(metrics)
            for kind in formats:
                # Dates in files would make equal figures differ.
                metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
                figure.savefig(folder / f"{name}.{kind}", dpi=DPI, metadata=metadata, facecolor="white")


def loss_figure(metrics: Metrics, size_inch: tuple[float, float] = (6.4, 3.4)) -> Figure:
    """Training loss, raw and smoothed, and validation loss over optimizer steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size_inch, layout="constrained")
        axes = figure.add_subplot()
        _draw_loss(axes, metrics)
        _mark_best(figure, axes, metrics)
        return figure


def panels_figure(metrics: Metrics, size_inch: tuple[float, float] = (7.0, 4.8)) -> Figure:
    """Loss, learning rate, gradient norm and throughput over the same steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size_inch, layout="constrained")
        loss, rate, norm, speed = (figure.add_subplot(2, 2, index) for index in range(1, 5))
        _draw_loss(loss, metrics)
        steps = [record.step for record in metrics.steps]
        _draw_curve(rate, steps, [record.lr for record in metrics.steps], "learning rate", smooth=False)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)
        _draw_curve(norm, steps, [record.grad_norm for record in metrics.steps], "gradient norm before clipping")
        _draw_curve(speed, steps, [record.tokens_per_s for record in metrics.steps], "tokens per second")
        speed.yaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in (rate, norm, speed):
            _mark_epochs(axes, metrics, labels=False)
            axes.set_ylim(bottom=0)
        for letter, axes in zip("abcd", (loss, rate, norm, speed), strict=True):
            axes.set_title(letter, loc="left", fontsize=9, fontweight="bold", pad=16 if axes in (loss, rate) else 6)
        _mark_best(figure, loss, metrics)
        return figure


def page_svg(figure: Figure, *, name: str) -> str:
    """The figure as inline SVG in the colours and the font of the page.

    `name` keeps the ids of several figures on one page apart, and is its text for screen readers.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="(figure|axes|matplotlib|patch|line2d|text|xtick|ytick|legend|PathCollection)[\w.]*"', "", svg)
    for color, role in PAGE_COLORS.items():
        svg = svg.replace(color.lower(), role)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{name}" class="figure"', 1)


def thinned(steps: list[int], values: list[float], limit: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """At most `limit` points that keep every peak: the lowest and highest value of each stretch."""
    if len(steps) <= limit:
        return steps, values
    stretch = math.ceil(2 * len(steps) / limit)
    kept: list[int] = []
    for start in range(0, len(steps), stretch):
        indices = [index for index in range(start, min(start + stretch, len(steps))) if math.isfinite(values[index])]
        if indices:
            kept += sorted({min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)})
    return [steps[index] for index in kept], [values[index] for index in kept]


def _draw_loss(axes: Axes, metrics: Metrics) -> None:
    steps = [record.step for record in metrics.steps]
    losses = [record.loss for record in metrics.steps]
    _draw_curve(axes, steps, losses, "loss (nats per token)", legend="training, smoothed")
    evals = [record for record in metrics.evals if math.isfinite(record.loss)]
    if evals:
        axes.plot(
            [record.step for record in evals],
            [record.loss for record in evals],
            color=VALIDATION_COLOR,
            linewidth=1.0,
            marker="o",
            markersize=4,
            markeredgecolor="#ffffff",
            markeredgewidth=0.6,
            label="validation",
        )
    hidden = _limit_losses(axes, losses, [record.loss for record in evals])
    _mark_epochs(axes, metrics, labels=True)
    if steps:
        axes.legend(loc="upper right", title=hidden or None, title_fontsize=7)
    else:
        axes.text(0.5, 0.5, "no optimizer step recorded", ha="center", va="center", transform=axes.transAxes)


def _draw_curve(
    axes: Axes, steps: list[int], values: list[float], label: str, *, smooth: bool = True, legend: str = ""
) -> None:
    if smooth:
        axes.plot(*thinned(steps, values), color=TRAIN_COLOR, alpha=0.32, linewidth=0.6)
        values = centred(values)
    axes.plot(*thinned(steps, values), color=TRAIN_COLOR, linewidth=1.5, label=legend or None)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _mark_best(figure: Figure, axes: Axes, metrics: Metrics) -> None:
    """Labels the lowest validation loss next to its point, within the axes and off the curves.

    Called last: only then is it known what is free.
    """
    best = best_eval(metrics)
    if best is None:
        return
    figure.draw_without_rendering()
    annotate = partial(
        axes.annotate,
        f"{best.loss:.3g}",
        (best.step, best.loss),
        textcoords="offset points",
        fontsize=8,
        color=VALIDATION_COLOR,
    )
    # Above first: the lowest point often lies just over the axis and its numbers.
    for side in (1, -1):
        for align in ("center", "right", "left"):
            label = annotate(xytext=(0, 6 * side), ha=align, va="bottom" if side > 0 else "top")
            if _is_free(axes, label):
                return
            label.remove()
    # Nothing is free: left or right of the point, on a white background.
    offset, align = (-6, "right") if best.step > sum(axes.get_xlim()) / 2 else (6, "left")
    background = {"boxstyle": "square,pad=0.15", "facecolor": "#ffffff", "edgecolor": "none"}
    annotate(xytext=(offset, 0), ha=align, va="center", bbox=background)


def _is_free(axes: Axes, label: Annotation) -> bool:
    """Whether a label lies within the axes, off the legend, and on no curve."""
    box, frame, legend = label.get_window_extent(), axes.get_window_extent(), axes.get_legend()
    # A pixel of tolerance, so that the last letter may end where the axis does.
    if box.x0 < frame.x0 - 1 or box.x1 > frame.x1 + 1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        return False
    if legend is not None and legend.get_window_extent().overlaps(box):
        return False
    curves = [line.get_path().transformed(line.get_transform()) for line in axes.lines if line.get_linestyle() == "-"]
    return not any(curve.intersects_bbox(box, filled=False) for curve in curves)


def _limit_losses(axes: Axes, losses: list[float], validation: list[float]) -> str:
    """Keeps single spikes from flattening the curve; returns how many points lie outside."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if not finite:
        return ""
    usual = finite[min(len(finite) - 1, int(0.995 * len(finite)))]
    high = max([usual, *validation])
    high = max(high, finite[-1]) if finite[-1] < SPIKE_RATIO * high else high
    low = min([finite[0], *validation])
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(max(0.0, low - 2.2 * room) if low >= 0 else low - room, high + room)
    outside = sum(1 for loss in losses if not loss <= high + room)
    return f"{outside} of {len(losses)} steps lie above" if outside else ""


def _mark_epochs(axes: Axes, metrics: Metrics, *, labels: bool) -> None:
    """A thin line with its number where each epoch ends; only every second, fifth, ... if there are many."""
    if not metrics.steps:
        return
    axes.set_xlim(min(0, metrics.steps[0].step - 1), metrics.steps[-1].step * 1.01)
    ends: dict[int, int] = {}
    for record in metrics.steps:
        whole = math.floor(record.epoch + 1e-6)
        if whole >= 1:
            ends.setdefault(whole, record.step)
    every = next(gap for gap in (1, 2, 5, 10, 20, 50, 100, len(ends) + 1) if len(ends) / gap <= 12)
    for epoch, step in ends.items():
        if epoch % every:
            continue
        axes.axvline(step, color=GRID, linewidth=0.6, linestyle=(0, (3, 2)), zorder=0)
        if labels:
            text = f"epoch {epoch}" if epoch == every else f"{epoch}"
            axes.annotate(
                text,
                (step, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(0, 2),
                ha="center",
                fontsize=7,
            )
