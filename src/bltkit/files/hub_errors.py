"""Errors of the Hugging Face hub's library, each as the reason that a user can act on."""

from pathlib import Path


def hub_reason(error: Exception, repo: str, revision: str | None = None, *, writing: bool = False) -> str:
    """Reason and remedy of an error, in one line.

    repo: OWNER/NAME. revision: the one that was asked for. writing: the request was to change the repository.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):  # of an upload, in a thread
        error = cause
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, HfHubHTTPError):  # why it looked there
        error = cause
    hub, login = constants.ENDPOINT, "log in (`hf auth login`, or HF_TOKEN)"
    asked = "log in with a token that may" if get_token() else f"{login} with a token that may"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError):
        account = "your account has no access" if get_token() else f"{login} as well"
        return f"the repository is gated: accept its terms on {hub}/{repo}; {account}"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {revision or constants.DEFAULT_REVISION!r}; name a branch, a tag or a commit"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} has no such model, or it is private; check the name, or {asked} read it"
    if isinstance(error, LocalEntryNotFoundError):
        return f"the cache {Path(constants.HF_HUB_CACHE)} does not hold all of its files"
    if status == 401:
        return f"the token is not valid; {login} with another one"
    if status == 403:
        return f"the token may not {'write to' if writing else 'read'} it; {asked}"
    if status == 429:
        return f"{hub} takes no more requests for now; try again later"
    if status is not None:
        return f"{hub} answers with status {status}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
