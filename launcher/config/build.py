"""Builds the schema's dataclasses from plain values (YAML or command line): strict, and reports every problem at once.

OmegaConf's own structured configs stop at the first problem and convert freely (1 to "1", "on" to True, "${...}" to
whatever a resolver returns). A run that costs GPU-days needs the opposite.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from launcher.config.foreign_settings import VAGUE_NAMES, answer, foreign_names
from launcher.config.limits import Limits
from launcher.errors import Problem
from launcher.files import as_json, as_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_INVALID = object()
# Similarity ratios of difflib: the least for a suggestion, the bonus of the same section, the least for a typo.
_MIN_SIMILARITY = 0.78
_SAME_SECTION = 0.1
_TYPO_SIMILARITY = 0.85
_MIN_PREFIX_CHARS = 4
_LIST_SETTINGS = "`launcher check --cfg` lists every setting"


@cache
def field_types(cls: type[DataclassInstance]) -> dict[str, Any]:
    """Resolved type of each field, by name; without limits."""
    hints = get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in fields(cls)}


@cache
def field_limits(cls: type[DataclassInstance]) -> dict[str, Limits]:
    """Limits of the number fields that have them, by name."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for option in (hint, *get_args(hint)):  # limits may be inside `... | None`
            if get_origin(option) is Annotated:
                found[name] = cast("Limits", option.__metadata__[0])
    return found


def leaf_types(cls: type[DataclassInstance], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every setting, sections excluded."""
    for name, hint in field_types(cls).items():
        if is_dataclass(hint):
            yield from leaf_types(cast("type[DataclassInstance]", hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def setting(config: object, key: str) -> object:
    """Value at a dotted key."""
    return attrgetter(key)(config)


def problem_at(config: object, key: str, why: str, hint: str = "") -> Problem:
    """A problem of the value at a dotted key."""
    return Problem(key, as_json(setting(config, key)), why, hint)


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known dotted key whose last part is most similar, the same section preferred; None if none is close."""
    section, _, leaf = key.rpartition(".")

    def similarity(name: str) -> float:
        own_section, _, own = name.rpartition(".")
        ratio = difflib.SequenceMatcher(None, leaf, own).ratio()
        if section == own_section and len(leaf) >= _MIN_PREFIX_CHARS and own.startswith(f"{leaf}_"):
            ratio = max(ratio, _MIN_SIMILARITY)
        return ratio + (_SAME_SECTION if section == own_section else 0.0)

    best = max(known, key=similarity, default=None)
    return best if best is not None and similarity(best) >= _MIN_SIMILARITY else None


def unknown_key(key: str, value: object, known: list[str]) -> Problem:
    """The problem of a key that is not in the schema."""
    return Problem(key, value, "there is no such setting", _replacement(key, known))


def _replacement(key: str, known: list[str]) -> str:
    """What to write instead: another setting, or where all are listed."""
    if "[" in key:  # inside an item of a mixture
        return _replacement_in_list(key, known)
    if hint := answer(key):
        return hint
    if near := nearest_key(key, known):
        return f"Did you mean {near}?"
    leaf = key.rpartition(".")[2]
    typos = [] if leaf in VAGUE_NAMES else difflib.get_close_matches(leaf, foreign_names(), 1, _TYPO_SIMILARITY)
    return answer(typos[0]) if typos else _LIST_SETTINGS


def _replacement_in_list(key: str, known: list[str]) -> str:
    whole = key.partition("[")[0]
    if whole in known:
        return f"Give the whole list: {whole}=[first,second]"
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    if near := nearest_key(key, siblings):
        return f"Did you mean {near}?"
    return f"Choose from: {', '.join(name.rpartition('.')[2] for name in siblings)}" if siblings else _LIST_SETTINGS


def one_of(value: object, choices: list[str]) -> str:
    """Hint for a value that is not among `choices`; suggests the nearest one."""
    near = difflib.get_close_matches(str(value), choices, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Choose one of: {', '.join(choices)}"


def build(cls: type[T], values: Mapping[str, object], problems: list[Problem], *, complete: bool = False) -> T:
    """An instance of `cls` from plain values; appends to `problems` whatever does not fit.

    A field with a problem keeps its default, so that rules across sections can still be checked on the result.
    With `complete`, leaving out a field is a problem even if it has a default.
    """
    return cast("T", _Builder(problems, complete).section(cls, values, ""))


class _Builder:
    """Converts values to the types of the schema and collects the problems."""

    def __init__(self, problems: list[Problem], complete: bool) -> None:
        self._problems = problems
        self._complete = complete

    def section(self, cls: type[DataclassInstance], values: Mapping[str, object], prefix: str) -> DataclassInstance:
        hints = field_types(cls)
        known = [prefix + name for name in hints]
        self._problems += [unknown_key(f"{prefix}{name}", values[name], known) for name in values if name not in hints]
        arguments: dict[str, Any] = {}
        for spec in fields(cls):
            key, hint = prefix + spec.name, hints[spec.name]
            if spec.name in values:
                value = self._value(hint, values[spec.name], key)
            elif self._complete:
                value = self._invalid(key, None, "is missing")
            elif is_dataclass(hint):  # an empty section still reports its required values
                value = self._value(hint, {}, key)
            else:
                default = _default(spec)
                value = self._required(key) if default == MISSING else default
            arguments[spec.name] = _default(spec) if value is _INVALID else value
        return cls(**arguments)

    def _value(self, hint: Any, value: object, key: str) -> object:
        if value == MISSING and isinstance(value, str):
            return self._required(key)
        if get_origin(hint) in (Union, types.UnionType):
            option = next(option for option in get_args(hint) if option is not type(None))
            return None if value is None else self._value(option, value, key)
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                return self._invalid(key, value, "must be a section of settings", f"Set its keys: {key}.NAME=VALUE")
            return self.section(cast("type[DataclassInstance]", hint), cast("Mapping[str, object]", value), f"{key}.")
        if get_origin(hint) is list:
            if not isinstance(value, list):
                return self._invalid(key, value, "must be a list", f"Write {key}=[first,second]")
            items = [self._value(get_args(hint)[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
            return [item for item in items if item is not _INVALID]
        if get_origin(hint) is dict:
            if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
                return self._invalid(key, value, "must be a mapping with text keys", "Write {name: value, ...}")
            return as_plain(value)
        if isinstance(hint, type) and issubclass(hint, Enum):
            choices = [str(member.value) for member in hint]
            if isinstance(value, str) and value in choices:
                return hint(value)
            return self._invalid(key, value, "is not one of the choices", one_of(value, choices))
        if hint is float and _is_finite(value):
            return float(cast("float", value))
        if hint is Any or (type(value) is hint and hint is not float):
            return value
        return self._invalid(key, value, f"must be {_DESCRIPTIONS[hint]}")

    def _required(self, key: str) -> object:
        return self._invalid(key, MISSING, "must be given", f"Add {key}=VALUE")

    def _invalid(self, key: str, value: object, why: str, hint: str = "") -> object:
        self._problems.append(Problem(key, value, why, hint))
        return _INVALID


_DESCRIPTIONS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def _default(spec: Field[Any]) -> object:
    if spec.default is not NO_DEFAULT:
        return spec.default
    return spec.default_factory() if spec.default_factory is not NO_DEFAULT else MISSING


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer with more than 308 digits
        return False
