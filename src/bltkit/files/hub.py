"""Whether the Hugging Face hub answers, asked once before its libraries retry for half a minute."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds until a hub that says nothing counts as out of reach."""


@contextmanager
def hub_or_cache() -> Iterator[str | None]:
    """Let the hub's libraries look only into their caches inside, if the hub does not answer within `PATIENCE` seconds.

    Yields why it is out of reach, None where it answers. Without `huggingface_hub` nothing is asked.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        yield None
        return
    if constants.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE is set"
        return
    reason = _out_of_reach(constants.ENDPOINT)
    if reason is None:
        yield None
        return
    # `datasets` keeps a copy of the setting. It is there already where a data set is to be read.
    holders: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        for holder, offline in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = offline


def _out_of_reach(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=PATIENCE).status_code
    except Exception as error:  # of httpx, of requests in older versions, of the system
        what = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{endpoint} does not answer ({what})"
    # A proxy answers in the hub's place where it cannot reach it.
    return f"{endpoint} answers with status {status}" if status >= 500 else None
