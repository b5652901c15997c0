"""The vocabulary of a token model: a lossless byte-level tokenizer and the tokens that stand for no bytes.

A value made of the text of tokenizer.json, so that it can be hashed, stored with a run and sent to a loader's workers.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bltkit.files import read_json, read_utf8, require_regular
from bltkit.tokens.tokenizer import ByteTokenizer, tokenizers_library, train_bpe

PAD, BOS, EOS = SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")
"""Of a tokenizer that is trained here: ids 0, 1 and 2, as in the vocabulary of bytes."""

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    """text: of tokenizer.json. bos, eos, pad: ids; of a loaded tokenizer some may be the same."""

    text: str = field(repr=False)
    bos: int
    eos: int
    pad: int

    @classmethod
    def train(cls, documents: Iterable[bytes], vocab_size: int) -> Self:
        """With at most `vocab_size` tokens, special ones among them; fewer where the documents run out of pairs.

        Deterministic. Raises ValueError for a vocabulary too small for the 256 bytes and the special tokens.
        """
        library = tokenizers_library()
        tokenizer = library.Tokenizer.from_str(train_bpe(documents, vocab_size, SPECIAL))
        # Who encodes with transformers gets what the model was trained on: BOS in front.
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
        )
        pad, bos, eos = range(3)
        return cls(tokenizer.to_str(pretty=False), bos, eos, pad)

    @classmethod
    def load(cls, path: str | Path, where: str = "model.tokenizer") -> Self:
        """From a tokenizer.json, or the directory that holds it.

        BOS, EOS and padding are those that tokenizer_config.json beside it names (padding: else EOS). Where it does not
        name BOS and EOS, tokens `<|bos|>`, `<|eos|>` and `<|pad|>` are added. where: its origin in messages.
        Raises ValueError where there is none, or none of byte-level BPE.
        """
        file = Path(path).expanduser()
        file = file / TOKENIZER if file.is_dir() else file
        if not file.is_file():
            raise ValueError(f"{where} = {str(path)!r}: no such file; name a tokenizer.json or a directory with one")
        text = read_utf8(file)
        tokenizer = ByteTokenizer.from_json(text, where=f"{where} = {str(path)!r}").tokenizer
        bos, eos, pad = (tokenizer.token_to_id(name) for name in _named(file.parent / SETTINGS))
        if bos is not None and eos is not None:
            return cls(text, bos, eos, eos if pad is None else pad)
        changed = tokenizers_library().Tokenizer.from_str(text)
        changed.add_special_tokens(list(SPECIAL))
        pad, bos, eos = (changed.token_to_id(name) for name in SPECIAL)
        return cls(changed.to_str(pretty=False), bos, eos, pad)

    @cached_property
    def tokenizer(self) -> ByteTokenizer:
        """Bytes <-> tokens, without the special ones."""
        return ByteTokenizer.from_json(self.text)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[size] Bytes of each token; 0 for special ones and for ids that are none."""
        found = np.zeros(self.size, dtype=np.int64)
        for token, piece in self.tokenizer.pieces.items():
            found[token] = len(piece)
        found[[self.bos, self.eos, self.pad]] = 0
        return found

    @property
    def size(self) -> int:
        """Rows that an embedding needs."""
        return max(self.tokenizer.pieces) + 1

    @property
    def sha256(self) -> str:
        """Of what decides the tokens of every text."""
        return hashlib.sha256(f"{self.bos} {self.eos} {self.pad}\n{self.text}".encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """What `load` reads back, and transformers' AutoTokenizer: name -> content."""
        name = self.tokenizer.tokenizer.id_to_token
        settings: dict[str, Any] = {
            # Not Llama's own class, which would cut words in its own way.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": name(self.bos),
            "eos_token": name(self.eos),
            "pad_token": name(self.pad),
            "clean_up_tokenization_spaces": False,
        }
        return {TOKENIZER: self.text.encode(), SETTINGS: (json.dumps(settings, indent=2) + "\n").encode()}

    def __reduce__(self) -> tuple[Any, ...]:
        # What is cached does not travel: a pickled tokenizer forgets how it treats the names of special tokens.
        return type(self), (self.text, self.bos, self.eos, self.pad)


def _named(settings: Path) -> tuple[str, str, str]:
    """Names of BOS, EOS and padding in a tokenizer_config.json; "" where it has none."""
    try:
        require_regular(settings)  # a named pipe would wait for ever
        found = read_json(settings)
    except FileNotFoundError:
        return "", "", ""
    values = [found.get(f"{role}_token") if isinstance(found, dict) else None for role in ("bos", "eos", "pad")]
    # A token is a name, or a table with the name in it.
    names = [value.get("content") if isinstance(value, dict) else value for value in values]
    bos, eos, pad = (name if isinstance(name, str) else "" for name in names)
    return bos, eos, pad
