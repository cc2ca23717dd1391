"""The process that replays a run to W&B: `python -m launcher.tracking.wandb_child RUN_DIR MODE ATTEMPT PIPE`.

It shares nothing with training but files. Training may be killed, and W&B may hang, each without the other noticing.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import threading
import time
from pathlib import Path

from launcher.paths import RunPaths
from launcher.runs.events import EventWriter, read_events, words_of
from launcher.runs.redact import redacted_text
from launcher.tracking.wandb_push import Pusher
from launcher.tracking.wandb_sync import DEFAULT_SERVER, login_page, server_of

POLL_S = 1.0
RETRY_S = 60.0
ORPHAN_GRACE_S = 10.0
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

REFUSED = re.compile(r"\b(?:error|status|code)\W{0,3}40[13]\b|\b40[13] (?:unauthorized|forbidden)", re.IGNORECASE)

logger = logging.getLogger(__name__)


class Parent:
    """Watches the training process: it asks for the end through a pipe, or it is gone."""

    def __init__(self, pipe_fd: int) -> None:
        self.pid = os.getppid()
        self.wants_end = threading.Event()
        self._pipe_fd = pipe_fd
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self.pid:
            readable, _, _ = select.select([self._pipe_fd], [], [], POLL_S)
            if not readable:
                continue
            if os.read(self._pipe_fd, 64):
                # From here the parent waits, and kills us when it has waited long enough.
                self.wants_end.set()
                continue
            break
        self.wants_end.set()
        time.sleep(ORPHAN_GRACE_S)
        os._exit(1)


def main(argv: list[str]) -> int:
    """Replays until the parent asks for the end or dies; 0 when W&B has everything."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    run_dir, mode, attempt, parent = Path(argv[0]), argv[1], int(argv[2]), Parent(int(argv[3]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(10)
    events = EventWriter(RunPaths(run_dir).events, attempt, rank=-1)
    # Attempt 0 is no attempt but `launcher sync`: there is no training whose load could be measured.
    pusher = _open(run_dir, mode, parent, events, is_training=attempt > 0)
    if pusher is None:
        return 1
    try:
        while not parent.wants_end.wait(POLL_S):
            pusher.push()
        pusher.close(failed=_run_failed(run_dir))
    except Exception as error:
        why = _refused(error) or f"W&B stopped ({_brief(error)})"
        _warn(events, f"{why}; `launcher sync {run_dir.name}` sends the rest")
        return 1
    events.write("wandb", mode=mode, url=pusher.url, rows=pusher.rows, complete=True)
    return 0


def _open(run_dir: Path, mode: str, parent: Parent, events: EventWriter, *, is_training: bool) -> Pusher | None:
    """The open W&B run; beside training it is tried again until that ends, because a server may come back."""
    is_warned = False
    while True:
        try:
            pusher = Pusher(run_dir, mode, stats_pid=parent.pid if is_training else None)
        except ImportError as error:
            _warn(events, f"no W&B record: {_brief(error)}; install it with: pip install 'tunelaunch[wandb]'")
            return None
        except Exception as error:
            logger.exception("W&B did not open")
            refused = _refused(error)
            if refused:
                # This process keeps the key it began with, so another try would be refused as well.
                _warn(events, refused, key_refused=True)
                return None
            if not is_warned:
                again = f"; tried again every {RETRY_S:.0f} s while training goes on" if is_training else ""
                _warn(events, f"W&B did not open ({_brief(error)}){again}")
            is_warned = True
        else:
            events.write("wandb", mode=mode, url=pusher.url, complete=False)
            return pusher
        if parent.wants_end.wait(RETRY_S):
            return None


def _refused(error: Exception) -> str:
    """What to do where the server does not take the key; empty for any other error."""
    text = str(error)
    server = server_of(os.environ)
    own = "" if server != DEFAULT_SERVER else ", and for a server of your own set WANDB_BASE_URL"
    status = REFUSED.search(text)
    if status is not None and "403" in status.group():
        return (
            f"W&B refused access (403): the key in WANDB_API_KEY may not write to this project at {server}. Check "
            f"track.wandb_entity and track.wandb_project, or take a key that may ({login_page(server)}){own}"
        )
    if status is not None or type(error).__name__ == "AuthenticationError" or "api_key not configured" in text:
        return (
            f"W&B refused the key{' (401)' if status else ''}: WANDB_API_KEY holds no key of {server}. Set it to "
            f"yours, from {login_page(server)}{own}"
        )
    return ""


def _run_failed(run_dir: Path) -> bool:
    states = words_of(read_events(RunPaths(run_dir).events), "state")
    return bool(states) and states[-1].fields.get("state") == "failed"


def _warn(events: EventWriter, message: str, **fields: object) -> None:
    text = redacted_text(message, os.environ)
    logger.warning("%s", text)
    events.write("warning", source="wandb", message=text, **fields)


def _brief(error: Exception) -> str:
    first_line = (str(error).strip() or "no text").splitlines()[0]
    return f"{type(error).__name__}: {first_line[:200]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
