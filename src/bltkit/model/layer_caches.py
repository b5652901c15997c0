"""What decoding needs of the caches of a stack, on one device or on several (`device_stages.py`)."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from bltkit.model.cache import StackCache


@runtime_checkable
class LayerCaches(Protocol):
    """The state of a stack whose rows lie apart: a `StackCache`, or one for each of several devices."""

    @property
    def parts(self) -> tuple[StackCache, ...]:
        """The caches that it consists of."""
        ...

    @property
    def positions(self) -> tuple[int, ...]:
        """See `StackCache`."""
        ...

    @property
    def num_bytes(self) -> int:
        """See `StackCache`."""
        ...

    def select(self, rows: Sequence[int]) -> "LayerCaches":
        """See `StackCache`."""
        ...

    def forget(self, rows: Sequence[int], skipped: int = 0) -> "LayerCaches":
        """See `StackCache`."""
        ...

    @classmethod
    def grown_early(cls, caches: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `StackCache`."""
        ...


@runtime_checkable
class LayerSlots(Protocol):
    """Room behind `LayerCaches` for one pass."""

    def keep(self, counts: Sequence[int]) -> LayerCaches:
        """See `Slot`."""
        ...
