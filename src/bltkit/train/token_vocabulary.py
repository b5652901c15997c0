"""Where a token model's tokens come from: the checkpoint that a run goes on from, a file, or the run's documents."""

from pathlib import Path

import numpy as np

from bltkit.checkpoint import resolve_model
from bltkit.data import Corpus
from bltkit.model import SavedTokenizer, TokenConfig
from bltkit.tokens import Vocabulary
from bltkit.tokens.vocabulary import TOKENIZER
from bltkit.train.config import ModelConfig, TrainConfig


def known_vocabulary(config: TrainConfig, checkpoint: Path | None) -> Vocabulary | None:
    """The vocabulary of a token model's run, as far as it is there before the corpus is read; None for other models.

    checkpoint: what the run goes on from; its tokens count, then those of `trainer.init`, then the config's.
    Raises ValueError where it is missing, broken or too large for the model.
    """
    model = config.model
    if not isinstance(model, TokenConfig):
        return None
    if checkpoint is not None:
        found = Vocabulary.load(checkpoint, where="checkpoint")
    elif config.trainer.init is not None:
        found = Vocabulary.load(resolve_model(config.trainer.init) / TOKENIZER, where="trainer.init")
    elif isinstance(model.tokenizer, SavedTokenizer):
        found = Vocabulary.load(model.tokenizer.path)
    else:
        return None
    if found.size > model.vocab_size:
        raise ValueError(
            f"model.vocab_size = {model.vocab_size} is too small for the tokenizer's {found.size} tokens (BOS, EOS and "
            f"padding among them); set model.vocab_size = {found.size}"
        )
    return found


def trained_vocabulary(model: ModelConfig, corpus: Corpus) -> Vocabulary | None:
    """Trained on a sample of the first epoch's documents, by the sources' weights; None for models of bytes.

    The same for the same corpus, whatever the run's seed. Raises ValueError for a vocabulary too small for the bytes.
    """
    if not isinstance(model, TokenConfig):
        return None
    assert not isinstance(model.tokenizer, SavedTokenizer)
    left, sample = model.tokenizer.sample_bytes, list[bytes]()
    visits = corpus.visits(0)
    visited = visits.documents(np.arange(len(visits)))
    for index in visited[np.argsort(corpus.phase[visited], kind="stable")]:
        if left <= 0:
            break
        sample.append(corpus.document(index)[:left])
        left -= len(sample[-1])
    try:
        return Vocabulary.train(sample, model.vocab_size)
    except ValueError as error:
        raise ValueError(f"model.{error}; raise it") from None
