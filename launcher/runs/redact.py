"""Takes secrets out of what is shown or sent."""

from __future__ import annotations

import os
import re
from typing import TypeVar, cast

from launcher.files import as_plain

T = TypeVar("T")

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
SHORTEST_SECRET = 8
MARK = "[secret]"


def redacted(value: T) -> T:
    """The value without the text of any secret in the environment, and without logins in URLs."""
    secrets = [text for name, text in os.environ.items() if SECRET_NAME.search(name) and len(text) >= SHORTEST_SECRET]

    def redact(text: object) -> object:
        if not isinstance(text, str):
            return text
        for secret in secrets:
            text = text.replace(secret, MARK)
        return URL_LOGIN.sub(MARK, text)

    return cast("T", as_plain(value, redact))
