"""The ids of a growing row, as a value."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bltkit.vocab import BOS, PAD


@dataclass(frozen=True, eq=False)
class Text:
    """The ids of one row so far. The list is shared and append-only; a text that others outgrew copies it."""

    items: list[int] = field(default_factory=list, repr=False)
    length: int = 0

    def append(self, more: Sequence[int]) -> "Text":
        """The text with further ids."""
        items = self.items if len(self.items) == self.length else self.items[: self.length]
        items.extend(more)
        return Text(items, self.length + len(more))

    def latest(self, count: int) -> list[int]:
        """The last `count` ids, or all there are."""
        return self.items[max(0, self.length - count) : self.length]

    def tail(self, count: int, documents: bool = False) -> list[int]:
        """The last `count` ids, PAD in front of the row and, with `documents`, of the document."""
        ids = self.latest(count)
        if documents and BOS in ids:
            ids = ids[len(ids) - 1 - ids[::-1].index(BOS) :]
        return [PAD] * (count - len(ids)) + ids
