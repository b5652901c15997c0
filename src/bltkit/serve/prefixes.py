"""Sessions of prompts that were read before, so that a prompt is read only from where it differs.

States are kept at every `snapshot` ids, at the end of each prompt, and where a prompt parts from an earlier one: so a
text that many prompts begin with is read whole no more than twice. Sessions are values, so a hit changes no byte: what
follows is computed from the same state that reading the prompt would leave.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from bltkit.generate import Session
from bltkit.generate.top_logprobs import Tops

SHARED = 32
"""Fewest ids worth a state of their own."""

WIDTH = 2
"""Bytes of an id in a key; the larger half first, so that keys are ordered as ids are."""


NUMBER, PAIR = 32, 120
"""Bytes of a Python number in a tuple, and of an id with one."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The state behind some ids; what the model thought of them, where somebody asked."""

    length: int
    session: Session
    logprobs: tuple[float, ...] = ()
    """Of all ids but the first; empty unless `tops` is not None."""
    top_logprobs: tuple[Tops, ...] = ()
    tops: int | None = None
    """Most probable ids of each in `top_logprobs`; None: nobody asked for log-probabilities."""

    def held(self) -> Iterator[tuple[int, int]]:
        """What it keeps alive, each with its bytes: storages by their address, and its numbers by a name of its own."""
        yield from storages(self.session)
        yield -id(self), NUMBER * len(self.logprobs) + PAIR * sum(map(len, self.top_logprobs))

    def serves(self, tops: int | None) -> bool:
        """Does it hold log-probabilities of the `tops` most probable ids, where a request asks for them."""
        return tops is None or self.tops == tops


class PrefixCache:
    """The least recently used ones go first. Not more than `limit` bytes of storage, each counted once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        """Of all storage that the sessions hold, whoever shares it."""
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._keys: list[bytes] = []
        """In order."""
        self._owners: dict[int, int] = {}
        """How many sessions hold each storage."""

    def __len__(self) -> int:
        """Number of prefixes."""
        return len(self._prefixes)

    def longest(self, ids: Sequence[int], tops: int | None = None) -> Prefix | None:
        """The longest prefix of `ids` whose state is there.

        tops: most probable ids wanted of each id; None: no log-probabilities are.
        """
        start = key_of(ids)
        while start:
            at = bisect_right(self._keys, start)
            if not at:
                return None
            key = self._keys[at - 1]
            if not start.startswith(key):
                # Any prefix stands in front of this key, which therefore begins with it, too.
                start = start[: _common(start, key)]
            elif (prefix := self._prefixes[key]).serves(tops):
                self._prefixes.move_to_end(key)
                return prefix
            else:
                start = key[:-WIDTH]
        return None

    def parting(self, ids: Sequence[int]) -> int:
        """Number of first ids that some other prompt begins with, too."""
        key = key_of(ids)
        at = bisect_left(self._keys, key)
        return max((_common(key, other) for other in self._keys[max(0, at - 1) : at + 1]), default=0) // WIDTH

    def add(self, ids: Sequence[int], prefix: Prefix) -> None:
        """Keep the state behind `ids`, unless it is larger than the limit; the same ids' earlier one goes."""
        if not self.limit:
            return
        key, prefix = key_of(ids), replace(prefix, session=replace(prefix.session, reading=None))
        if sum(nbytes for _, nbytes in prefix.held()) > self.limit:
            return
        if key in self._prefixes:
            self._remove(key)
        self._prefixes[key] = prefix
        insort(self._keys, key)
        for at, nbytes in prefix.held():
            self.bytes += 0 if at in self._owners else nbytes
            self._owners[at] = self._owners.get(at, 0) + 1
        self.shrink(self.limit)

    def shrink(self, limit: int) -> None:
        """Forget the least recently used until at most `limit` bytes are held."""
        while self._prefixes and self.bytes > limit:
            self._remove(next(iter(self._prefixes)))

    def _remove(self, key: bytes) -> None:
        prefix = self._prefixes.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        for at, nbytes in prefix.held():
            self._owners[at] -= 1
            if not self._owners[at]:
                del self._owners[at]
                self.bytes -= nbytes


def key_of(ids: Sequence[int]) -> bytes:
    """Ids as bytes of the same order."""
    values = array("H", ids)
    values.byteswap()
    return values.tobytes()


def storages(session: Session) -> Iterator[tuple[int, int]]:
    """Address and bytes of every tensor storage that a session keeps alive, each once; weights are left out."""
    sizes: dict[int, int] = {}
    _collect(session, sizes, set())
    return iter(sizes.items())


_OTHERS = frozenset({"model", "scorer", "rule", "texts", "passes"})


def _collect(value: Any, sizes: dict[int, int], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, list | tuple):
        for item in value:
            _collect(item, sizes, seen)
    elif type(value).__module__.startswith("bltkit.") and hasattr(value, "__dict__"):
        for name, inner in vars(value).items():
            if name not in _OTHERS:
                _collect(inner, sizes, seen)


def _common(first: bytes, second: bytes) -> int:
    """Length of the longest common beginning, in whole ids."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low - low % WIDTH
