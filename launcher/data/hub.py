"""Data sets of the Hugging Face Hub, fetched once into the cache as Parquet; from then on a file like any other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.config.hub_errors import explain_hub_error, is_download_error
from launcher.errors import DataError, NotFetched
from launcher.files import find_record, replacing, write_json
from launcher.paths import cache_dir


@dataclass(frozen=True, slots=True)
class _Fetched:
    """Where the Parquet file of a split is."""

    path: Path
    name: str
    split: str
    revision: str | None


def fetch_split(name: str, split: str, revision: str | None, *, download: bool = True) -> Path:
    """Parquet file with one split of a Hub data set (owner/name, or owner/name:subset).

    What was fetched stays: without `revision`, the commit that was newest the first time is used from then on.

    Raises:
        NotFetched: it is not in the cache and `download` is off.
        DataError: no such data set or split, no access, or no network; says what to do.
    """
    pointer = cache_dir() / "hub" / f"{_safe(name)}@{_safe(revision or 'newest')}" / f"{_safe(split)}.json"
    known = find_record(_Fetched, pointer)
    if known is not None and known.path.is_file():
        return known.path
    if not download:
        raise NotFetched(f"hub:{name} is not in the cache yet; `launcher prepare` fetches it")
    path = _download(name, split, revision)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write_json(pointer, _Fetched(path, name, split, revision), durable=False)
    return path


def _download(name: str, split: str, revision: str | None) -> Path:
    import datasets
    from huggingface_hub import HfApi

    repository, _, subset = name.partition(":")
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha or revision or "unknown"
        loaded = datasets.load_dataset(repository, subset or None, split=split, revision=commit)
    except Exception as error:
        bad_data = (datasets.exceptions.DatasetsError, ValueError, RuntimeError)
        if not (is_download_error(error) or isinstance(error, bad_data)):
            raise
        offline_hint = (
            "Run `launcher prepare` once where there is a network (with the same LAUNCHER_CACHE), or give a file"
        )
        why = explain_hub_error(error, repository, revision, kind="data set", offline_hint=offline_hint)
        at = f", revision {revision}" if revision else ""
        raise DataError(f"hub:{name} (split {split!r}{at}): {why}") from error
    folder = cache_dir() / "hub" / f"{_safe(name)}@{commit}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_safe(split)}.parquet"
    with replacing(target) as draft:
        loaded.to_parquet(str(draft))
    return target


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
