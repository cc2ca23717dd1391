"""Failed downloads from the Hugging Face Hub, explained for people: what is wrong and what to do.

Types and status codes decide: a message may hold the name of a repository, and so anything.
"""

from __future__ import annotations

from launcher.errors import causes

_TOKEN = "set HF_TOKEN to a token with read access from https://huggingface.co/settings/tokens"

# Each major version of huggingface_hub has another HTTP library, with its own types of errors.
_HTTP_LIBRARIES = ("httpx2", "httpx", "requests")


def is_download_error(error: BaseException) -> bool:
    """Whether network, disk or Hub made a download fail; anything else may be a bug."""
    return isinstance(error, OSError) or _is_from_http(error)


def explain_hub_error(
    error: BaseException, name: str, revision: str | None, *, kind: str = "model", offline_hint: str
) -> str:
    """Why a download of `name` (owner/name) failed and what to do.

    Args:
        kind: model or data set.
        offline_hint: what to do where the Hub cannot be reached.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{name}"
    chain = list(causes(error))
    answer = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    status = answer.response.status_code if answer is not None and answer.response is not None else None
    said = next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
    # `datasets` drops the GatedRepoError where only the files of a data set are gated.
    if isinstance(answer, GatedRepoError) or " is a gated dataset " in said:
        return f"it is gated. Accept its terms at {page}, then {_TOKEN}"
    if isinstance(answer, RevisionNotFoundError):
        return f"there is no revision {revision or 'main'!r}. See {page}/commits/main"
    if isinstance(answer, RepositoryNotFoundError) or status == 404:
        return f"there is no such {kind}, or it is private. Check the spelling; for a private {kind} {_TOKEN}"
    if status == 401:
        return f"the Hub did not accept the credentials (401). The token may have expired; {_TOKEN}"
    if status == 403:
        return f"the Hub refuses access (403): {said}. Where a token lacks rights to gated repositories, {_TOKEN}"
    if status is not None:
        return f"the Hub answered with an error ({status}): {said}. Try again later"
    if any(isinstance(e, ConnectionError | TimeoutError | LocalEntryNotFoundError) or _is_from_http(e) for e in chain):
        return f"the Hub cannot be reached: {said}. {offline_hint}"
    return f"the download failed: {said}"


def _is_from_http(error: BaseException) -> bool:
    """Whether the HTTP library raised it, which it does where no answer comes."""
    return type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES
