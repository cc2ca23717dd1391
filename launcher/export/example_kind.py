"""What a run's training examples were: conversations in the chat format, plain text, or some of each."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import numpy as np

from launcher.config.schema import DataFormat
from launcher.data.prepared import Examples
from launcher.export.hf_format import read_json


class Taught(Enum):
    chat = "chat"
    text = "text"
    mixed = "mixed"


def taught(data_dir: Path) -> Taught:
    """From the prepared data set: the format its audit read each file in that training examples come from."""
    formats = read_json(data_dir / "audit.json").get("formats")
    files = read_json(data_dir / "train" / "meta.json").get("files")
    if not isinstance(formats, dict) or not isinstance(files, list):
        return Taught.chat
    # The list of files is that of both splits.
    used = np.unique(Examples(data_dir / "train" / "examples.arrow").files)
    is_text = {formats.get(files[at]) == DataFormat.text.value for at in used}
    if is_text == {True, False}:
        return Taught.mixed
    return Taught.text if is_text == {True} else Taught.chat
