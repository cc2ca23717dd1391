"""launcher generate: answers of the base and the tuned model, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launcher.data.template import ChatFormat
from launcher.errors import ExitCode, UserError
from launcher.evaluate.questions import Prompt
from launcher.export.example_kind import ExampleKind, example_kind
from launcher.export.source import open_source
from launcher.runs.run_dir import find_run


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    question = sys.stdin.read().strip() if args.prompt == "-" else args.prompt
    if not question:
        raise UserError("The prompt is empty; give one, or - to read it from standard input.")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: at least 1.")
    document = _ask(run_dir, question, args)
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return ExitCode.DONE
    if "note" in document:
        print(f"note: {document['note']}\n")
    if sys.stdout.isatty():
        show_side_by_side(document)
    else:
        for name in ("base", "tuned"):
            if name in document:
                print(f"{name}:\n{document[name]}\n")
    return ExitCode.DONE


def _ask(run_dir: Path, question: str, args: argparse.Namespace) -> dict[str, object]:
    """The prompt and the answers, as --json prints them."""
    from launcher.evaluate.answer import Answerer
    from launcher.evaluate.evaluate import tuned_answerer

    source = open_source(run_dir, args.step)
    data_dir = Path(source.derived.data_dir)
    chat = ChatFormat.from_folder(data_dir)
    document: dict[str, object] = {"run": run_dir.name, "step": source.checkpoint.step, "prompt": question}
    if example_kind(data_dir) is ExampleKind.text:
        if args.system is not None:
            raise UserError(
                f"--system: {run_dir.name} was tuned on plain text, which has no system message; leave it out."
            )
        prompt = Prompt(text=question)
        document["note"] = "tuned on plain text: the prompt is continued as it is, without the chat format"
    else:
        messages: list[dict[str, object]] = [{"role": "user", "content": question}]
        if args.system is not None:
            messages.insert(0, {"role": "system", "content": args.system})
        prompt = Prompt(tuple(messages))
    # One after the other: both may not fit into memory.
    if not args.tuned_only:
        base = Answerer(source.base_dir, chat_format=chat)
        document["base"] = base.answer([prompt], max_new_tokens=args.max_new_tokens)[0]
        del base
    if not args.base_only:
        tuned = tuned_answerer(source, chat)
        document["tuned"] = tuned.answer([prompt], max_new_tokens=args.max_new_tokens)[0]
    return document


def show_side_by_side(document: dict[str, object], *, width: int | None = None) -> None:
    """Prints the prompt, and the answers in two columns; `width` in characters, by default that of the terminal."""
    console = Console(highlight=False, width=width)
    console.print(Panel(Text(str(document["prompt"])), title="prompt", border_style="dim"))
    titles = {"base": ("base", "yellow"), "tuned": (f"tuned, step {document['step']}", "green")}
    panels = [
        Panel(Text(str(document[name])), title=title, border_style=colour)
        for name, (title, colour) in titles.items()
        if name in document
    ]
    table = Table.grid(expand=True)
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    console.print(table)
