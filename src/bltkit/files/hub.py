"""The Hugging Face hub and its library `datasets`: what they do not say, and what they say too loudly.

Whether the hub answers is asked once, before its libraries retry for half a minute.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bltkit.files.compressed import is_zstd, read_through

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


@contextmanager
def quiet_hub(*, bars: bool) -> Iterator[None]:
    """`huggingface_hub` without its log and warnings, since what it logs it raises as well.

    bars: leave its progress bars on where stderr is a terminal. Without the library nothing happens.
    """
    try:
        from huggingface_hub.utils.logging import get_verbosity, set_verbosity
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError:
        yield
        return
    level, shown = get_verbosity(), not are_progress_bars_disabled()
    hidden = shown and not (bars and sys.stderr.isatty())
    set_verbosity(logging.CRITICAL)
    if hidden:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")
            yield
    finally:
        set_verbosity(level)
        if hidden:
            enable_progress_bars()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """`datasets` without its log, since what it logs it raises as well, and with progress bars only where somebody
    watches. Without the library nothing happens.
    """
    try:
        import datasets
    except ImportError:
        yield
        return
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def refuse_cut_files(directory: Path) -> None:
    """Raise BrokenFile for a zstd file below a data set's directory that is cut short or damaged.

    `datasets` takes it for a whole one, and rows are lost. Other compressions it checks itself.
    """
    for path in files_below(directory):
        if path.is_file() and is_zstd(path):
            read_through(path)


def files_below(directory: Path) -> Iterator[Path]:
    """The files of a data set's directory, as `datasets` looks for them: nothing hidden."""
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in files if not name.startswith("."))


def _out_of_reach(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=PATIENCE).status_code
    except Exception as error:  # of httpx, of requests in older versions, of the system
        what = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{endpoint} does not answer ({what})"
    # A proxy answers in the hub's place where it cannot reach it.
    return f"{endpoint} answers with status {status}" if status >= 500 else None
