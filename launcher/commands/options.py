"""The arguments and options of every verb. Kept apart from the verbs, so that `--help` loads none of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

AddArgument = Callable[[argparse.ArgumentParser], object]


def _arg(*names: str, **settings: Any) -> AddArgument:
    """An argument or option, as argparse's add_argument takes it."""
    return lambda parser: parser.add_argument(*names, **settings)


def _flag(*names: str, help: str) -> AddArgument:
    return _arg(*names, action="store_true", help=help)


def _text(name: str, metavar: str, help: str, default: str | None = None, **settings: Any) -> AddArgument:
    if default is not None:
        help += f" (default: {default})"
    return _arg(name, default=default, metavar=metavar, help=help, **settings)


def _number(
    name: str, help: str, default: float | None = None, *, type: Callable[[str], float] = int, metavar: str = "N"
) -> AddArgument:
    if default is not None:
        help += f" (default: {default:g})"
    return _arg(name, type=type, default=default, metavar=metavar, help=help)


def _seconds(name: str, default: float, help: str) -> AddArgument:
    return _number(name, help, default, type=float, metavar="S")


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return count


def _one_model(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base-only", action="store_true", help="ask the base model only")
    which.add_argument("--tuned-only", action="store_true", help="ask the tuned model only")


def _settings(help: str) -> AddArgument:
    return _arg("overrides", nargs="*", metavar="setting=value", help=help)


def _step(purpose: str) -> AddArgument:
    return _number("--step", f"checkpoint to {purpose} (default: the newest valid one)")


DEFAULT_SHOWN = 3

_RUN = _text("run", "RUN", "run directory, its name, or latest")
_RUN_OR_SWEEP = "run directory, its name, latest, or the name of a sweep"
_SETTINGS = _settings("experiment=NAME, group=OPTION or section.key=VALUE")
_CONF_DIR = _text("--conf-dir", "DIR", "folder with further options, laid out like conf/", type=Path)
_RUNS_DIR = _text("--runs-dir", "DIR", "folder of run directories", "runs")
_JSON = _flag("--json", help="print one JSON document")
_JSON_AT_END = _flag("--json", help="print one JSON document at the end")

OPTIONS: dict[str, tuple[AddArgument, ...]] = {
    "check": (_SETTINGS, _CONF_DIR, _flag("--cfg", help="print every setting of the run as YAML"), _JSON),
    "prepare": (
        _SETTINGS,
        _CONF_DIR,
        _number("--show", f"examples to show (default: {DEFAULT_SHOWN}; 0 with --json)", type=_count),
        _flag("--dry-run", help="show what would be prepared; do nothing"),
        _JSON,
    ),
    "train": (
        _SETTINGS,
        _text("--run", "RUN", "continue this run (directory, name, or latest)"),
        _text("--join", "RUN", "join a run that spans several hosts (cluster.hosts)"),
        _flag("--ssh", help="start the other hosts of cluster.hosts over ssh (or $LAUNCHER_REMOTE_SHELL)"),
        _CONF_DIR,
        _flag("--dry-run", help="plan the run and prepare its data; create and start nothing"),
        _JSON_AT_END,
        _RUNS_DIR,
    ),
    "submit": (
        _settings("experiment=NAME, group=OPTION or section.key=VALUE[,VALUE]"),
        _text("--run", "RUN", "queue the next attempt of this run (directory, name, or latest)"),
        _CONF_DIR,
        _text("--stages", "LIST", "jobs to queue one after another: prepare,train,export,eval", "train"),
        _text("--sweep", "FILE", "YAML file that maps settings to lists of values, or lists the members", type=Path),
        _arg("--throttle", type=int, default=0, metavar="N", help="members of a sweep to run at once (default: all)"),
        _flag("--dry-run", help="show the plan and the sbatch commands; create and queue nothing"),
        _flag("-v", "--verbose", help="with --dry-run: show the batch script and the full plan"),
        _JSON,
        _RUNS_DIR,
    ),
    "resume": (_RUN, _flag("--dry-run", help="show where it would resume; start nothing"), _JSON_AT_END, _RUNS_DIR),
    "status": (
        _arg("run", nargs="?", metavar="RUN", help=f"{_RUN_OR_SWEEP} (default: all runs)"),
        _RUNS_DIR,
        _flag("--watch", help="refresh until RUN finishes, or until Ctrl-C"),
        _seconds("--interval", 2.0, "refresh interval of --watch in seconds"),
        _JSON,
    ),
    "logs": (
        _RUN,
        _flag("-f", "--follow", help="follow until the run ends, across requeues and new attempts"),
        _number("--rank", "only this rank (default: the job and all ranks, each line prefixed)"),
        _number("--attempt", "only this attempt; 0 for all (default: the newest)"),
        _arg("-n", "--lines", type=int, metavar="N", help="only the last N lines of each rank"),
        _flag("--json", help="print one JSON document: a list of {attempt, rank, lines}"),
        _RUNS_DIR,
    ),
    "cancel": (
        _arg("run", metavar="RUN", help=_RUN_OR_SWEEP),
        _flag("--now", help="kill at once; unsaved steps are lost"),
        _seconds("--wait", 60.0, "seconds to wait for the run to stop"),
        _flag("--dry-run", help="show what would be stopped; change nothing"),
        _JSON,
        _RUNS_DIR,
    ),
    "verify": (_RUN, _JSON, _RUNS_DIR),
    "export": (
        _RUN,
        _text("--to", "DIR", "folder to write; must be new or empty", required=True),
        _flag("--merge", help="merge the adapter into the base model and write all weights"),
        _step("export"),
        _arg(
            "--dtype",
            choices=["fp32", "bf16", "fp16"],
            help="dtype of the weights (default: the base model's; fp32 for an unmerged adapter)",
        ),
        _flag("--dry-run", help="run every check; write nothing"),
        _JSON,
        _RUNS_DIR,
    ),
    "generate": (
        _RUN,
        _text(
            "prompt", "PROMPT", "the prompt, or for a run on plain text the text to continue; - reads standard input"
        ),
        _text("--system", "TEXT", "system message (default: the run's, if it has one)"),
        _number("--max-new-tokens", "longest answer in tokens", 256),
        _one_model,
        _step("use"),
        _JSON,
        _RUNS_DIR,
    ),
    "eval": (
        _RUN,
        _number("--limit", "validation examples to use (default: all)"),
        _number("--shots", "worked examples in the few-shot prompt", 5, metavar="K"),
        _text("--conditions", "LIST", "comma list of what to measure", "zero_shot,few_shot,retrieval,tuned"),
        _number("--max-new-tokens", "longest answer in tokens (default: slightly over the longest reference answer)"),
        _step("evaluate"),
        _JSON,
        _RUNS_DIR,
    ),
    "report": (_RUN, _JSON, _flag("--open", help="open the page in a browser"), _RUNS_DIR),
    "serve": (
        _RUN,
        _number("--port", "port to listen on", 8000),
        _arg(
            "--host",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="address to listen on (default: 127.0.0.1, this host only)",
        ),
        _arg("--engine", choices=["vllm", "transformers"], help="server to use (default: vllm if installed)"),
        _step("serve"),
        _arg(
            "--server-option",
            action="append",
            default=[],
            metavar="WORD",
            help="extra argument for the server, such as --server-option=--max-model-len=4096; repeatable",
        ),
        _flag("--dry-run", help="show the command; write and start nothing"),
        _flag("--json", help="with --dry-run: print one JSON document"),
        _RUNS_DIR,
    ),
    "doctor": (
        _settings("cluster=SITE, cluster.nodes=N, runs_dir=DIR, ..."),
        _CONF_DIR,
        _flag("--no-job", help="check from this host only; queue no job"),
        _seconds("--wait", 300.0, "seconds to wait for the job, time in the queue included"),
        _flag("--dry-run", help="show the job; create and queue nothing"),
        _JSON,
    ),
    "sync": (
        _RUN,
        _seconds("--timeout-s", 600.0, "give up after S seconds"),
        _flag("--dry-run", help="show what would be sent; send nothing"),
        _JSON,
        _RUNS_DIR,
    ),
}
