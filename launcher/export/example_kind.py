"""The kind of examples a run was trained on: conversations in the chat format, plain text, or both."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import numpy as np

from launcher.config.schema import DataFormat
from launcher.data.prepared import Examples
from launcher.export.hf_format import read_json


class ExampleKind(Enum):
    chat = "chat"
    text = "text"
    mixed = "mixed"


def example_kind(data_dir: Path) -> ExampleKind:
    """Of a prepared data set, by the format of each file that training examples come from."""
    formats = read_json(data_dir / "audit.json").get("formats")
    files = read_json(data_dir / "train" / "meta.json").get("files")
    if not isinstance(formats, dict) or not isinstance(files, list):
        return ExampleKind.chat
    # The list of files is that of both splits.
    used = np.unique(Examples(data_dir / "train" / "examples.arrow").files)
    is_text = {formats.get(files[at]) == DataFormat.text.value for at in used}
    if len(is_text) == 2:
        return ExampleKind.mixed
    return ExampleKind.text if True in is_text else ExampleKind.chat
