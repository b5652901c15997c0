"""Counts of passes: one forward call of a module's layers each, whatever the number of positions or rows it covers."""

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class Passes:
    """Counts since a session's start; the difference of two is what lay between them."""

    entropy: int = 0
    """Calls of the scorer."""
    encoder: int = 0
    latent: int = 0
    """Calls of the global transformer; byte by byte, one for every patch that closes."""
    decoder: int = 0
    ids: int = 0
    """Ids that scorer, encoder and decoder read: each looks up its rows in all embedding tables."""
    kv_bytes: int = 0
    """Cached keys and values that passes read, in bytes; those that a pass itself makes are not counted."""
    draft_ids: int = 0
    """Ids that encoder and decoder read to draft: as `ids`, but for the scorer's tables."""
    cells: int = 0
    """Ids that the decoder reads by itself, those of blocks: each looks up one row of a table of bytes."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.entropy + other.entropy,
            self.encoder + other.encoder,
            self.latent + other.latent,
            self.decoder + other.decoder,
            self.ids + other.ids,
            self.kv_bytes + other.kv_bytes,
            self.draft_ids + other.draft_ids,
            self.cells + other.cells,
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))
