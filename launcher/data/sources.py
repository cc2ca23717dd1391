"""The files that a data configuration names, for training and for validation."""

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

_VALIDATION = ("validation", "valid", "val", "dev", "heldout", "held_out", "eval")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or records in memory."""

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


def find_sources(data: DataConfig, *, download: bool = True) -> Sources:
    """The sources a configuration names; data of the Hub is fetched once, if `download` allows it.

    Raises:
        NotFetched: a Hub data set is not in the cache and `download` is off.
        DataError: everything that cannot be found or read.
    """
    problems: list[Problem] = []
    found = _SourceFinder(data, download, problems)
    weights = [1.0]
    if data.mixture:
        weights = [part.weight for part in data.mixture]
        for number, part in enumerate(data.mixture):
            found.add(f"data.mixture[{number}].path", Source(part.path, format=part.format, part=number))
    elif data.path is not None:
        found.add("data.path", Source(data.path, format=data.format))
    if data.inline:
        found.train.append(Source("data.inline", records=data.inline, format=data.format, part=len(weights)))
        weights.append(1.0)
    if not (data.mixture or data.path or data.inline):
        problems.append(Problem("data.path", None, "no examples given", "Set data.path, data.mixture or data.inline"))
    validation = _validation(data, found)
    if problems:
        raise DataError("the data cannot be found:", problems)
    return Sources(tuple(found.train), tuple(validation), tuple(weights), tuple(found.ignored))


def _validation(data: DataConfig, found: _SourceFinder) -> list[Source]:
    """The validation sources: those configured, or those that came with the training data."""
    split = data.hub_validation_split
    if data.validation_path is not None:
        given = _SourceFinder(data, found.download, found.problems)
        given.add("data.validation_path", Source(data.validation_path, format=data.format), split=split)
        # All of a folder or built-in set given for validation, unless it marks a part of itself.
        return given.validation or given.train
    if split and data.path is not None and data.path.startswith(HUB):
        return [found.fetched(Source(data.path, format=data.format), split)]
    return found.validation


@dataclass(slots=True)
class _SourceFinder:
    """Collects the sources that paths name; what is wrong goes to `problems`."""

    data: DataConfig
    download: bool
    problems: list[Problem]
    train: list[Source] = field(default_factory=list)
    validation: list[Source] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def add(self, key: str, blank: Source, *, split: str | None = None) -> None:
        """Adds the sources that the path `blank.name` names; `split` is read of a Hub data set."""
        text = blank.name
        if text.startswith(HUB):
            self.train.append(self.fetched(blank, split or self.data.hub_split))
        elif text == f"{BUILTIN}next_number":
            train, validation = next_number.generate(self.data.seed)
            self.train.append(replace(blank, records=train))
            # The name is part of the cache key of prepared data, so it stays.
            self.validation.append(replace(blank, name=f"{text}[held out]", records=validation))
        elif text.startswith(BUILTIN):
            self.problems.append(Problem(key, text, "no such built-in data set", f"Write {BUILTIN}next_number"))
        else:
            self._add_path(key, Path(text).expanduser(), blank)

    def fetched(self, blank: Source, split: str) -> Source:
        """A split of the Hub data set `blank.name`."""
        name = blank.name.removeprefix(HUB)
        path = fetch_split(name, split, self.data.hub_revision, download=self.download)
        return replace(blank, name=f"{blank.name}[{split}]", path=path)

    def _add_path(self, key: str, path: Path, blank: Source) -> None:
        types = f"Files read: {', '.join(SUFFIXES)}"
        if path.is_dir():
            files = [
                file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and _is_visible(file, path)
            ]
            if not files:
                self.problems.append(Problem(key, str(path), "the folder holds no data files", types))
            self._add_by_name(files, path, blank)
        elif not path.exists():
            hint = f"Did you mean {HUB}{blank.name}?" if blank.name.count("/") == 1 else "Check the spelling"
            why = f"there is no such file or folder (looked in {Path.cwd()})"
            self.problems.append(Problem(key, blank.name, why, hint))
        elif path.suffix.lower() not in SUFFIXES:
            self.problems.append(Problem(key, blank.name, f"a file of unknown type {path.suffix!r}", types))
        else:
            self.train.append(replace(blank, path=path))

    def _add_by_name(self, files: list[Path], folder: Path, blank: Source) -> None:
        """train*, validation* and test* files go where their names say, so that nothing is trained on by mistake."""
        for file in files:
            relative = file.relative_to(folder)
            names = [part.lower() for part in (*relative.parts[:-1], relative.stem)]
            source = replace(blank, name=str(Path(blank.name) / relative), path=file)
            if any(_begins(name, ("test",)) for name in names):
                self.ignored.append(source.name)
            elif any(_begins(name, _VALIDATION) for name in names):
                self.validation.append(source)
            else:
                self.train.append(source)


def _is_visible(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _begins(name: str, words: tuple[str, ...]) -> bool:
    """Whether the name is one of the words, or one followed by a non-letter (val-00000-of-00001)."""
    return any(name == word or (name.startswith(word) and not name[len(word)].isalpha()) for word in words)
