"""The constraint of structured output: bytes that a grammar allows and that can still be completed in the budget.

A state keeps a completion: bytes that end the text from here. A byte is allowed where the grammar allows it and a
completion of what follows fits the remaining budget. The first byte of the completion always is, so the text is
complete before the budget is used up, whatever the model prefers.

Completions are searched, and each is confirmed by the grammar's matcher; a longer one than the shortest costs freedom
near the end of the budget and never validity.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from bltkit.generate.grammar import Grammar
from bltkit.vocab import EOS, OFFSET, VOCAB_SIZE

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_COMPLETION = 65_536
"""Bytes of a completion that is searched for."""
_SHORT, _LONG = 48, 512
"""Bytes after which hints are tried, and after which a completion is taken for a loop of an expression."""
_STATES = 200
"""States that the search for a short completion of a whole text looks at."""

_TOO_LONG = np.iinfo(np.int64).max
_ORDER = b'}]"0123456789tfn-{[:,abcdeghijklmopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
"""Bytes that end values first, then those that begin short ones."""
_LAST = b"\\ \t\r\n"
_RANK = {
    byte + OFFSET: rank for rank, byte in enumerate((*_ORDER, *sorted({*range(256)} - {*_ORDER} - {*_LAST}), *_LAST))
}
"""How early a completion takes a byte, by id."""
_QUOTE, _IN_STRING = ord('"') + OFFSET, 64
"""Where more bytes than these are allowed, a quotation mark ends a string; elsewhere it begins one."""
_PATIENCE = 4
"""Times that a completion takes a byte among the same alternatives."""


@dataclass(frozen=True, eq=False)
class Structured:
    """State of the constraint after `made`. A value: `allowed` and `after` change nothing that is seen."""

    grammar: Grammar
    made: bytes
    completion: bytes
    """Bytes that complete the text from here."""
    matcher: "LLMatcher" = field(repr=False)
    """In the state after `made`; only copies of it move."""

    @classmethod
    def start(cls, grammar: Grammar, max_bytes: int) -> Self:
        """The state before the first byte.

        Raises ValueError where no text of the grammar of at most `max_bytes` bytes was found.
        """
        completion = _first_completion(grammar, max_bytes)
        if completion is None:
            raise ValueError(f"{grammar.kind}: no output of at most {MAX_COMPLETION:,} bytes was found")
        if len(completion) > max_bytes:
            raise ValueError(
                f"max_bytes = {max_bytes}: the shortest output that was found for this {grammar.kind} takes "
                f"{len(completion)} bytes; raise the budget"
            )
        return cls(grammar, b"", completion, grammar.start())

    def allowed(self, remaining: int) -> Bool[Tensor, " V"]:
        """See `Constraint`."""
        return torch.from_numpy(self._sizes <= remaining)

    def after(self, chosen: int) -> "Structured":
        """See `Constraint`."""
        if chosen == EOS:
            return self
        if chosen not in self._followers:
            made = self.made + bytes([chosen - OFFSET])
            matcher = _moved(self.matcher, (chosen,))
            self._followers[chosen] = Structured(self.grammar, made, self._completions[chosen], matcher)
        return self._followers[chosen]

    def finished(self, remaining: int) -> bool:
        """See `Constraint`."""
        return self.matcher.is_stopped() or (remaining == 0 and self.matcher.is_accepting())

    def __reduce__(self) -> Any:
        return _restored, (self.grammar, self.made, self.completion)

    @cached_property
    def _followers(self) -> dict[int, "Structured"]:
        """States after bytes, by id, as far as somebody asked for them: drafts are followed more than once."""
        return {}

    @cached_property
    def _completions(self) -> dict[int, bytes]:
        """A completion of what follows each byte that can be completed, by the byte's id."""
        completions: dict[int, bytes] = {}
        alike: dict[bytes, bytes | None] = {}
        for chosen in _bytes_of(self.matcher.compute_bitmask()):
            if self.completion and chosen == self.completion[0] + OFFSET:
                completions[chosen] = self.completion[1:]
            elif _completes(self.matcher, self.completion, (chosen,)):
                completions[chosen] = self.completion
            elif _completes(self.matcher, self.completion[1:], (chosen,)):
                completions[chosen] = self.completion[1:]
            else:
                matcher = _moved(self.matcher, (chosen,))
                mask = matcher.compute_bitmask()
                completion = alike.get(mask)
                if completion is None or not _completes(matcher, completion):
                    completion = alike[mask] = _completion(matcher, self.grammar.hints)
                if completion is not None:
                    completions[chosen] = completion
        return completions

    @cached_property
    def _sizes(self) -> Int64[np.ndarray, " V"]:
        """Bytes that each id and its completion take; EOS takes none."""
        sizes = np.full(VOCAB_SIZE, _TOO_LONG)
        if self.matcher.is_accepting():
            sizes[EOS] = 0
        for chosen, completion in self._completions.items():
            sizes[chosen] = 1 + len(completion)
        return sizes


@lru_cache(maxsize=256)
def _first_completion(grammar: Grammar, max_bytes: int) -> bytes | None:
    matcher = grammar.start()
    completion = _completion(matcher, grammar.hints)
    if completion is None or len(completion) > max_bytes:
        completion = _shorter(matcher, grammar.hints, max_bytes) or completion
    return completion


def _restored(grammar: Grammar, made: bytes, completion: bytes) -> Structured:
    return Structured(grammar, made, completion, _moved(grammar.start(), _ids(made)))


def _ids(data: bytes) -> list[int]:
    return [byte + OFFSET for byte in data]


@lru_cache(maxsize=1024)
def _bytes_of(mask: bytes) -> tuple[int, ...]:
    """Ids of the bytes in a bit mask, in the order in which a completion takes them."""
    allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[OFFSET:VOCAB_SIZE]
    ids = sorted((np.flatnonzero(allowed) + OFFSET).tolist(), key=_RANK.__getitem__)
    if len(ids) > _IN_STRING and _QUOTE in ids:
        ids = [_QUOTE, *(chosen for chosen in ids if chosen != _QUOTE)]
    return tuple(ids)


def _moved(matcher: "LLMatcher", ids: Iterable[int]) -> "LLMatcher":
    moved = matcher.deep_copy()
    for chosen in ids:
        moved.consume_token(chosen)
    return moved


def _completes(matcher: "LLMatcher", completion: bytes, first: Sequence[int] = ()) -> bool:
    """Do the ids `first` and then `completion` complete the text."""
    ids = [*first, *_ids(completion), EOS]
    return matcher.validate_tokens(ids) == len(ids)


def _completion(matcher: "LLMatcher", hints: Sequence[bytes], longest: int = MAX_COMPLETION) -> bytes | None:
    """Bytes that complete the text; None where none were found.

    The bytes that end values come first; where they lead to no end, texts of `hints` are tried wherever they fit.
    """
    for limit, fitting in ((_SHORT, ()), (_LONG, hints), (longest, hints)):
        completion = _descent(matcher, fitting, min(limit + sum(map(len, fitting)), longest))
        if completion is not None or limit >= longest:
            return completion
    return None


def _descent(matcher: "LLMatcher", hints: Sequence[bytes], longest: int) -> bytes | None:
    matcher, made = matcher.deep_copy(), bytearray()
    taken: Counter[bytes] = Counter()
    while not matcher.is_accepting():
        step = next((hint for hint in hints if matcher.validate_tokens(_ids(hint)) == len(hint)), b"")
        step = step or matcher.compute_ff_bytes()
        if not step:
            mask = matcher.compute_bitmask()
            # Another byte is taken after a few times, so that a loop of an expression is left.
            choices = _bytes_of(mask)
            step = bytes([choices[taken[mask] // _PATIENCE % len(choices)] - OFFSET])
            taken[mask] += 1
        matcher.consume_tokens(_ids(step))
        made += step
        if matcher.is_error() or len(made) > longest:
            return None
    return bytes(made)


def _shorter(matcher: "LLMatcher", hints: Sequence[bytes], max_bytes: int) -> bytes | None:
    """A completion of at most `max_bytes` bytes, by a best-first search; None where none was found.

    Of the bytes that lead to the same next bytes one is looked at. Gives up after `_STATES` states.
    """
    heap = [(0, b"")]
    for _ in range(_STATES):
        if not heap:
            break
        _, made = heapq.heappop(heap)
        parent, masks = _moved(matcher, _ids(made)), set()
        left = max_bytes - len(made) - 1
        for chosen in _bytes_of(parent.compute_bitmask()) if left >= 0 else ():
            child = _moved(parent, (chosen,))
            mask = child.compute_bitmask()
            if mask in masks:
                continue
            masks.add(mask)
            text = made + bytes([chosen - OFFSET])
            rest = _descent(child, (), left)
            if rest is None:
                rest = _descent(child, hints, left)
            if rest is not None:
                return text + rest
            heapq.heappush(heap, (len(text), text))
    return None
