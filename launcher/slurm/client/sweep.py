"""Sweeps: runs that differ in a few settings, submitted as one job array. sweep.json lists them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]

from launcher.errors import Problem, RunError, UserError
from launcher.files import find_record, write_json
from launcher.runs.run_dir import SWEEP_FILE

MAX_MEMBERS = 1000
_OPENING, _CLOSING = "([{", ")]}"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a sweep."""

    index: int
    """Its task in the job array."""
    run: str
    """Its folder inside the sweep's."""
    overrides: list[str]
    """All overrides it was composed from."""
    differs: dict[str, str]
    """The settings in which members differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The content of sweep.json."""

    key: str
    """In the comment of the job array (`launcher:KEY`)."""
    job_id: str = ""
    """The job array; empty until it is queued."""
    throttle: int = 0
    """Members that may run at once; 0: all."""
    argv: list[str] = field(default_factory=list)
    submitted: str = ""
    members: list[Member] = field(default_factory=list)


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Writes or replaces sweep.json, whole."""
    write_json(folder / SWEEP_FILE, sweep, mode=0o600)


def read_sweep(folder: Path) -> Sweep | None:
    """None if there is no sweep."""
    return find_record(Sweep, folder / SWEEP_FILE)


def member_dir(folder: Path, index: int) -> Path:
    """The run directory of a task of the job array.

    Raises:
        RunError: the folder holds no sweep, or the sweep has no such member.
    """
    sweep = read_sweep(folder)
    if sweep is None:
        raise RunError(f"{folder} holds no {SWEEP_FILE}: it is not the folder of a sweep")
    found = next((member for member in sweep.members if member.index == index), None)
    if found is None:
        raise RunError(f"{folder}: the sweep has {len(sweep.members)} members, and none has the index {index}")
    return folder / found.run


def expand(overrides: list[str], file: Path | None = None) -> list[list[str]]:
    """The overrides of each member of a sweep; one member means no sweep.

    Comma lists multiply, the last one varies fastest; so do the settings of a file that maps each to its values. A file
    that holds lists of settings gives its members one by one. A comma inside brackets or quotes does not make a list.

    Raises:
        UserError: the file cannot be used, or there are too many members.
    """
    typed = _product([_choices(override) for override in overrides])
    of_file = [[]] if file is None else _from_file(file)
    return [[*common, *own] for common, own in _product([typed, of_file])]


def varying_settings(members: list[list[str]]) -> list[dict[str, str]]:
    """For each member the settings that are not the same in all of them."""
    settings = [dict(override.partition("=")[::2] for override in member) for member in members]
    keys = dict.fromkeys(key for member in settings for key in member)
    varied = [key for key in keys if len({member.get(key) for member in settings}) > 1]
    return [{key: member[key] for key in varied if key in member} for member in settings]


def member_problems(found: list[list[Problem]], differs: list[dict[str, str]]) -> list[Problem]:
    """The problems of all members: those that all have as they are, others with their member."""
    common = [problem for problem in found[0] if all(problem in one for one in found)]
    own = []
    for index, problems in enumerate(found):
        label = ", ".join(f"{key}={value}" for key, value in differs[index].items())
        for problem in problems:
            if problem not in common:
                own.append(replace(problem, key=f"[{index:02d}: {label}] {problem.key}"))
    return common + own


def idle_apart(found: list[list[Problem]], idle: list[list[Problem]]) -> tuple[list[list[Problem]], list[str]]:
    """Turns problems in `idle` into warnings: a setting without effect in one member is meant for another one.

    It stays a problem if it has no effect in any member.
    """
    everywhere = set.intersection(*({problem.key for problem in problems} for problems in idle))
    kept, warnings = [], []
    for problems, own in zip(found, idle, strict=True):
        excused = [problem for problem in problems if problem in own and problem.key not in everywhere]
        kept.append([problem for problem in problems if problem not in excused])
        warnings += [f"{problem.key} = {problem.value} has no effect: {problem.why}" for problem in excused]
    return kept, list(dict.fromkeys(warnings))


def _choices(override: str) -> list[str]:
    key, equals, text = override.partition("=")
    return [f"{key}={value}" for value in split_list(text)] if equals else [override]


def split_list(text: str) -> list[str]:
    """Values between commas outside brackets and quotes; the text itself where brackets or quotes do not close."""
    values, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if escaped or quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING + _CLOSING:
            depth += 1 if letter in _OPENING else -1
        elif letter == "," and depth == 0:
            values.append("")
            continue
        values[-1] += letter
    return [text] if quote or depth else values


def _product(choices: list[list[T]]) -> list[list[T]]:
    count = math.prod(map(len, choices))
    if count > MAX_MEMBERS:
        raise UserError(f"this sweep has {count:,} members; at most {MAX_MEMBERS:,} are submitted at once")
    return [list(chosen) for chosen in product(*choices)]


def _from_file(file: Path) -> list[list[str]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--sweep {file} cannot be read: {error}") from error
    if isinstance(content, dict) and content:
        lists = {str(key): value if isinstance(value, list) else [value] for key, value in content.items()}
        return _product([[f"{key}={_as_typed(value)}" for value in values] for key, values in lists.items()])
    if isinstance(content, list) and content:
        return [_member(file, entry) for entry in content]
    raise UserError(
        f"--sweep {file}: expected a mapping of settings to lists of values, or a list of lists of settings"
    )


def _member(file: Path, entry: object) -> list[str]:
    overrides = [entry] if isinstance(entry, str) else entry
    if not isinstance(overrides, list) or not all(isinstance(item, str) and "=" in item for item in overrides):
        raise UserError(f"--sweep {file}: {entry!r} is not a list of settings such as [optim.lr=1e-4, seed=1]")
    return overrides


def _as_typed(value: object) -> str:
    """A YAML value as typed after `key=`."""
    if value is None:
        return "null"
    if isinstance(value, str) and len(split_list(value)) > 1 and not set("'\\") & set(value):
        return f"'{value}'"
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)
