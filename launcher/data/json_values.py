"""JSON out of a text file value by value, so that a big array is never whole in memory; and where it breaks."""

from __future__ import annotations

import json
import re
from typing import IO

from launcher.errors import BrokenJson, ExampleError

READ_CHARS = 1 << 20
# One value of a JSON array that is still incomplete after this much text is broken, not long.
_MAX_VALUE_CHARS = 64 << 20


class JsonWindow:
    """The part of a text file that is being parsed, and the line and column (from 1) it begins at."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._at_end = False
        self.line = 1
        self.column = 1

    def skip_space(self) -> str:
        """Moves to the next character that is not white space and returns it; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._advance(found.end())
            if self._at < len(self._text) or not self._more(READ_CHARS):
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        assert self._text.startswith(character, self._at)
        self._advance(self._at + 1)

    def value(self) -> tuple[object, int]:
        """The next JSON value and its length in bytes."""
        try:
            value, size = self._decode(DECODER)
        except ExampleError:
            # Raised while an object closes, so the value may still be incomplete: find its end without the checks.
            self._decode(_PLAIN_DECODER)
            raise
        return value, size

    def _decode(self, decoder: json.JSONDecoder) -> tuple[object, int]:
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                broken = self._broken(error)  # before reading on, which moves the text the error speaks of
                too_long = len(self._text) - self._at > _MAX_VALUE_CHARS
                if isinstance(error, RecursionError) or too_long or not self._more(len(self._text) - self._at):
                    raise broken from error
                continue
            size = len(self._text[self._at : end].encode("utf-8", "surrogatepass"))
            self._advance(end)
            return value, size

    def _broken(self, error: Exception) -> BrokenJson:
        if not isinstance(error, json.JSONDecodeError):
            return BrokenJson(self.line, json_why(error))
        line, column = self._place(error.pos)
        return BrokenJson(line, f"{error.msg} at column {column}")

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column of a character of the window that has not been passed yet."""
        breaks = self._text.count("\n", self._at, at)
        column = at - self._text.rfind("\n", self._at, at) if breaks else self.column + at - self._at
        return self.line + breaks, column

    def _advance(self, end: int) -> None:
        self.line, self.column = self._place(end)
        self._at = end

    def _more(self, count: int) -> bool:
        """Reads on; False at the end of the file. Amounts that double keep the whole linear."""
        if self._at_end:
            return False
        added = self._file.read(max(count, READ_CHARS))
        self._at_end = not added
        self._text = self._text[self._at :] + added
        self._at = 0
        return bool(added)


def json_why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ExampleError("duplicate_key", f"key {twice!r}")
    return made


def _no_constant(name: str) -> object:
    raise ExampleError("nan_value", f"{name} is not JSON")


_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN_DECODER = json.JSONDecoder()
DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
