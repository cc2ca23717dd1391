"""What several verbs need to print: tables of facts, output without padding, text without control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


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
