"""Which files a data configuration names, and on which side (training or held-out) each one stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.config.schema import DataConfig, DataFormat
from launcher.data.content_hash import file_sha256
from launcher.data.hub import fetch_split
from launcher.demo import next_number
from launcher.errors import DataError, Problem

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BUILTIN = "builtin:"
HUB = "hub:"

_HELD_OUT = ("validation", "valid", "val", "dev", "heldout", "held_out", "eval")
_TEST = ("test",)


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or records that lie in memory."""

    name: str
    """As findings show it."""
    path: Path | None = None
    records: Sequence[Mapping[str, object]] = ()
    format: DataFormat = DataFormat.auto
    part: int = 0
    """Which part of a mixture it belongs to."""

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path else 100 * len(self.records)

    def content_key(self) -> str:
        """Hash of the content."""
        if self.path is not None:
            return file_sha256(self.path)
        return hashlib.sha256(json.dumps(list(self.records), sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Sources:
    """All sources of a data configuration."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    weights: tuple[float, ...]
    """One for each part of a mixture; (1.0,) without one."""
    ignored: tuple[str, ...] = ()
    """Test files found in a data folder, not read."""

    def all(self) -> tuple[Source, ...]:
        return self.train + self.validation


@dataclass(slots=True)
class _Found:
    """What was found so far, and what decides how to look."""

    data: DataConfig
    download: bool
    train: list[Source] = field(default_factory=list)
    validation: list[Source] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_sources(data: DataConfig, *, download: bool = True) -> Sources:
    """The sources a configuration names; what lies on the Hub is fetched once, if `download` allows it.

    Raises:
        NotFetched: a Hub data set is not in the cache and `download` is off.
        DataError: everything that cannot be found or read.
    """
    problems: list[Problem] = []
    found = _Found(data, download)
    weights = [1.0]
    if data.mixture:
        weights = [part.weight for part in data.mixture]
        for number, part in enumerate(data.mixture):
            _resolve(f"data.mixture[{number}].path", part.path, part.format, number, found, problems)
    elif data.path is not None:
        _resolve("data.path", data.path, data.format, 0, found, problems)
    if data.inline:
        found.train.append(Source("data.inline", records=data.inline, format=data.format, part=len(weights)))
        weights.append(1.0)
    if not (data.mixture or data.path or data.inline):
        problems.append(Problem("data.path", None, "no examples given", "Set data.path, data.mixture or data.inline"))
    held_out = _validation(data, found, problems)
    if problems:
        raise DataError("the data cannot be found:", problems)
    return Sources(tuple(found.train), tuple(held_out), tuple(weights), tuple(found.ignored))


def _validation(data: DataConfig, found: _Found, problems: list[Problem]) -> list[Source]:
    """The held-out sources: those asked for, else those that came with the training data."""
    if data.validation_path is not None:
        given = _Found(data, found.download)
        _resolve("data.validation_path", data.validation_path, data.format, 0, given, problems, held_out=True)
        # A folder or built-in set given for validation: all of it is held out, unless it marks a part of itself.
        return given.validation or given.train
    if data.hub_validation_split and data.path is not None and data.path.startswith(HUB):
        path = _fetch(data.path, data.hub_validation_split, found)
        return [Source(f"{data.path}[{data.hub_validation_split}]", path, format=data.format)]
    return found.validation


def _resolve(
    key: str,
    text: str,
    kind: DataFormat,
    part: int,
    found: _Found,
    problems: list[Problem],
    *,
    held_out: bool = False,
) -> None:
    """Adds the sources that one path names."""
    blank = Source(text, format=kind, part=part)
    if text.startswith(BUILTIN):
        if text != f"{BUILTIN}next_number":
            problems.append(Problem(key, text, "no such built-in data set", f"Write {BUILTIN}next_number"))
            return
        train, heldout = next_number.generate(found.data.seed)
        found.train.append(replace(blank, records=train))
        found.validation.append(replace(blank, name=f"{text}[held out]", records=heldout))
    elif text.startswith(HUB):
        own_split = found.data.hub_validation_split if held_out else None
        split = own_split or found.data.hub_split
        found.train.append(replace(blank, name=f"{text}[{split}]", path=_fetch(text, split, found)))
    else:
        _resolve_path(key, Path(text).expanduser(), blank, found, problems)


def _fetch(text: str, split: str, found: _Found) -> Path:
    return fetch_split(text.removeprefix(HUB), split, found.data.hub_revision, download=found.download)


def _resolve_path(key: str, path: Path, blank: Source, found: _Found, problems: list[Problem]) -> None:
    known = ", ".join(SUFFIXES)
    if path.is_dir():
        files = [
            file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and _is_visible(file, path)
        ]
        if not files:
            problems.append(Problem(key, str(path), "the folder holds no data files", f"Files read: {known}"))
        _sort_by_name(files, path, blank, found)
    elif not path.exists():
        hint = f"Did you mean {HUB}{blank.name}?" if blank.name.count("/") == 1 else "Check the spelling"
        problems.append(Problem(key, blank.name, f"there is no such file or folder (looked in {Path.cwd()})", hint))
    elif path.suffix.lower() not in SUFFIXES:
        problems.append(Problem(key, blank.name, f"a file of unknown type {path.suffix!r}", f"Files read: {known}"))
    else:
        found.train.append(replace(blank, path=path))


def _is_visible(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _sort_by_name(files: list[Path], folder: Path, blank: Source, found: _Found) -> None:
    """train*, validation* and test* files go where their names say, so that held-out data is not trained on."""
    for file in files:
        relative = file.relative_to(folder)
        words = [part.lower() for part in (*relative.parts[:-1], relative.stem)]
        source = replace(blank, name=str(Path(blank.name) / relative), path=file)
        if any(_begins(word, _TEST) for word in words):
            found.ignored.append(source.name)
        elif any(_begins(word, _HELD_OUT) for word in words):
            found.validation.append(source)
        else:
            found.train.append(source)


def _begins(word: str, names: tuple[str, ...]) -> bool:
    """Whether the word is one of the names, or one followed by something that is no letter (val-00000-of-00001)."""
    return any(word == name or (word.startswith(name) and not word[len(name)].isalpha()) for name in names)
