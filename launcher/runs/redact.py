"""Takes secrets out of what is shown or sent."""

from __future__ import annotations

import re
from collections.abc import Mapping

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
SHORTEST_SECRET = 8
MARK = "[secret]"


def redacted(value: object, environment: Mapping[str, str]) -> object:
    """The value without the text of any secret the environment holds, and without logins in URLs."""
    secrets = [text for name, text in environment.items() if SECRET_NAME.search(name) and len(text) >= SHORTEST_SECRET]
    return _redact(value, secrets)


def redacted_text(text: str, environment: Mapping[str, str]) -> str:
    return str(redacted(text, environment))


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
