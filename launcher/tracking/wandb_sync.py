"""Sends a whole run to W&B after the fact, from metrics.jsonl: what the live replay could not send, or all of it."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from launcher.config.schema import WandbMode
from launcher.errors import UserError
from launcher.paths import RunPaths
from launcher.runs.events import read_events
from launcher.tracking.replay import start

DEFAULT_SERVER = "https://api.wandb.ai"


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync did."""

    rows: int
    """Rows sent now; the others were there."""
    url: str


def sync(run_dir: Path, *, timeout_s: float) -> Synced:
    """Sends every row W&B lacks and waits until it has them, at most `timeout_s`.

    Raises: UserError without wandb or a login, when the server cannot be reached or refuses, or after the time-out.
    """
    refuse_without_login(os.environ)
    paths = RunPaths(run_dir)
    known = len(read_events(paths.events))
    is_complete = start(run_dir, WandbMode.online).finish(timeout_s)
    said = read_events(paths.events)[known:]
    told = [event.fields for event in said if event.event == "wandb"]
    if is_complete and told:
        rows = told[-1].get("rows")
        return Synced(rows=rows if isinstance(rows, int) else 0, url=str(told[-1].get("url")))
    warnings = [event.fields for event in said if event.event == "warning"]
    why = str(warnings[-1].get("message")) if warnings else "The sending process died"
    server = server_of(os.environ)
    check = f" Check that this machine reaches {server}, and that WANDB_API_KEY is a key of it ({login_page(server)})."
    if warnings and warnings[-1].get("key_refused"):  # its message says what to do
        check = ""
    raise UserError(
        f"W&B did not take the run. {why}.{check} Details are in "
        f"{paths.wandb / 'replay.log'}. A new `launcher sync {run_dir.name}` goes on where this one stopped"
    )


def refuse_without_login(environment: Mapping[str, str]) -> None:
    """UserError that says what is missing before anything is tried."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("the wandb package is not installed; install it with: pip install 'tunelaunch[wandb]'")
    server = server_of(environment)
    if environment.get("WANDB_API_KEY") or _in_netrc(server, environment):
        return
    raise UserError(
        f"WANDB_API_KEY is not set, so {server} does not know you. Copy your key from {login_page(server)} and run: "
        "export WANDB_API_KEY=..."
    )


def server_of(environment: Mapping[str, str]) -> str:
    """W&B's address: WANDB_BASE_URL for a server of one's own."""
    return environment.get("WANDB_BASE_URL") or DEFAULT_SERVER


def login_page(server: str) -> str:
    """Where that server shows one's key."""
    return "https://wandb.ai/authorize" if server == DEFAULT_SERVER else f"{server.rstrip('/')}/authorize"


def _in_netrc(server: str, environment: Mapping[str, str]) -> bool:
    path = environment.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
