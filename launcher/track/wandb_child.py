"""The process that replays a run to W&B: `python -m launcher.track.wandb_child RUN_DIR MODE ATTEMPT PIPE`.

It shares nothing with training but files. Training may be killed, and W&B may hang, each without the other noticing.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from launcher.config.paths import RunPaths
from launcher.track.events import EventWriter, read_events, words_of
from launcher.track.redact import redacted_text
from launcher.track.wandb_push import Pusher

POLL_S = 1.0
RETRY_S = 60.0
ORPHAN_GRACE_S = 10.0
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

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
    pusher = _open(run_dir, mode, parent, events, stats_pid=parent.pid if attempt else None)
    if pusher is None:
        return 1
    try:
        while not parent.wants_end.wait(POLL_S):
            pusher.push()
        pusher.close(failed=_run_failed(run_dir))
    except Exception as error:
        _warn(events, f"W&B stopped ({_brief(error)}); `launcher sync {run_dir.name}` sends the rest")
        return 1
    events.write("wandb", mode=mode, url=pusher.url, rows=pusher.rows, complete=True)
    return 0


def _open(run_dir: Path, mode: str, parent: Parent, events: EventWriter, *, stats_pid: int | None) -> Pusher | None:
    """The open W&B run; tries again until training ends, because a server may come back."""
    is_warned = False
    while True:
        try:
            pusher = Pusher(run_dir, mode, stats_pid=stats_pid)
        except ImportError as error:
            _warn(events, f"no W&B record: {_brief(error)}; install it with: pip install 'tunelaunch[wandb]'")
            return None
        except Exception as error:
            logger.exception("W&B did not open")
            if not is_warned:
                _warn(
                    events, f"W&B did not open ({_brief(error)}); training goes on, trying again every {RETRY_S:.0f} s"
                )
            is_warned = True
        else:
            events.write("wandb", mode=mode, url=pusher.url, complete=False)
            return pusher
        if parent.wants_end.wait(RETRY_S):
            return None


def _run_failed(run_dir: Path) -> bool:
    states = words_of(read_events(RunPaths(run_dir).events), "state")
    return bool(states) and states[-1].fields.get("state") == "failed"


def _warn(events: EventWriter, message: str) -> None:
    text = redacted_text(message, os.environ)
    logger.warning("%s", text)
    events.write("warning", source="wandb", message=text)


def _brief(error: Exception) -> str:
    first_line = (str(error).strip() or "no text").splitlines()[0]
    return f"{type(error).__name__}: {first_line[:200]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
