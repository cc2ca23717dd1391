"""`launcher VERB ...`: finds the verb, parses, calls it, and turns errors into exit codes. Loads nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import cast

from launcher import __version__
from launcher.commands.options import OPTIONS
from launcher.error_output import show_error
from launcher.errors import ExitCode, LauncherError
from launcher.log import setup_logging

_GROUPS = {
    "Run": {
        "check": "validate a run and print its plan, without starting anything",
        "prepare": "tokenize, mask, audit and pack the data; show what the model will see",
        "train": "train on this host, or continue a run",
        "submit": "validate a run and queue it on Slurm; comma lists make a sweep",
        "resume": "resume a stopped or failed run from its latest valid checkpoint",
    },
    "Watch": {
        "status": "list runs, or show one in detail",
        "logs": "show the logs of a run's ranks, merged by time",
        "cancel": "stop a run; it saves a checkpoint first",
        "verify": "check every checkpoint of a run against its manifest",
        "report": "write a page with curves, advice, data audit, settings and cost",
        "sync": "upload to the run's trackers what the live run missed, or the whole run",
    },
    "Use the model": {
        "export": "write the tuned model as a Hugging Face folder",
        "generate": "compare the base and the tuned model on a prompt",
        "eval": "measure the tuned model against its base on the validation set",
        "serve": "serve the tuned model behind an OpenAI-compatible endpoint",
    },
    "Set up": {
        "doctor": "check this host, or with cluster=SITE a Slurm site: tools, settings, nodes, network",
    },
}
VERBS = {name: text for verbs in _GROUPS.values() for name, text in verbs.items()}
# A module named eval would hide the built-in.
_MODULES = {"eval": "evaluate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of one command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # For verbs that compute here, and for the ranks they start: see train/__main__.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone (`launcher logs RUN | head`): die as the shell expects, without a second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        return ExitCode.BUG


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return ExitCode.DONE if argv else ExitCode.USER
    if argv[0] in ("-V", "--version"):
        print(f"launcher {__version__}")
        return ExitCode.DONE
    name, rest = argv[0], argv[1:]
    if name not in VERBS:
        print(_unknown_verb(name), file=sys.stderr)
        return ExitCode.USER
    args = make_parser(name).parse_intermixed_args(rest)
    setup_logging(verbose=args.debug)
    try:
        return load_verb(name)(args)
    except LauncherError as error:
        if args.debug:
            traceback.print_exc()
        show_error(error, in_json=getattr(args, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except SystemExit as error:
        # Rich meets a reader that has gone with an exit of its own, and with exit code 1.
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    except Exception:
        traceback.print_exc()
        print("launcher: this is a bug in launcher, not in what you typed; please report it.", file=sys.stderr)
        return ExitCode.BUG


def load_verb(name: str) -> Callable[[argparse.Namespace], int]:
    """`run` of the verb's module; what it imports may be heavy, so it is loaded only to run."""
    module = importlib.import_module(f"launcher.commands.{_MODULES.get(name, name)}")
    return cast("Callable[[argparse.Namespace], int]", module.run)


def make_parser(name: str) -> argparse.ArgumentParser:
    """The command line of one verb, with the options every verb has."""
    parser = argparse.ArgumentParser(prog=f"launcher {name}", description=VERBS[name], allow_abbrev=False)
    for add in OPTIONS[name]:
        add(parser)
    parser.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    return parser


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [
        "usage: launcher VERB [options] [setting=value ...]",
        "",
        "Fine-tune open language models on one machine or a Slurm cluster.",
    ]
    for title, verbs in _GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}{text}" for name, text in verbs.items())]
    lines += ["", "Start with: launcher check experiment=quickstart", "Options:    launcher VERB --help"]
    return "\n".join(lines)


def _unknown_verb(name: str) -> str:
    near = difflib.get_close_matches(name, VERBS, n=1)
    if near:
        hint = f"did you mean launcher {near[0]}?"
    elif "=" in name:
        hint = f"settings come after a verb: launcher check {name}"
    else:
        hint = "launcher --help lists them."
    return f"launcher: there is no verb {name!r}; {hint}"
