"""Options that several verbs share, so that they read alike everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, its name, or latest")


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="setting=value", help="experiment=NAME, group=OPTION or section.key=VALUE"
    )
    add_conf_dir(parser)


def add_conf_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conf-dir", type=Path, metavar="DIR", help="folder with further options, laid out like conf/")


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of run directories (default: runs)")


def add_json(parser: argparse.ArgumentParser, text: str = "print one JSON document") -> None:
    parser.add_argument("--json", action="store_true", help=text)
