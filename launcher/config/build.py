"""Between plain values (of YAML or the command line) and the schema's dataclasses: strict, and all problems at once.

OmegaConf's own structured configs stop at the first problem and convert freely (1 to "1", "on" to True, "${...}" to
whatever a resolver returns). A run that costs GPU-days wants the opposite.
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
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from launcher.config.foreign_settings import SAYS_NOTHING, answer, foreign_names
from launcher.errors import Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")

_BAD = object()
_LEAST_ALIKE = 0.78
_SAME_SECTION = 0.1
_SURE = 0.85
_LISTS = "`launcher check --cfg` lists every setting"
_BEGINNING = 4
"""Letters that are enough to name a setting by its beginning."""


@cache
def field_types(cls: type[DataclassInstance]) -> dict[str, Any]:
    """Resolved type of each field, by name."""
    hints = get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in fields(cls)}


def leaf_types(cls: type[DataclassInstance], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every single setting, sections left out."""
    for name, hint in field_types(cls).items():
        if is_dataclass(hint):
            yield from leaf_types(cast("type[DataclassInstance]", hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known dotted key most like `key` by its last word, the same section first; None rather than a far one."""
    section, _, leaf = key.rpartition(".")

    def likeness(name: str) -> float:
        own_section, _, own = name.rpartition(".")
        alike = difflib.SequenceMatcher(None, leaf, own).ratio()
        if section == own_section and len(leaf) >= _BEGINNING and own.startswith(f"{leaf}_"):
            alike = max(alike, _LEAST_ALIKE)
        return alike + (_SAME_SECTION if section == own_section else 0.0)

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= _LEAST_ALIKE else None


def unknown_key(key: str, value: object, known: list[str]) -> Problem:
    """The problem of a key that no schema field has."""
    return Problem(key, value, "there is no such setting", _instead_of(key, known))


def _instead_of(key: str, known: list[str]) -> str:
    """What to write instead: what another program's name means here, the nearest key, or where to look."""
    if "[" in key:  # of a part of a mixture, which no name from elsewhere means
        return _instead_in_list(key, known)
    told = answer(key)
    if told:
        return told
    near = nearest_key(key, known)
    if near:
        return f"Did you mean {near}?"
    leaf = key.rpartition(".")[2]
    misspelt = [] if leaf in SAYS_NOTHING else difflib.get_close_matches(leaf, foreign_names(), 1, _SURE)
    return answer(misspelt[0]) if misspelt else _LISTS


def _instead_in_list(key: str, known: list[str]) -> str:
    """As _instead_of, for a key inside an item of a list: only the fields of such an item count."""
    whole = key.partition("[")[0]
    if whole in known:
        return f"A list is given as a whole: {whole}=[first,second]"
    fields_of_item = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    near = nearest_key(key, fields_of_item)
    if near:
        return f"Did you mean {near}?"
    return f"Choose from: {', '.join(name.rpartition('.')[2] for name in fields_of_item)}" if fields_of_item else _LISTS


def one_of(value: object, choices: list[str]) -> str:
    """What to do about a value that is none of `choices`; names the nearest one."""
    near = difflib.get_close_matches(str(value), choices, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Choose one of: {', '.join(choices)}"


def plain(value: object) -> Any:
    """The same as dicts, lists and scalars, fit for YAML and JSON; enum members become their values."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {spec.name: plain(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def build(
    cls: type[T], values: Mapping[str, object], problems: list[Problem], *, prefix: str = "", complete: bool = False
) -> T:
    """An instance of `cls` from plain values, appending to `problems` whatever does not fit.

    A field with a problem keeps its default, so that rules across sections can still be checked on the result.
    With `complete`, a field that is not given is a problem even where it has a default.
    """
    hints = field_types(cls)
    problems += [
        unknown_key(f"{prefix}{name}", value, [prefix + known for known in hints])
        for name, value in values.items()
        if name not in hints
    ]
    arguments: dict[str, Any] = {}
    for spec in fields(cls):
        key, hint = prefix + spec.name, hints[spec.name]
        if spec.name in values:
            value = _convert(hint, values[spec.name], key, problems, complete)
        elif complete:
            problems.append(Problem(key, None, "is missing"))
            value = _BAD
        elif is_dataclass(hint):  # a section of which nothing is given: still says which values are missing
            value = _convert(hint, {}, key, problems, complete)
        else:
            value = _given_default(spec, key, problems)
        arguments[spec.name] = _default(spec) if value is _BAD else value
    return cls(**arguments)


def _given_default(spec: Field[Any], key: str, problems: list[Problem]) -> object:
    value = _default(spec)
    return _missing(key, problems) if value == MISSING else value


def _default(spec: Field[Any]) -> object:
    if spec.default is not NO_DEFAULT:
        return spec.default
    return spec.default_factory() if spec.default_factory is not NO_DEFAULT else MISSING


def _missing(key: str, problems: list[Problem]) -> object:
    problems.append(Problem(key, MISSING, "must be given", f"Add {key}=VALUE"))
    return _BAD


def _convert(hint: Any, value: object, key: str, problems: list[Problem], complete: bool = False) -> object:
    if value == MISSING and isinstance(value, str):
        return _missing(key, problems)
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _convert(options[0], value, key, problems, complete)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            return _wrong(key, value, "must be a section of settings", f"Set its keys: {key}.NAME=VALUE", problems)
        section = cast("type[DataclassInstance]", hint)
        return build(section, cast("Mapping[str, object]", value), problems, prefix=f"{key}.", complete=complete)
    if get_origin(hint) is list:
        return _convert_list(get_args(hint)[0], value, key, problems, complete)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return _wrong(key, value, "must be a mapping with text keys", "Write {name: value, ...}", problems)
        return plain(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(hint, value, key, problems)
    return _convert_scalar(hint, value, key, problems)


def _convert_list(item_hint: Any, value: object, key: str, problems: list[Problem], complete: bool) -> object:
    if not isinstance(value, list):
        return _wrong(key, value, "must be a list", f"Write {key}=[first,second]", problems)
    items = [_convert(item_hint, item, f"{key}[{place}]", problems, complete) for place, item in enumerate(value)]
    return [item for item in items if item is not _BAD]


def _convert_enum(hint: type[Enum], value: object, key: str, problems: list[Problem]) -> object:
    choices = [str(member.value) for member in hint]
    if isinstance(value, str) and value in choices:
        return hint(value)
    return _wrong(key, value, "is none of the choices", one_of(value, choices), problems)


def _convert_scalar(hint: Any, value: object, key: str, problems: list[Problem]) -> object:
    if hint is bool:
        return value if isinstance(value, bool) else _wrong(key, value, "must be true or false", "", problems)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole else _wrong(key, value, "must be a whole number", "", problems)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            return _wrong(key, value, "must be a finite number", "", problems)
        return float(value)
    if hint is str:
        return value if isinstance(value, str) else _wrong(key, value, "must be text", "", problems)
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number with more than 308 digits
        return False


def _wrong(key: str, value: object, why: str, todo: str, problems: list[Problem]) -> object:
    problems.append(Problem(key, value, why, todo))
    return _BAD
