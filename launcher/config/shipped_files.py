"""Finds conf/ and slurm/: at the top of a checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import LauncherError

PACKAGE = Path(__file__).resolve().parents[1]


def share_dir(name: str) -> Path:
    """Folder of shipped files (`conf` or `slurm`); in launcher/_share/ of a wheel, next to launcher/ in a checkout."""
    for folder in (PACKAGE / "_share" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise LauncherError(
        f"the {name}/ folder is missing from this installation of launcher ({PACKAGE}); install it again"
    )
