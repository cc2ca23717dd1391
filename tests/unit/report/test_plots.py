from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from launcher.report.plots import loss_figure, page_svg, panels_figure, thinned, write_figures
from launcher.report.terminal_curve import terminal_curve
from launcher.runs.metrics import Metrics, read_metrics
from tests.unit.report.made_runs import eval_record, make_run, step_record, write_curve


def curve(count: int) -> Metrics:
    steps = [step_record(step, 3 * math.exp(-step / count) + 0.1) for step in range(1, count + 1)]
    return Metrics(steps, [eval_record(count // 2, 2.0), eval_record(count, 1.5)])


def test_figures_are_written_in_print_quality(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "demo", epochs=2)
    write_curve(paths, epochs=2, steps_per_epoch=20)
    write_figures(paths.plots, read_metrics(paths.metrics))
    names = {path.name for path in paths.plots.iterdir()}
    assert names == {"loss.png", "loss.pdf", "loss.svg", "training.png", "training.pdf"}
    with Image.open(paths.plots / "loss.png") as image:
        assert image.width >= 1200 and round(image.info["dpi"][0]) == 200
        colors = image.convert("RGB").getcolors(maxcolors=1 << 20)
        assert colors is not None and len(colors) > 50


def test_equal_metrics_give_equal_files(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        paths = make_run(tmp_path / name)
        write_curve(paths, epochs=2, steps_per_epoch=10)
        write_figures(paths.plots, read_metrics(paths.metrics))
        files.append({path.name: path.read_bytes() for path in paths.plots.iterdir()})
    assert files[0] == files[1]


def test_axes_name_what_they_show_and_its_unit() -> None:
    (axes,) = loss_figure(curve(40)).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "loss (nats per token)")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training, smoothed", "validation"]


def last_only(steps: int, *, loss: float = 0.03) -> Metrics:
    """A falling curve whose one evaluation follows its last step."""
    made = [step_record(step, 2 * math.exp(-8 * step / steps) + 0.02) for step in range(1, steps + 1)]
    return Metrics(made, [eval_record(steps, loss)])


@pytest.mark.parametrize("draw", [loss_figure, panels_figure])
@pytest.mark.parametrize(
    "metrics",
    [last_only(6), last_only(6, loss=0.9), last_only(114), curve(40), Metrics(curve(40).steps, [eval_record(1, 2.04)])],
)
def test_the_lowest_held_out_loss_is_named_within_the_axes_and_covers_no_curve(
    draw: Callable[[Metrics], Figure], metrics: Metrics
) -> None:
    figure = draw(metrics)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    lowest = min(record.loss for record in metrics.evals)
    (label,) = [text for text in axes.texts if text.get_text() == f"{lowest:.3g}"]
    box, frame = label.get_window_extent(), axes.get_window_extent()
    assert frame.x0 - 2 <= box.x0 and box.x1 <= frame.x1 + 2
    assert frame.y0 - 2 <= box.y0 and box.y1 <= frame.y1 + 2
    curves = [line.get_path().transformed(line.get_transform()) for line in axes.lines if line.get_linestyle() == "-"]
    assert len(curves) == 3
    assert not any(path.intersects_bbox(box, filled=False) for path in curves)


def test_a_label_with_no_free_place_stands_on_a_ground_of_its_own() -> None:
    zigzag = [step_record(step, 1.0 + step % 2) for step in range(1, 200)]
    (axes,) = loss_figure(Metrics(zigzag, [eval_record(100, 1.5)])).axes
    (label,) = [text for text in axes.texts if text.get_text() == "1.5"]
    assert label.get_bbox_patch() is not None


def test_one_spike_does_not_flatten_the_curve_and_is_counted() -> None:
    metrics = curve(400)
    metrics.steps[200] = step_record(201, 1000.0)
    (axes,) = loss_figure(metrics).axes
    legend = axes.get_legend()
    assert legend is not None
    assert axes.get_ylim()[1] < 20
    assert legend.get_title().get_text() == "1 of 400 steps lie above"


def test_the_page_figure_follows_the_theme_of_the_page() -> None:
    svg = page_svg(loss_figure(curve(40)), name="Loss")
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and root.get("width") is None
    for color in ("currentColor", "var(--rule)", "var(--blue)", "var(--orange)"):
        assert color in svg
    assert "var(--sans)" in svg and "#2b2f36" not in svg


def test_thinning_keeps_every_peak() -> None:
    values = [1.0] * 100_000
    values[12_345], values[54_321] = 9.0, -9.0
    steps, kept = thinned(list(range(100_000)), values)
    assert len(steps) <= 1500
    assert dict(zip(steps, kept, strict=True))[12_345] == 9.0
    assert dict(zip(steps, kept, strict=True))[54_321] == -9.0


def test_a_short_curve_is_not_thinned() -> None:
    assert thinned([1, 2], [0.5, math.nan])[0] == [1, 2]


def test_the_terminal_curve_falls_from_left_to_right_within_its_size() -> None:
    text = terminal_curve(curve(100), width=60, height=12, ascii_only=True)
    lines = text.splitlines()
    assert len(lines) == 12 and max(map(len, lines)) <= 60
    rows = [line[9:] for line in lines[:9]]
    first = [place for place, row in enumerate(rows) if row[:1] == "*"]
    last = [place for place, row in enumerate(rows) if row.rstrip()[-1:] in ("*", "o") and len(row.rstrip()) >= 49]
    assert min(first) == 0 and max(last) == 8
    assert text.isascii() and "o validation" in text


def test_the_terminal_curve_uses_braille_where_it_can() -> None:
    text = terminal_curve(curve(100))
    assert any(0x2800 < ord(letter) < 0x2900 for letter in text)
    assert "\u25cf validation" in text


def test_curves_of_nothing_one_step_and_equal_losses_are_drawn() -> None:
    assert terminal_curve(Metrics()) == "no optimizer step recorded"
    assert "step 1" in terminal_curve(Metrics([step_record(1, 2.0)]))
    flat = Metrics([step_record(step, 2.0) for step in range(1, 5)])
    assert "step 4" in terminal_curve(flat)
    for metrics in (Metrics(), Metrics([step_record(1, math.nan)]), flat):
        assert page_svg(loss_figure(metrics), name="Loss").startswith("<svg")
