"""Prompts out of a text, and how the text itself goes on behind each: what decoding is measured on.

A prompt lies within one document. Prompts are spread evenly over all documents laid end to end, none overlaps
another, and where exactly each begins follows from the seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from bltkit.data import Document, read_documents
from bltkit.study.fast_decoding.quality import may_be_python, whole_lines

CODE = "code"
"""Texts of a name that begins so are Python."""


@dataclass(frozen=True)
class Passage:
    """A prompt and what follows it in its document, both of whole characters where the document is UTF-8."""

    document: str
    prompt: bytes
    rest: bytes
    """Up to where the next prompt's place begins; may be empty."""


@dataclass(frozen=True)
class Passages:
    """Of one text."""

    name: str
    passages: tuple[Passage, ...]

    @property
    def is_code(self) -> bool:
        """Is it Python."""
        return self.name.startswith(CODE)

    @property
    def digest(self) -> str:
        """Of prompts and rests."""
        state = sha256()
        for passage in self.passages:
            for piece in (passage.prompt, passage.rest):
                state.update(len(piece).to_bytes(8, "big") + piece)
        return state.hexdigest()[:16]


def read_text(name: str, source: str) -> list[Document]:
    """The documents of a data source: a file, a glob, a folder (code: all .py files below it; else all files).

    Raises ValueError where there are none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder / "**" / ("*.py" if name.startswith(CODE) else "*"))
    return read_documents([source])


def passages_of(
    name: str,
    documents: Sequence[Document],
    count: int,
    *,
    prompt_bytes: int,
    room: int,
    rest_bytes: int,
    seed: int = 0,
) -> Passages:
    """`count` passages, as evenly spread as the documents allow.

    prompt_bytes: of a prompt; up to 3 fewer where a character would be cut.
    room: bytes that a document must have behind a prompt, or in front of it: within so many a prompt is moved to where
        a line begins, in code to the first such place whose own lines are Python.
    rest_bytes: of a rest at most.

    Raises ValueError where the documents that are long enough have no room for so many.
    """
    size = prompt_bytes + room
    slots = [(at, begin) for at, one in enumerate(documents) for begin in range(0, len(one.data) - size + 1, size)]
    if len(slots) < count:
        longest = max(len(one.data) for one in documents)
        raise ValueError(
            f"text {name!r} has room for {len(slots)} prompts of {prompt_bytes} bytes with {room} bytes behind, not "
            f"for {count}; its longest document has {longest} bytes: "
            "give more text, or ask for fewer or shorter prompts"
        )
    random = np.random.default_rng(seed)
    edges = [number * len(slots) // count for number in range(count + 1)]
    chosen = [slots[int(random.integers(low, high))] for low, high in pairwise(edges)]
    begins = [
        (at, _begin(documents[at].data, begin, prompt_bytes, room, name.startswith(CODE))) for at, begin in chosen
    ]
    found = []
    for number, (at, begin) in enumerate(begins):
        data = documents[at].data
        end = _at_character(data, begin + prompt_bytes)
        follows = begins[number + 1][1] if number + 1 < count and begins[number + 1][0] == at else len(data)
        stop = _at_character(data, min(follows, end + rest_bytes))
        found.append(Passage(documents[at].name, data[begin:end], data[end : max(end, stop)]))
    return Passages(name, tuple(found))


def _begin(data: bytes, place: int, prompt_bytes: int, room: int, code: bool) -> int:
    """Where the prompt of a place begins: `room` bytes behind its beginning at most."""
    lines = [at for at in range(place, place + room + 1) if at == 0 or data[at - 1] == 0x0A]
    lines = [at for at in lines if data[at] not in b"\r\n"] or lines
    if code:
        for at in lines:
            own = whole_lines(data[at : at + prompt_bytes])
            if own.strip() and may_be_python(own):
                return at
    if lines:
        return lines[0]
    return next((at for at in range(place, place + min(4, room + 1)) if data[at] & 0xC0 != 0x80), place)


def _at_character(data: bytes, at: int) -> int:
    """The last place from `at` backwards where a character begins; `at` where there is none near."""
    for back in range(4):
        if at - back >= len(data) or data[at - back] & 0xC0 != 0x80:
            return at - back
    return at
