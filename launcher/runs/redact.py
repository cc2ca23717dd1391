"""Takes secrets out of what is shown or sent."""

from __future__ import annotations

import os
import re
from typing import TypeVar, cast

T = TypeVar("T")

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
SHORTEST_SECRET = 8
MARK = "[secret]"


def redacted(value: T) -> T:
    """The value without the text of any secret in the environment, and without logins in URLs."""
    secrets = [text for name, text in os.environ.items() if SECRET_NAME.search(name) and len(text) >= SHORTEST_SECRET]
    return cast("T", _redact(value, secrets))


def _redact(value: object, secrets: list[str]) -> object:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MARK)
        return URL_LOGIN.sub(MARK, value)
    if isinstance(value, dict):
        return {key: _redact(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_redact(item, secrets) for item in value]
    return value
