"""The list of a checkpoint's files with size and sha256; a checkpoint exists when its manifest does and all match."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.errors import CheckpointError, RecordError
from launcher.files import as_json, read_record

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint; `name` is relative to the checkpoint folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TrainState:
    """The state of the loop besides tensors. The position is the number of steps done."""

    step: int
    total_tokens: int = 0
    last_eval_step: int = 0
    last_eval_loss: float | None = None
    best_eval_loss: float | None = None
    best_step: int | None = None
    evals_since_best: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written last, by rank 0, after every rank has fsynced its files."""

    run_id: str
    attempt: int
    world_size: int
    strategy: str
    method: str
    config_hash: str
    state: TrainState
    files: list[FileEntry]
    time: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def eval_loss(self) -> float | None:
        """Validation loss of exactly these weights, if it was measured."""
        return self.state.last_eval_loss if self.state.last_eval_step == self.state.step else None

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def to_json(self) -> str:
        return json.dumps(as_json(self), indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True, slots=True)
class _Format:
    """The part of a manifest that every version has."""

    format_version: object


def sha256_file(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_file(root: Path, path: Path) -> FileEntry:
    """Forces a written file to disk and describes it. Ranks: each its own files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(name=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def read_manifest(folder: Path) -> Manifest:
    """Raises: CheckpointError when it is missing, damaged, or of a format that this version does not read."""
    path = folder / MANIFEST
    try:
        version = read_record(_Format, path).format_version
        if version == FORMAT_VERSION:
            return read_record(Manifest, path)
    except (OSError, RecordError) as error:
        raise CheckpointError(str(error)) from error
    raise CheckpointError(
        f"{path}: checkpoint format {version}, this launcher reads {FORMAT_VERSION}; use the version that wrote it"
    )


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """Every difference between the files and the manifest; empty when all match. Reads all bytes once."""
    found: list[str] = []
    for entry in manifest.files:
        relative = PurePosixPath(entry.name)
        if relative.is_absolute() or ".." in relative.parts:
            found.append(f"{entry.name}: points outside the checkpoint")
            continue
        try:
            problem = _file_damage(folder / relative, entry)
        except OSError as error:
            problem = f"cannot be read: {error}"
        if problem is not None:
            found.append(f"{entry.name}: {problem}")
    listed = {entry.name for entry in manifest.files} | {MANIFEST}
    # A link to a folder counts as a file, because rglob does not follow it.
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    found.extend(f"{name}: not in the manifest" for name in sorted(present - listed))
    return found


def _file_damage(path: Path, entry: FileEntry) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "missing"
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        return f"{size_bytes} bytes, manifest says {entry.size_bytes}"
    return None if sha256_file(path) == entry.sha256 else "content does not match its sha256"
