"""Everything of a Hugging Face folder that is not weights: tokenizer, chat template, generation settings, licence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from launcher.data.template import ChatFormat
from launcher.export.portable_template import portable_template
from launcher.files import write_json

_TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")


def write_format(to: Path, *, base_dir: Path, format_dir: Path) -> None:
    """Tokenizer files, chat template, prompt format, generation settings and licence texts in `to`.

    Args:
        base_dir: the base model. format_dir: the prepared data set, with the run's prompt format.
    """
    for name in (*_TOKENIZER_FILES, *_LICENCE_FILES):
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, to / name)
    settings = read_json(base_dir / "tokenizer_config.json")
    # chat_template.jinja is the only copy: one here would win in some readers.
    settings.pop("chat_template", None)
    write_json(to / "tokenizer_config.json", settings, indent=2)
    chat_format = ChatFormat.from_folder(format_dir)
    built_in = portable_template(
        chat_format.template, system_prompt=chat_format.system_prompt, preamble=chat_format.preamble
    )
    # System prompt and preamble move into the template, so that they are neither lost nor applied twice.
    replace(chat_format, template=built_in, system_prompt=None, preamble=None).save(to)
    write_json(to / "generation_config.json", _generation_settings(base_dir, chat_format.end_of_turn), indent=2)


def _generation_settings(base_dir: Path, end_of_turn: str | None) -> dict[str, object]:
    """The base's settings, with the end-of-turn token among the tokens that stop generation."""
    settings = read_json(base_dir / "generation_config.json")
    configured = settings.get("eos_token_id", read_json(base_dir / "config.json").get("eos_token_id"))
    stops = list(configured) if isinstance(configured, list) else [configured] if configured is not None else []
    if end_of_turn is not None:
        token = Tokenizer.from_file(str(base_dir / "tokenizer.json")).token_to_id(end_of_turn)
        if token is not None:
            stops = [token, *(stop for stop in stops if stop != token)]
    if stops:
        settings["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    return settings


def read_json(path: Path) -> dict[str, object]:
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return values if isinstance(values, dict) else {}
