"""launcher eval: the tuned model against its base on validation examples."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from launcher.commands.console import progress_view
from launcher.errors import ExitCode, UserError
from launcher.evaluate.compare import NAMES, EvalResult
from launcher.runs.run_dir import find_run


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    for option in ("limit", "max_new_tokens"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: at least 1.")

    from launcher.evaluate.evaluate import evaluate_run

    with progress_view(quiet=args.json) as show:
        result = evaluate_run(
            run_dir,
            step=args.step,
            limit=args.limit,
            shots=args.shots,
            max_new_tokens=args.max_new_tokens,
            conditions=[name.strip() for name in args.conditions.split(",")],
            progress=lambda stage, done, of: show(stage, done / max(1, of), f"{done}/{of}"),
        )
    if args.json:
        print(json.dumps(result.as_dict(), indent=2, ensure_ascii=False))
    else:
        show_result(result)
    return ExitCode.DONE


def show_result(result: EvalResult) -> None:
    """Prints scores with intervals, losses and verdict; a table on a terminal, lines elsewhere."""
    console = Console(highlight=False)
    rows = _rows(result)
    title = f"{result.examples} validation example{'' if result.examples == 1 else 's'}, step {result.step}"
    if rows and console.is_terminal:
        numbers = ("exact match", "95 % interval", "token F1", "95 % interval")
        columns = [Column(name, justify="right") for name in numbers]
        table = Table("", *columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == "tuned" else None)
        console.print(table)
    elif rows:
        print(title)
        for name, exact, exact_ci, f1, f1_ci in rows:
            print(f"{name:<24}exact match {exact:>7} ({exact_ci})  token F1 {f1:>7} ({f1_ci})")
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in result.validation_loss.items())
    print(f"validation loss: {losses}")
    console.print(Text(result.verdict, style="bold green" if result.better else "bold yellow"), soft_wrap=True)
    for note in result.notes:
        print(f"note: {note}")
    print(f"written to {result.path}")


def _rows(result: EvalResult) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name, scores in result.conditions.items():
        label = NAMES[name] if scores.shots is None else f"{NAMES[name]} ({scores.shots} examples)"
        exact, f1 = (f"{100 * value:.1f} %" for value in (scores.exact_match, scores.token_f1))
        rows.append((label, exact, _interval(scores.exact_match_ci), f1, _interval(scores.token_f1_ci)))
    return rows


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
