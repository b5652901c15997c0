"""Tiny random token models, for whatever evaluates one: a Llama and a byte-level BPE tokenizer.

The texts that the tokenizer learns from are ours and fixed, so the same arguments give the same directory.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on under the old apple tree.",
    "Question: What is the colour of the sky on a clear day? Answer: The sky is blue, of course.",
    "A river carries water from the mountains to the sea; on its way it passes towns, fields and forests.",
    "She wrote a letter to her brother: the train had been late, but the journey was pleasant enough.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
    "In the year 1923 there were 4,567 people in the village; 89 of them were older than 70 years.",
    "Größere Städte liegen häufig an Flüssen. Über die Brücke führt eine schmale Straße.",
    "Question: How many letters are there in the word evaluation? Answer: There are ten letters in it.",
)


def tiny_tokenizer(vocab: int = 512, *, bos: bool = True, prefix: bool = True) -> Any:
    """A fast tokenizer of transformers. bos: does it have `<s>`, and put it in front of what it encodes."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=1,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos and prefix:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token="</s>", pad_token="</s>"
    )


def tiny_llama(
    directory: Path, vocab: int = 512, seed: int = 0, *, positions: int = 256, bos: bool = True, prefix: bool = True
) -> Path:
    """Writes a random Llama (2 layers of width 32, grouped heads) with its tokenizer; returns the directory.

    The weights are large enough that probabilities lie far from uniform and differ between positions.
    """
    tokenizer = tiny_tokenizer(vocab, bos=bos, prefix=prefix)
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0 if bos else None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if weight.ndim == 1 else 1.5 * noise / weight.shape[1] ** 0.5)
    logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
