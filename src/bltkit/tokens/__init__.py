"""Byte-level BPE tokenizers that are lossless for any bytes, and vocabularies of token models.

Patching by tokens, token models and their checkpoints use them. No model and no rule is known here.
"""

from bltkit.tokens.tokenizer import ByteTokenizer, train_bpe
from bltkit.tokens.vocabulary import Vocabulary

__all__ = ["ByteTokenizer", "Vocabulary", "train_bpe"]
