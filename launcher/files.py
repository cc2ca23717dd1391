"""Atomic file writes, locks, and dataclasses as JSON, type-checked when read back."""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from launcher.errors import RecordError

T = TypeVar("T")

_NON_FINITE = ("NaN", "Infinity", "-Infinity")
_BLOCK_BYTES = 512


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A draft next to `path` that replaces it at the end of the block; after an error the draft is removed.

    With `durable` the new content survives a power failure once the block is left.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        if durable:
            fsync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        fsync(path.parent)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Replaces `path` in one step: a reader sees the old content or the new, never a part. `mode` is cut by the umask.

    Raises: OSError.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path, durable=durable) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def write_json(
    path: Path, document: object, *, indent: int | None = 1, durable: bool = True, mode: int = 0o666
) -> None:
    """`write_atomically` of a dataclass or of plain values."""
    text = json.dumps(as_json(document), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text, durable=durable, mode=mode)


def rewrite(path: Path, document: object, *, durable: bool = False) -> None:
    """JSON written over the old content, for a file that others poll: they find the old document or the new one.

    Blanks fill it up to whole blocks, so that its length hardly ever changes. It is opened anew each time, because
    network file systems send data on when a file is closed.
    """
    text = json.dumps(as_json(document), ensure_ascii=False, allow_nan=False).encode("utf-8", errors="backslashreplace")
    text = text.ljust(-(-(len(text) + 1) // _BLOCK_BYTES) * _BLOCK_BYTES - 1) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """A descriptor that holds the lock of a file, None while another one does.

    The lock lasts until every process that has inherited the descriptor has closed it, or ended.

    Raises: FileNotFoundError: there is no such file, and `create` is False.
    """
    descriptor = os.open(path, (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def fsync(path: Path) -> None:
    """Makes the content of a file, or the names inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_plain(value: object, scalar: Callable[[object], object] = lambda value: value) -> Any:
    """Dataclasses, enums and sequences as dicts, lists and scalars, each scalar as `scalar` returns it.

    A field with metadata {"json": name} goes by that name.
    """
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {_json_name(spec): as_plain(getattr(value, spec.name), scalar) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item, scalar) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item, scalar) for item in value]
    return scalar(value)


def as_json(value: object) -> Any:
    """`as_plain`, fit for JSON; `record_from` reads it back.

    A number that JSON lacks becomes the text "NaN", "Infinity" or "-Infinity".
    """
    return as_plain(value, _json_scalar)


def _json_scalar(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float) else str(value)


def read_record(cls: type[T], path: Path) -> T:
    """The dataclass that a JSON file holds. Unknown keys are ignored: a newer version wrote them.

    Raises:
        OSError: the file cannot be read.
        RecordError: it is not JSON, lacks a key, or holds a value of another type; names file and key.
    """
    return record_from_json(cls, path.read_bytes(), path)


def record_from_json(cls: type[T], text: bytes, source: Path | str = "") -> T:
    """`read_record` of a text that was read from `source`.

    Raises: RecordError.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(source, "", f"is not JSON ({error})") from error
    return record_from(cls, values, source)


def find_record(cls: type[T], path: Path) -> T | None:
    """`read_record`; None where there is no such file, or none that can be read."""
    try:
        return read_record(cls, path)
    except (OSError, RecordError):
        return None


def record_from(cls: type[T], values: object, source: Path | str = "") -> T:
    """The dataclass, or other type such as dict[str, int], that plain values describe; `source` is named in errors.

    Raises: RecordError.
    """
    return cast("T", _Reader(source).convert(cls, values, ""))


class _Reader:
    """Converts plain values to annotated types; a value of another type is an error, never converted."""

    def __init__(self, source: Path | str) -> None:
        self._source = source

    def record(self, cls: type[T], values: object, key: str) -> T:
        if not isinstance(values, dict):
            raise self._wrong(key, "an object", values)
        arguments: dict[str, Any] = {}
        for name, json_name, hint, is_required in _schema(cast("Hashable", cls)):
            own_key = f"{key}.{json_name}" if key else json_name
            if json_name in values:
                arguments[name] = self.convert(hint, values[json_name], own_key)
            elif is_required:
                raise RecordError(self._source, own_key, "is missing")
        return cls(**arguments)

    def convert(self, hint: Any, value: object, key: str) -> object:
        if type(value) is hint:  # most of them, and metrics.jsonl may be long
            return value
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):  # a type or None; records have no other unions
            option = next(option for option in get_args(hint) if option is not type(None))
            return None if value is None else self.convert(option, value, key)
        if origin in (list, tuple):
            return self._items(hint, value, key)
        if origin is dict:
            if not isinstance(value, dict):
                raise self._wrong(key, "an object", value)
            item_hint = get_args(hint)[1]
            return {name: self.convert(item_hint, item, f"{key}.{name}") for name, item in value.items()}
        if isinstance(hint, type) and is_dataclass(hint):
            return self.record(hint, value, key)
        return self._scalar(hint, value, key)

    def _items(self, hint: Any, value: object, key: str) -> object:
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        hints = get_args(hint)
        if get_origin(hint) is list or hints[-1] is Ellipsis:
            hints = (hints[0],) * len(value)
        elif len(value) != len(hints):
            raise self._wrong(key, f"a list of {len(hints)}", value)
        pairs = enumerate(zip(hints, value, strict=True))
        items = [self.convert(own, item, f"{key}[{index}]") for index, (own, item) in pairs]
        return items if get_origin(hint) is list else tuple(items)

    def _scalar(self, hint: Any, value: object, key: str) -> object:
        if hint in (Any, object):
            return value
        if isinstance(hint, type) and issubclass(hint, Enum):
            try:
                return hint(value)
            except ValueError:
                raise self._wrong(key, f"one of {', '.join(str(one.value) for one in hint)}", value) from None
        if hint is float:
            return self._number(value, key)
        if hint is Path and isinstance(value, str):
            return Path(value)
        # A bool is an int to isinstance.
        if isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
            return value
        raise self._wrong(key, {str: "text", int: "a whole number", bool: "true or false"}.get(hint, hint), value)

    def _number(self, value: object, key: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and value in _NON_FINITE):
            try:
                return float(value)  # type: ignore[arg-type]
            except OverflowError:
                pass
        raise self._wrong(key, "a number", value)

    def _wrong(self, key: str, expected: object, value: object) -> RecordError:
        text = repr(value)
        seen = text if len(text) <= 60 else f"{text[:57]}..."
        return RecordError(self._source, key, f"must be {expected}, not {seen}")


def _json_name(spec: Any) -> str:
    return str(spec.metadata.get("json", spec.name))


@cache
def _schema(cls: Any) -> list[tuple[str, str, Any, bool]]:
    """Name, name in JSON, type and whether it must be there, of every field."""
    if not is_dataclass(cls):
        raise TypeError(f"{cls} is not a dataclass")
    hints = get_type_hints(cls)
    return [
        (spec.name, _json_name(spec), hints[spec.name], spec.default is MISSING and spec.default_factory is MISSING)
        for spec in fields(cls)
    ]
