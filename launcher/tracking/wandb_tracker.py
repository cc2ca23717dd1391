"""Weights & Biases, online or offline."""

from __future__ import annotations

import importlib.util
import netrc
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from launcher.config.schema import TrackConfig, WandbMode
from launcher.errors import UserError
from launcher.runs.metrics import Record
from launcher.tracking.tracker import Cursor, TrackedRun, Tracker, group_of, values_of

if TYPE_CHECKING:
    import wandb

TRAIN_AXIS = "train/global_step"
EVAL_AXIS = "eval/global_step"
DEFAULT_SERVER = "https://api.wandb.ai"
INIT_TIMEOUT_S = 60.0
REFUSED = re.compile(r"\b(?:error|status|code)\W{0,3}40[13]\b|\b40[13] (?:unauthorized|forbidden)", re.IGNORECASE)


class WandbTracker(Tracker):
    title = "W&B"

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder
        self._is_online = run.destination == WandbMode.online.value
        self._run = _open_run(run)
        self.url = str(self._run.url) if self._is_online else None
        # Offline, the cursor decides: the user may have sent files by hand and removed them.
        self.is_new = self._is_online and not self._run.resumed

    @classmethod
    def destination(cls, track: TrackConfig, environment: Mapping[str, str], *, syncing: bool = False) -> str | None:
        if syncing:
            refuse_without_login(environment)
            return WandbMode.online.value
        mode = chosen_mode(track.wandb, environment)
        is_missing = track.wandb is WandbMode.auto and importlib.util.find_spec("wandb") is None
        return None if mode is WandbMode.disabled or is_missing else mode.value

    @classmethod
    def refusal(cls, error: Exception) -> str:
        text = str(error)
        server = server_of(os.environ)
        own = ", and for your own server set WANDB_BASE_URL" if server == DEFAULT_SERVER else ""
        status = REFUSED.search(text)
        if status is not None and "403" in status.group():
            return (
                f"W&B refused access (403): the key in WANDB_API_KEY may not write to this project at {server}. Check "
                f"track.wandb_entity and track.wandb_project, or use a key that may ({login_page(server)}){own}"
            )
        if status is not None or type(error).__name__ == "AuthenticationError" or "api_key not configured" in text:
            return (
                f"W&B refused the key{' (401)' if status else ''}: WANDB_API_KEY holds no key of {server}. Set it to "
                f"yours, from {login_page(server)}{own}"
            )
        return ""

    def recover(self) -> Cursor:
        if self._is_online:
            return Cursor(_whole(self._run.summary.get(TRAIN_AXIS)), _whole(self._run.summary.get(EVAL_AXIS)))
        # W&B's service writes offline files on its own and does not say how far it got. They only repeat
        # metrics.jsonl, so they are made again.
        current = Path(self._run.dir).parent.name
        for folder in self._folder.glob("offline-run-*"):
            if folder.name != current:
                shutil.rmtree(folder, ignore_errors=True)
        return Cursor()

    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            axes = {TRAIN_AXIS: record.step} | ({EVAL_AXIS: record.step} if group_of(record) == "eval" else {})
            self._run.log({**axes, **values_of(record)})

    def close(self, scores: Mapping[str, float], *, failed: bool) -> None:
        self._run.summary.update(dict(scores))
        self._run.finish(exit_code=1 if failed else 0)


TRACKER = WandbTracker


def chosen_mode(mode: WandbMode, environment: Mapping[str, str]) -> WandbMode:
    """`auto` follows WANDB_MODE where it is set, otherwise it is online with WANDB_API_KEY and offline without."""
    if mode is not WandbMode.auto:
        return mode
    asked = environment.get("WANDB_MODE")
    if asked in ("online", "offline", "disabled"):
        return WandbMode(asked)
    return WandbMode.online if environment.get("WANDB_API_KEY") else WandbMode.offline


def refuse_without_login(environment: Mapping[str, str]) -> None:
    """Raises: UserError that says what is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("the wandb package is not installed; install it with: pip install 'tunelaunch[wandb]'")
    server = server_of(environment)
    if environment.get("WANDB_API_KEY") or _in_netrc(server, environment):
        return
    raise UserError(
        f"WANDB_API_KEY is not set, so {server} cannot identify you. Copy your key from {login_page(server)} and run: "
        "export WANDB_API_KEY=..."
    )


def server_of(environment: Mapping[str, str]) -> str:
    """W&B's address; WANDB_BASE_URL sets another server."""
    return environment.get("WANDB_BASE_URL") or DEFAULT_SERVER


def login_page(server: str) -> str:
    """The page of that server that shows the user's key."""
    return "https://wandb.ai/authorize" if server == DEFAULT_SERVER else f"{server.rstrip('/')}/authorize"


def _in_netrc(server: str, environment: Mapping[str, str]) -> bool:
    path = environment.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _open_run(tracked: TrackedRun) -> wandb.Run:
    import wandb

    is_sync = tracked.training_pid is None
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_save_requirements=False,
        init_timeout=INIT_TIMEOUT_S,
        x_disable_stats=is_sync,
        x_disable_machine_info=is_sync,
        x_stats_pid=tracked.training_pid or os.getpid(),
    )
    run = wandb.init(
        id=tracked.run_id,
        resume="allow",
        mode="online" if tracked.destination == WandbMode.online.value else "offline",
        project=tracked.track.wandb_project,
        entity=tracked.track.wandb_entity,
        name=tracked.paths.root.name,
        tags=tracked.track.tags,
        config=dict(tracked.settings),
        dir=tracked.paths.root,
        settings=settings,
    )
    run.define_metric(TRAIN_AXIS)
    run.define_metric("train/*", step_metric=TRAIN_AXIS)
    run.define_metric("eval/*", step_metric=TRAIN_AXIS)
    run.define_metric("eval/loss", step_metric=TRAIN_AXIS, summary="min")
    return run


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
