"""tokenizer.json of a byte model: what lets `transformers.AutoTokenizer` turn texts into our ids, and ids into texts.

The files describe a byte-level BPE without merges: every byte is a token. They are written down here, since their
format is data: saving a model needs neither `tokenizers` nor `transformers`.
"""

import json
from typing import Any

from bltkit.tokens.tokenizer import byte_characters
from bltkit.vocab import BOS, EOS, MASK, OFFSET, PAD

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"

SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>", MASK: "<mask>"}
"""Names of the ids that stand for no byte. A text that spells one is bytes as any other."""


def tokenizer_files() -> dict[str, bytes]:
    """Names and contents of the files.

    BOS is put in front as `bltkit.vocab.encode` does; ids of bytes that are no UTF-8 decode to U+FFFD, as Python's
    `errors="replace"` does.
    """
    added = [
        {
            "id": number,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, name in SPECIAL.items()
    ]
    vocabulary = {name: number for number, name in SPECIAL.items()}
    vocabulary |= {character: value + OFFSET for value, character in enumerate(byte_characters())}
    # `use_regex`: words are not told apart. Offsets are left as the bytes' own.
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    bos = {"SpecialToken": {"id": SPECIAL[BOS], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": by_bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {SPECIAL[BOS]: {"id": SPECIAL[BOS], "ids": [BOS], "tokens": [SPECIAL[BOS]]}},
        },
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "mask_token": SPECIAL[MASK],
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    contents = {TOKENIZER: tokenizer, SETTINGS: settings}
    return {name: (json.dumps(content, indent=1) + "\n").encode() for name, content in contents.items()}
