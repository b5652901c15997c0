"""A byte-level BPE tokenizer over bytes: lossless for any bytes, invalid UTF-8 included.

The `tokenizers` library works on text. Here a document is cut into runs of valid UTF-8, which the library
tokenizes, and stray bytes, which are tokens of their own (every byte-level vocabulary holds all 256). The
bytes of the tokens, joined, are checked to be the document's bytes, so token borders are exact byte
positions.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bltkit.files import read_utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_RUNS = re.compile("[\udc80-\udcff]|[^\udc80-\udcff]+")
"""One escaped byte (`surrogateescape`), or a run of valid text."""


@dataclass(frozen=True, eq=False)
class ByteTokenizer:
    """A `tokenizers.Tokenizer` that takes and gives bytes. `pieces[id]` are the bytes of a token."""

    tokenizer: "Tokenizer"
    pieces: dict[int, bytes]

    @classmethod
    def load(cls, path: str | Path) -> "ByteTokenizer":
        """Read a tokenizer.json. Raises ValueError where it is missing, broken or not byte-level BPE."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"tokenizer = {str(path)!r}: no such file; name a tokenizer.json")
        return cls.from_json(read_utf8(path), where=f"tokenizer = {str(path)!r}")

    @classmethod
    def from_json(cls, text: str, where: str = "tokenizer") -> "ByteTokenizer":
        """As `load`, from the text of a tokenizer.json; `where` names its origin in messages."""
        library = tokenizers_library()
        try:
            tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{where}: not a tokenizer.json: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # bytes are data: "<|endoftext|>" is 13 bytes of text
        added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        pieces = {number: content.encode("utf-8") for number, content in added.items()}
        byte_of = {character: value for value, character in enumerate(byte_characters())}
        try:
            for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
                if number not in added:
                    pieces[number] = bytes(byte_of[character] for character in token)
        except KeyError as error:
            raise ValueError(
                f"{where}: token {token!r} holds {error.args[0]!r}, which stands for no byte; "
                "the tokenizer must be byte-level BPE, such as that of GPT-2 or Llama 3"
            ) from None
        missing = 256 - len({piece for piece in pieces.values() if len(piece) == 1})
        if missing:
            raise ValueError(f"{where}: {missing} of the 256 bytes have no token; use byte-level BPE")
        return cls(tokenizer, pieces)

    def encode(self, data: bytes) -> list[int]:
        """Token ids of `data`; their `pieces`, joined, are `data`.

        Raises ValueError where the tokenizer changes the text (a normalizer, a prefix space).
        """
        tokens: list[int] = []
        for run in _RUNS.findall(data.decode("utf-8", "surrogateescape")):
            if "\udc80" <= run <= "\udcff":
                tokens.append(self._byte_token[ord(run) - 0xDC00])
            else:
                tokens.extend(self.tokenizer.encode(run, add_special_tokens=False).ids)
        if self.decode(tokens) != data:
            raise ValueError(
                "the tokenizer changes the text, so its borders fit no byte positions; remove its normalizer "
                "and set add_prefix_space to false"
            )
        return tokens

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of `tokens`."""
        return b"".join(self.pieces[token] for token in tokens)

    @cached_property
    def _byte_token(self) -> dict[int, int]:
        """Value of a byte -> its token, the lowest id where there are several."""
        by_id = sorted(self.pieces.items(), reverse=True)
        return {piece[0]: number for number, piece in by_id if len(piece) == 1}


def train_bpe(documents: Iterable[bytes], vocab_size: int, special_tokens: Sequence[str] = ()) -> str:
    """Train a byte-level BPE tokenizer and return the text of its tokenizer.json.

    The vocabulary holds `special_tokens` (ids 0, 1, ...), the 256 bytes and as many merges as fit into
    `vocab_size` (fewer where the documents run out of pairs). Words are cut by GPT-2's expression.
    Deterministic: the same documents give the same text. Bytes that are no valid UTF-8 separate runs of text
    and are not merged. Raises ValueError for a vocabulary too small for the bytes.
    """
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise ValueError(f"vocab_size = {vocab_size}: the 256 bytes and special tokens alone need {least}")
    library = tokenizers_library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    texts = (document.decode("utf-8", "surrogateescape") for document in documents)
    runs = (run for text in texts for run in _RUNS.findall(text) if not "\udc80" <= run <= "\udcff")
    tokenizer.train_from_iterator(runs, trainer)
    return str(tokenizer.to_str(pretty=False))


def byte_characters() -> list[str]:
    """The character that stands for each byte (GPT-2's choice): itself where printable, else U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return [chr(value) if value in printable else chr(0x100 + others.index(value)) for value in range(256)]


def tokenizers_library() -> Any:
    """The library `tokenizers`. Raises ValueError that says how to install it."""
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError:
        raise ValueError("BPE tokenizers need the library `tokenizers`: pip install 'bltkit[bpe]'") from None
    return tokenizers
