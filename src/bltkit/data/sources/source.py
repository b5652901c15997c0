"""What a data source is: a frozen config that yields documents, the very first station on the byte's way.

A document is raw bytes with a name for error messages; nothing is decoded, normalised or filtered here, so
invalid UTF-8 is data like any other. A source without documents is refused by whoever reads it (`Corpus`),
with its name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import Field

from bltkit.config import Config


class Document(NamedTuple):
    """One document: `name` says where it came from (a path, `file:line`), `data` is its bytes, unchanged."""

    name: str
    data: bytes


class SourceConfig(Config):
    """What every source has. A subclass adds `kind: Literal["..."]` and its fields, and implements
    `documents`.

    `weight` is how often the source's documents are visited in one epoch: 2.0 visits each of them twice,
    0.5 each of them in every other epoch (which ones go first depends on their content, not on chance; see
    `Corpus.visits`).
    """

    weight: float = Field(default=1.0, ge=0.001, le=1000.0, allow_inf_nan=False)

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields the documents, in an order that the files decide. `ValueError` for what cannot be read."""
        raise NotImplementedError

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name for statistics and error messages."""
        raise NotImplementedError
