"""Bytes <-> ids: the first and the last stage of a byte's way (Fast BLT 1.1; BLT reference vocabulary).

256 byte values behind 4 special ids. Any bytes go in and the same bytes come out: invalid UTF-8 is data.
"""

import codecs
import re
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

PAD = 0
"""Padding, and "beginning of everything" in n-gram windows; never predicted."""
BOS = 1
EOS = 2
MASK = 3
"""A byte not yet decided in block diffusion; the BPE delimiter of the reference's vocabulary."""
OFFSET = 4
VOCAB_SIZE = 256 + OFFSET

NEVER_EMITTED = (PAD, BOS, MASK)
"""Ids whose logits go to -inf before sampling."""


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 bytes of `text`; bytes pass unchanged.

    Escaped bytes (`surrogateescape`, as in file names and arguments) become the bytes they stand for, and any
    other lone surrogate becomes its three-byte form: nothing is dropped. Raises ValueError for what is neither text
    nor bytes.
    """
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ValueError(f"text is of type {type(text).__name__}; give text or bytes")
    # Three-byte forms of U+DC80..U+DCFF, which no valid UTF-8 holds, are the escaped bytes.
    return re.sub(rb"\xed([\xb2\xb3])([\x80-\xbf])", _unescape, text.encode("utf-8", "surrogatepass"))


def _unescape(form: re.Match[bytes]) -> bytes:
    return form[0].decode("utf-8", "surrogatepass").encode("utf-8", "surrogateescape")


def encode(text: str | bytes, *, bos: bool = True, eos: bool = False) -> Int64[Tensor, " T"]:
    """Ids of `text`, each byte plus 4, with BOS in front and EOS behind if asked for."""
    data = to_bytes(text)
    ids = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).long() + OFFSET
        if data
        else torch.empty(0, dtype=torch.long)
    )
    return torch.cat([torch.tensor([BOS] * bos, dtype=torch.long), ids, torch.tensor([EOS] * eos, dtype=torch.long)])


def decode(ids: Tensor | Sequence[int]) -> bytes:
    """The bytes of `ids`; special ids (below 4) have none. Raises ValueError for an id outside the vocabulary."""
    values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    for value in values:
        if not 0 <= value < VOCAB_SIZE:
            raise ValueError(f"id {value} is outside the byte vocabulary 0..{VOCAB_SIZE - 1}")
    return bytes(value - OFFSET for value in values if value >= OFFSET)


class Utf8Stream:
    """Bytes that arrive one at a time, as text for display: a character appears once its last byte is there.

    Invalid bytes become U+FFFD on screen only; the bytes themselves are kept elsewhere.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    @property
    def pending(self) -> int:
        """Bytes of a character that has begun."""
        return len(self._decoder.getstate()[0])

    def end(self) -> str:
        """What is left: U+FFFD for a character cut short."""
        return self._decoder.decode(b"", final=True)
