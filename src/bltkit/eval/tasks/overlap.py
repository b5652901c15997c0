"""BLEU and chrF, computed by sacrebleu, as sums over sentences: any part of a corpus can be scored, or resampled.

Both are scores of a corpus: counts of n-grams are added up over its sentences, and only the sums are turned into a
score. So a sentence's contribution is its counts.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bltkit.eval.tasks.task import Numbers

SENTENCE_PIECES = ("flores200", "spm")
"""sacrebleu's tokenisations that need a model, the first that is at hand is taken; spm is that of FLORES-101."""


def need_sacrebleu() -> None:
    """Raises ValueError that names the extra where sacrebleu is missing."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError("BLEU and chrF need sacrebleu: pip install 'bltkit[eval]'")


def sentence_pieces() -> str | None:
    """The tokenisation by sentence pieces whose model lies where sacrebleu keeps it; nothing is downloaded."""
    need_sacrebleu()
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    if importlib.util.find_spec("sentencepiece") is None:
        return None
    for name in SENTENCE_PIECES:
        if (Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[name]["url"]).name).exists():
            return name
    return None


def bleu_sums(found: str, gold: str, tokenize: str) -> Numbers:
    """A sentence's contribution: n-grams of orders 1 to 4 that match, those there are, lengths of both in tokens."""
    score = _bleu(tokenize).sentence_score(found, [gold])
    return tuple(map(float, (*score.counts, *score.totals, score.sys_len, score.ref_len)))


def bleu(sums: Sequence[float]) -> float:
    """Summed contributions -> BLEU, 0 to 100, smoothed as sacrebleu does by default (exponential)."""
    from sacrebleu.metrics.bleu import BLEU

    *grams, found_length, gold_length = map(int, sums)
    half = len(grams) // 2
    return float(BLEU.compute_bleu(grams[:half], grams[half:], found_length, gold_length, smooth_method="exp").score)


def chrf_sums(found: str, gold: str) -> Numbers:
    """A sentence's contribution: for each order 1 to 6, n-grams of characters found, in the reference, in both."""
    # What sacrebleu itself resamples; it has no public name for a sentence's counts.
    return tuple(map(float, _chrf()._extract_corpus_statistics([found], [[gold]])[0]))


def chrf(sums: Sequence[float]) -> float:
    """Summed contributions -> chrF2, 0 to 100 (Popović 2015)."""
    return float(_chrf()._compute_score_from_stats(list(sums)).score)


@lru_cache(maxsize=4)
def _bleu(tokenize: str) -> Any:
    """Kept, because it holds a tokenizer's model."""
    from sacrebleu.metrics.bleu import BLEU

    # The order of a sentence alone touches only its own score, which nobody reads; unset, sacrebleu warns.
    return BLEU(tokenize=tokenize, effective_order=True)


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
