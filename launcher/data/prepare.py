"""The prepared dataset of a configuration: found in the cache, or made once and published atomically."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.config.schema import DataConfig, RunConfig
from launcher.data.audit import Audit, Tally
from launcher.data.content_hash import file_sha256
from launcher.data.encode import EncodedExample, Encoder, Formats
from launcher.data.model_tokenizer import ModelTokenizer
from launcher.data.parallel import encode_all, num_processes
from launcher.data.prepared import SplitFacts
from launcher.data.readers import Chunk, read_chunks, source_format
from launcher.data.sources import Source, Sources, find_sources
from launcher.data.splits import SplitBuilder
from launcher.data.template import ChatFormat
from launcher.errors import DataError, NotFetched, Problem
from launcher.files import read_record, write_json
from launcher.paths import cache_dir, new_cache_dir

FORMAT_VERSION = 2
"""Part of the cache key; increase it when the same input is prepared differently."""

Progress = Callable[[int, float], None]
"""Called with the number of examples read so far, and the fraction of the input read."""

_INFO = "info.json"
_MODEL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "prompt_format.json",
)
_STALE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PreparedInfo:
    """A prepared dataset: its folder, contents and audit."""

    key: str
    folder: Path
    from_cache: bool
    train: SplitFacts
    validation: SplitFacts | None
    audit: Audit


@dataclass(frozen=True, slots=True)
class _Info:
    """info.json, written last."""

    train: SplitFacts
    validation: SplitFacts | None


def prepare(
    config: RunConfig, model_dir: Path, *, progress: Progress | None = None, allow_blocked: bool = False
) -> PreparedInfo:
    """The prepared dataset of a configuration, made now or found in the cache. Safe to call concurrently.

    With `allow_blocked`, a dataset that the audit rejects is returned too, for inspection (it cannot be trained on).

    Raises:
        DataError: the examples cannot be found or read, or the audit rejects them. ModelError: no usable tokenizer.
    """
    sources = find_sources(config.data)
    key = _key(config.data, sources, model_dir)
    info = _load(key)
    if info is None:
        _make(key, config.data, sources, model_dir, progress)
        info = _load(key, from_cache=False)
        assert info is not None
    if not allow_blocked:
        info.audit.raise_if_blocked()
    return info


def find_prepared(config: RunConfig, model_dir: Path, *, allow_blocked: bool = False) -> PreparedInfo | None:
    """The prepared dataset if it is in the cache, otherwise None. Raises like `prepare`."""
    try:
        sources = find_sources(config.data, download=False)
    except NotFetched:
        return None
    info = _load(_key(config.data, sources, model_dir))
    if info is not None and not allow_blocked:
        info.audit.raise_if_blocked()
    return info


def preview_examples(config: RunConfig, model_dir: Path, count: int) -> list[EncodedExample]:
    """The first `count` usable training examples in full: text, ids, mask, spans."""
    sources = find_sources(config.data)
    formats = [(source.name, source_format(source, Tally())) for source in sources.all()]
    encoder = _encoder(config.data, model_dir, chat_format(config.data, model_dir), formats)
    shown: list[EncodedExample] = []
    for chunk in _chunks(sources.train, formats, max_records=count):
        shown += encoder.examples(chunk, Tally())
        if len(shown) >= count:
            break
    return shown[:count]


def _chunks(sources: Sequence[Source], formats: Formats, max_records: int | None = None) -> Iterator[Chunk]:
    """The chunks of the sources with a known format."""
    for number, source in enumerate(sources):
        if formats[number][1] is not None:
            yield from read_chunks(source, number, max_records)


def _key(data: DataConfig, sources: Sources, model_folder: Path) -> str:
    """Hash of everything the prepared data depends on."""
    parts = {
        "format_version": FORMAT_VERSION,
        "train": [[source.name, source.content_key(), source.format.value, source.part] for source in sources.train],
        "validation": [[source.name, source.content_key(), source.format.value] for source in sources.validation],
        "weights": sources.weights,
        "ignored": sources.ignored,
        "model": {name: file_sha256(model_folder / name) for name in _MODEL_FILES if (model_folder / name).is_file()},
        "template_file": _template_hash(data),
        "options": [
            *(data.validation_fraction, data.seed, data.system_prompt, data.preamble, data.seq_len_tokens),
            *(data.over_length.value, data.packing, data.task.value, data.max_input_chars, data.max_output_chars),
            sorted(data.allow),
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _template_hash(data: DataConfig) -> str | None:
    if data.chat_template is None:
        return None
    path = Path(data.chat_template).expanduser()
    if not path.is_file():
        problem = Problem("data.chat_template", data.chat_template, "there is no such file", "Give a Jinja file")
        raise DataError("the chat template cannot be found:", [problem])
    return file_sha256(path)


def _folder(key: str) -> Path:
    """Folder of the dataset, whether it exists yet or not."""
    kept = cache_dir() / "prepared" / key
    return kept if (kept / _INFO).is_file() else new_cache_dir() / "prepared" / key


def _load(key: str, *, from_cache: bool = True) -> PreparedInfo | None:
    folder = _folder(key)
    if not (folder / _INFO).is_file():
        return None
    info = read_record(_Info, folder / _INFO)
    audit = read_record(Audit, folder / "audit.json")
    return PreparedInfo(key, folder, from_cache, info.train, info.validation, audit)


def _make(key: str, data: DataConfig, sources: Sources, model_folder: Path, progress: Progress | None) -> None:
    """Prepares in a temporary folder and renames it at the end: other processes see all of it or nothing."""
    target = _folder(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    staging = target.parent / f".preparing-{secrets.token_hex(8)}"
    staging.mkdir()
    try:
        _fill(staging, data, sources, model_folder, progress or (lambda done, share: None))
        if _key(data, sources, model_folder) != key:
            raise DataError("the data or model files changed while they were read; try again")
        try:
            staging.rename(target)
        except OSError:
            if not (target / _INFO).is_file():
                raise
            # Another process finished first, with the same result.
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for left in folder.glob(".preparing-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def _fill(folder: Path, data: DataConfig, sources: Sources, model_folder: Path, progress: Progress) -> None:
    every = sources.all()
    num_bytes = sum(source.size_bytes for source in every)
    builder = SplitBuilder(folder, sources, data)
    chat = chat_format(data, model_folder)
    make_encoder = partial(_encoder, data, model_folder, chat, builder.formats)
    bytes_done, examples_done = 0, 0
    chunks = _chunks(every, builder.formats)
    for encoded in encode_all(make_encoder, chunks, num_processes(data.num_workers, num_bytes)):
        builder.add(encoded)
        bytes_done, examples_done = bytes_done + encoded.size_bytes, examples_done + encoded.num_read
        progress(examples_done, min(1.0, bytes_done / max(num_bytes, 1)))
    builder.choose()
    audit = builder.audit()
    info = _Info(*builder.write(blocked=audit.blocked))
    write_json(folder / "audit.json", audit.as_dict(), durable=False)
    chat.save(folder)
    write_json(folder / _INFO, info, durable=False)


def _encoder(data: DataConfig, model_folder: Path, chat: ChatFormat, formats: Formats) -> Encoder:
    tokenizer = ModelTokenizer(
        chat, model_folder / "tokenizer.json", seq_len_tokens=data.seq_len_tokens, over_length=data.over_length
    )
    return Encoder(tokenizer, data, formats)


def chat_format(data: DataConfig, model_folder: Path) -> ChatFormat:
    """The prompt format of a configuration and a model."""
    return ChatFormat.from_folder(
        model_folder,
        template_file=Path(data.chat_template) if data.chat_template else None,
        system_prompt=data.system_prompt,
        preamble=data.preamble,
    )
