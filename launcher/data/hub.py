"""Data sets of the Hugging Face Hub, fetched once into the cache as Parquet; from then on a file like any other."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from launcher.config.paths import cache_dir
from launcher.data.content_hash import write_atomically
from launcher.errors import DataError

_TOKEN = (
    "Make a token with read access at https://huggingface.co/settings/tokens and set it: export HF_TOKEN=hf_... "
    "(for a gated data set also accept its terms on its page)"
)


class NotFetched(DataError):
    """A Hub data set is not in the cache, and fetching it was not asked for."""


def fetch_split(name: str, split: str, revision: str | None, *, download: bool = True) -> Path:
    """Parquet file with one split of a Hub data set (owner/name, or owner/name:subset).

    What was fetched stays: without `revision`, the commit that was newest the first time is used from then on.

    Raises:
        NotFetched: it is not in the cache and `download` is off.
        DataError: no such data set or split, no access, or no network; says what to do.
    """
    pointer = cache_dir() / "hub" / f"{_safe(name)}@{_safe(revision or 'newest')}" / f"{_safe(split)}.json"
    try:
        known = json.loads(pointer.read_text(encoding="utf-8"))
        path = Path(known["path"])
        if path.is_file():
            return path
    except (OSError, ValueError, KeyError):
        pass
    if not download:
        raise NotFetched(f"hub:{name} is not in the cache yet; `launcher prepare` fetches it")
    path = _download(name, split, revision)
    write_atomically(pointer, json.dumps({"path": str(path), "name": name, "split": split, "revision": revision}))
    return path


def _download(name: str, split: str, revision: str | None) -> Path:
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, subset = name.partition(":")
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha or revision or "unknown"
        loaded = datasets.load_dataset(repository, subset or None, split=split, revision=commit)
    except (HfHubHTTPError, datasets.exceptions.DatasetNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise DataError(_explain(name, split, revision, error)) from error
    folder = cache_dir() / "hub" / f"{_safe(name)}@{commit}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_safe(split)}.parquet"
    descriptor, writing = tempfile.mkstemp(dir=folder, prefix=".writing-")
    os.close(descriptor)
    loaded.to_parquet(writing)
    Path(writing).replace(target)
    return target


def _explain(name: str, split: str, revision: str | None, error: Exception) -> str:
    """What went wrong in the user's words: who may not read what, and how to change that."""
    where = f"hub:{name} (split {split!r}{f', revision {revision}' if revision else ''})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = str(error)
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if status == 401 or "401" in first or "authenticated" in text or "gated" in text.lower():
        return f"{where}: the Hub wants to know who asks. {_TOKEN}. It said: {first}"
    if status == 403 or "403" in first:
        return f"{where}: this token may not read it. {_TOKEN}. It said: {first}"
    if status == 404 or "doesn't exist" in text or "not found" in text.lower():
        return f"{where}: there is no such data set, revision or split, or it is private. Check the name; {_TOKEN}"
    if "offline" in text.lower() or os.environ.get("HF_HUB_OFFLINE") == "1" or isinstance(error, OSError):
        return (
            f"{where}: the Hub cannot be reached and the data set is not in the cache. Run `launcher prepare` once "
            f"where there is a network (with the same LAUNCHER_CACHE), or give a file. It said: {first}"
        )
    return f"{where}: cannot be read: {first}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
