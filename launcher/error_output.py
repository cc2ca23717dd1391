"""How an error reaches the user: on the terminal, or as one JSON document."""

from __future__ import annotations

import json
import sys

from launcher.errors import ConfigErrors, DataError, LauncherError, Problem, public_name
from launcher.files import as_json


def show_error(error: LauncherError, *, in_json: bool = False) -> None:
    """Prints an error without a traceback: on stderr, and with `in_json` as one JSON document on stdout as well."""
    problems = error.problems if isinstance(error, ConfigErrors | DataError) else []
    if in_json:
        document = {
            "error": public_name(error),
            "message": str(error),
            "problems": [_problem_fields(problem) for problem in problems],
            "exit_code": int(error.exit_code),
        }
        print(json.dumps(document, indent=2))
    headline = str(error)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        headline = count if isinstance(error, ConfigErrors) else str(error).split("\n", 1)[0]
    if sys.stderr.isatty():
        _show_on_terminal(headline, problems)
        return
    print(f"error: {headline}", file=sys.stderr)
    for problem in problems:
        print(f"  - {problem}", file=sys.stderr)


def _problem_fields(problem: Problem) -> dict[str, object]:
    value = problem.value if isinstance(problem.value, str | int | float | bool | None) else str(problem.value)
    return {**as_json(problem), "value": value}


def _show_on_terminal(headline: str, problems: list[Problem]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text("error ", style="bold red") + Text(headline))
    for problem in problems:
        line = Text.assemble("  ", (problem.key, "bold"), " = ", (repr(problem.value), "yellow"), f"  {problem.why}")
        console.print(line)
        if problem.hint:
            console.print(Text(f"    {problem.hint}", style="green"))
