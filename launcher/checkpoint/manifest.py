"""What a checkpoint holds, by name, size and sha256. It exists when its manifest does and every file matches it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from launcher.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_HASH_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint; `name` is relative to the checkpoint folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TrainState:
    """What the loop needs besides tensors. The position is the number of steps done."""

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
    files: list[FileEntry] = field(default_factory=list)
    time: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def eval_loss(self) -> float | None:
        """Held-out loss of exactly these weights, if it was measured."""
        return self.state.last_eval_loss if self.state.last_eval_step == self.state.step else None

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises: CheckpointError when the text is not a manifest this version reads."""
        try:
            raw = json.loads(text)
            version = raw["format_version"]
            if version != FORMAT_VERSION:
                raise CheckpointError(
                    f"checkpoint format {version}, this launcher reads {FORMAT_VERSION}; use the version that wrote it"
                )
            files = [FileEntry(**entry) for entry in raw.pop("files")]
            manifest = cls(**{**raw, "state": TrainState(**raw["state"]), "files": files})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"not a manifest: {type(error).__name__}: {error}") from error
        for entry in manifest.files:
            if not isinstance(entry.name, str):
                raise CheckpointError(f"not a manifest: {entry.name!r} is no file name")
        if not isinstance(manifest.step, int):
            raise CheckpointError(f"not a manifest: {manifest.step!r} is no step")
        return manifest


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def seal_file(root: Path, path: Path) -> FileEntry:
    """Forces a written file to disk and describes it. Ranks: each its own files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(name=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def read_manifest(folder: Path) -> Manifest:
    """Raises: CheckpointError when it is missing or damaged."""
    path = folder / MANIFEST
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """Every way in which the files differ from the manifest; empty when all is whole. Reads all bytes once."""
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
    # A link to a folder counts as a file: what lies behind it is neither listed here nor seen by rglob.
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
