"""Output that verbs share: tables of facts, progress, text without padding or control characters."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_LINE_EVERY_S = 5.0

ShowProgress = Callable[[str, float, str], None]
"""Called with the stage, the share of it that is done (0 as long as it is not known), and a detail such as a count."""


def fact_table(rows: Iterable[tuple[str, str | Text]], *, label_style: str = "dim") -> Table:
    """Labels and values; a row without a value is left out. Strings are shown as they are, not as markup."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=label_style, no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if value:
            table.add_row(label, Text(value) if isinstance(value, str) else value)
    return table


def print_trimmed(console: Console, view: RenderableType) -> None:
    """Prints a view without the spaces that rich pads tables with."""
    with console.capture() as captured:
        console.print(view)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def printable(text: str) -> str:
    """Text of users, models and logs with control characters escaped, since they could command the terminal."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextmanager
def progress_view(*, quiet: bool) -> Iterator[ShowProgress]:
    """A bar on a terminal; elsewhere a line for each stage and every few seconds. On stderr: stdout is for results."""
    if quiet:
        yield lambda stage, share, detail: None
    elif not sys.stderr.isatty():
        yield _ProgressLines().show
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None, detail="")

            def show(stage: str, share: float, detail: str) -> None:
                if stage != bar.tasks[0].description:
                    bar.reset(task)
                bar.update(task, description=stage, completed=share, total=1.0 if share else None, detail=detail)

            yield show


class _ProgressLines:
    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0

    def show(self, stage: str, share: float, detail: str) -> None:
        if stage != self._stage or time.monotonic() - self._last > _LINE_EVERY_S:
            print(f"{stage}: {detail}, {share:.0%}" if share else stage, file=sys.stderr, flush=True)
            self._stage, self._last = stage, time.monotonic()
