"""Bytes <-> tokens for a token model under evaluation: which bytes of a text each token holds, and windows of tokens.

Fast tokenizers only, as only these say which characters a token stands for. Nothing here adds BOS or EOS.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from bltkit.files import parse_json

_LOST = "\ufffd"


@dataclass(frozen=True)
class Tokens:
    """A text as tokens. begins, ends: the bytes of the text that each token holds, as far as its tokenizer says.

    Several tokens may make up one character; each of them then holds all of its bytes. Both rise, but not strictly.
    """

    ids: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """Tokens [begin, stop) of a text, of which [first, stop) are scored with those before them in sight."""

    begin: int
    first: int
    stop: int


class TextTokenizer:
    """The text part of a fast tokenizer of transformers: no special tokens added, nothing padded or cut.

    Names of special tokens that stand in a text become these tokens, as they do in transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Raises ValueError for a slow tokenizer."""
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__}: a slow one, which does not say what characters a token stands "
                "for; save it as tokenizer.json (tokenizers >= 0.21)"
            )
        from tokenizers import Tokenizer

        # A copy without a post-processor: it would add special tokens, and may take the spaces out of the offsets.
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.post_processor = None
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._special = frozenset(tokenizer.all_special_ids)
        decoder = parse_json(backend.to_str(), "tokenizer")["decoder"] or {}
        self._spelled = decoder.get("type") == "ByteLevel"
        self._added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}

    def encode(self, texts: Sequence[bytes]) -> list[Tokens]:
        """The tokens of each text; what is not UTF-8 is tokenised as U+FFFD."""
        found = []
        readable = [_readable(text) for text in texts]
        encoded = self._backend.encode_batch([text for text, _ in readable], add_special_tokens=False)
        for (_, borders), one in zip(readable, encoded, strict=True):
            begins, ends = [begin for begin, _ in one.offsets], [end for _, end in one.offsets]
            if borders is not None:
                begins, ends = [borders[at] for at in begins], [borders[at] for at in ends]
            found.append(Tokens(tuple(one.ids), tuple(accumulate(begins, max)), tuple(accumulate(ends, max))))
        return found

    def writer(self, prompt: Sequence[int]) -> "TokenDecoder":
        """What turns the tokens that follow `prompt` into bytes."""
        return _Speller(self) if self._spelled else _Decoder(self, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def spell(self, token: int) -> bytes:
        """The very bytes of a token; only where the tokenizer is a byte-level one."""
        if token in self._special:
            return b""
        if (added := self._added.get(token)) is not None:
            return added.encode()
        text = self._backend.id_to_token(token) or ""  # a model's head may be wider than the vocabulary
        return bytes(_BYTE_OF[letter] for letter in text)


class TokenDecoder:
    """Tokens that arrive one at a time, as bytes."""

    def feed(self, token: int) -> bytes:
        """The bytes that this token makes certain."""
        raise NotImplementedError

    def end(self) -> bytes:
        """What is left when the model has ended its text."""
        return b""


class _Speller(TokenDecoder):
    """For byte-level tokenizers: a token's bytes are its name's letters, so invalid UTF-8 comes out as it is."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def feed(self, token: int) -> bytes:
        return self._tokenizer.spell(token)


class _Decoder(TokenDecoder):
    """For all others: through the decoded text, with U+FFFD for what makes no character.

    Tokens are decoded behind the prompt's last ones, as many decoders drop the space in front of a text.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_ANCHOR:])
        self._before = len(tokenizer.decode(self._ids).rstrip(_LOST))
        self._done = 0

    def feed(self, token: int) -> bytes:
        self._ids.append(token)
        # The last character may be unfinished.
        return self._from(self._tokenizer.decode(self._ids).rstrip(_LOST))

    def end(self) -> bytes:
        return self._from(self._tokenizer.decode(self._ids))

    def _from(self, text: str) -> bytes:
        new = text[self._before + self._done :]
        self._done += len(new)
        return new.encode("utf-8", "replace")


_ANCHOR = 8
"""Tokens of a prompt that a decoder sees; the bytes of one character are never more than 4."""


def spans(tokens: Tokens, first: int, positions: int | None, window_bytes: int | None = None) -> Iterator[Span]:
    """Windows in which the tokens from `first` on are scored, each in exactly one.

    positions: tokens of a window at most. window_bytes: its bytes, about: a window begins at the last token border
    with at least half as many bytes before its first scored token, where the text has them, and ends at the last border
    in reach (behind one token at least). Without, one window that ends with the text, if the scored tokens fit into it.
    What does not fit into one goes into several, whose first scored tokens see about half of what `positions` allows.
    """
    count = len(tokens.ids)
    room = count if positions is None else positions
    # A text whose tokens all fit is cut by bytes alone: a limit on tokens would take context that it has.
    seen = count if room >= count else min((room + 1) // 2, room - 1)
    begin = 0
    if window_bytes is None:
        begin = max(0, count - room if count - first <= room else first - seen)
    while first < count:
        stop = min(count, begin + room)
        if window_bytes is not None:
            reach = bisect_right(tokens.ends, tokens.begins[begin] + window_bytes)
            stop = min(stop, max(reach, first + 1))
        assert begin <= first < stop
        yield Span(begin, first, stop)
        first = stop
        begin = max(0, first - seen)
        if window_bytes is not None:
            at = bisect_right(tokens.begins, tokens.ends[first - 1] - -(-window_bytes // 2)) - 1
            begin = max(begin, bisect_left(tokens.begins, tokens.begins[at]) if at >= 0 else 0)


def _readable(data: bytes) -> tuple[str, list[int] | None]:
    """A text as a tokenizer reads it, and the bytes at which its characters (and the text's end) stand; None where
    these are the characters' own numbers."""
    text = data.decode("utf-8", "replace")
    if len(text) == len(data):
        return text, None
    borders, at = [0], 0
    for character in text:
        at += _invalid(data[at : at + 4]) if character == _LOST else len(character.encode())
        borders.append(at)
    assert at == len(data)
    return text, borders


def _invalid(data: bytes) -> int:
    """How many bytes the U+FFFD stands for that `data` decodes to first."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end if error.start == 0 else len(_LOST.encode())
    return len(_LOST.encode())


def _letters() -> dict[str, int]:
    """Byte-level tokenizers write printable Latin-1 bytes as themselves, the others as U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_OF = _letters()
