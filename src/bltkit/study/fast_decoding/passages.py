"""Passages of a text: prompts, each within one document, and how the document itself continues after each of them.

Prompts are spread evenly over all documents laid end to end, none overlaps another, and where each begins follows from
the seed alone. In code a prompt begins at a line from which on it is Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from bltkit.bench.prompt_texts import character_end, prompt_begin, spread_places
from bltkit.data import Document, read_documents
from bltkit.study.fast_decoding.quality import begins_python

CODE = "code"
"""Texts of a name that begins so are Python."""


@dataclass(frozen=True)
class Passage:
    """A prompt and what follows it in its document, both of whole characters where the document is UTF-8."""

    document: str
    prompt: bytes
    rest: bytes
    """Up to where the next prompt begins; may be empty."""


@dataclass(frozen=True)
class Passages:
    """Passages of one text."""

    name: str
    passages: tuple[Passage, ...]

    @property
    def is_code(self) -> bool:
        """Is the text Python."""
        return self.name.startswith(CODE)

    @property
    def digest(self) -> str:
        """Hash of prompts and rests."""
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
    room: bytes that a document holds around a prompt, which moves by at most as many to the beginning of a line.
    rest_bytes: maximum number of bytes of a rest.

    Raises ValueError where the documents that are long enough have no room for as many.
    """
    texts = [document.data for document in documents]
    sizes = [len(text) for text in texts]
    places = spread_places(sizes, count, prompt_bytes + room, np.random.default_rng(seed))
    if not places:
        slots = sum(size // (prompt_bytes + room) for size in sizes)
        raise ValueError(
            f"text {name!r} has room for {slots} prompts of {prompt_bytes} bytes with {room} bytes after each, not "
            f"for {count}; its longest document has {max(sizes)} bytes: "
            "give more text, or ask for fewer or shorter prompts"
        )
    fits = begins_python if name.startswith(CODE) else lambda prompt: True
    begins = [(at, prompt_begin(texts[at], place, prompt_bytes, room, fits)) for at, place in places]
    passages = []
    for (at, begin), (next_at, next_begin) in zip(begins, [*begins[1:], (-1, 0)], strict=True):
        text = texts[at]
        end = character_end(text, begin + prompt_bytes)
        stop = character_end(text, min(next_begin if next_at == at else len(text), end + rest_bytes))
        passages.append(Passage(documents[at].name, text[begin:end], text[end : max(end, stop)]))
    return Passages(name, tuple(passages))
