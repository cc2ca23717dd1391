"""Data sets of the Hugging Face Hub, fetched once into the cache as Parquet; from then on a file like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import DataError, NotFetched
from launcher.files import replacing, write_json
from launcher.paths import cache_dir

_TOKEN = "make a token with read access at https://huggingface.co/settings/tokens and set it: export HF_TOKEN=hf_..."

# What huggingface_hub speaks HTTP with: another one in each of its major versions, and with other types of errors.
_HTTP_LIBRARIES = ("httpx2", "httpx", "requests")


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
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write_json(pointer, {"path": str(path), "name": name, "split": split, "revision": revision}, durable=False)
    return path


def _download(name: str, split: str, revision: str | None) -> Path:
    import datasets
    from huggingface_hub import HfApi

    repository, _, subset = name.partition(":")
    expected = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError)
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha or revision or "unknown"
        loaded = datasets.load_dataset(repository, subset or None, split=split, revision=commit)
    except Exception as error:
        if not isinstance(error, expected) and not _is_of_http(error):
            raise
        raise DataError(_explain(name, split, revision, error)) from error
    folder = cache_dir() / "hub" / f"{_safe(name)}@{commit}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_safe(split)}.parquet"
    with replacing(target) as draft:
        loaded.to_parquet(str(draft))
    return target


def _explain(name: str, split: str, revision: str | None, error: Exception) -> str:
    """What went wrong in the user's words: who may not read what, and how to change that.

    Types and status decide, as in config.model_files.explain_hub_error: a text may hold the name of the data set, and
    so anything.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"hub:{name} (split {split!r}{f', revision {revision}' if revision else ''})"
    page = f"https://huggingface.co/datasets/{name.partition(':')[0]}"
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
    status = answer.response.status_code if answer is not None and answer.response is not None else None
    if isinstance(answer, GatedRepoError) or (_is_not_found(error) and " is a gated dataset" in said):
        return f"{where}: it is gated. Accept its terms at {page}, then {_TOKEN}"
    if isinstance(answer, RevisionNotFoundError):
        return f"{where}: there is no such revision. Look at {page}/commits/main"
    if isinstance(answer, RepositoryNotFoundError) or status == 404 or (status is None and _is_not_found(error)):
        return (
            f"{where}: there is no such data set, or it is private. Check the spelling; for a private data set {_TOKEN}"
        )
    if status == 401:
        return f"{where}: the Hub did not accept the credentials (401). To replace an expired token, {_TOKEN}"
    if status == 403:
        return f"{where}: the Hub refuses access (403): this token may not read it; {_TOKEN}. It said: {said}"
    if status is not None:
        return f"{where}: the Hub answered with an error ({status}); try again later. It said: {said}"
    if any(_is_unreachable(cause) for cause in _causes(error)):
        return (
            f"{where}: the Hub cannot be reached and the data set is not in the cache. Run `launcher prepare` once "
            f"where there is a network (with the same LAUNCHER_CACHE), or give a file. It said: {said}"
        )
    return f"{where}: cannot be read: {said}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _is_not_found(error: BaseException) -> bool:
    import datasets

    return isinstance(error, datasets.exceptions.DatasetNotFoundError)


def _is_unreachable(error: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError) or _is_of_http(error)


def _is_of_http(error: BaseException) -> bool:
    """Whether the HTTP library raised it, which it does where no answer comes."""
    return type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
