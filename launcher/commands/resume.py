"""launcher resume: the next attempt of a run that is there; the same as `launcher train --run RUN`."""

from launcher.commands.train import continue_run as run

__all__ = ["run"]
