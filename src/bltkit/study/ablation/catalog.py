"""Catalogue of ablations: a question, and variants of one small training that answer it. A new one is an entry here.

A variant names its changes to the common config (`trainings.py`): sections and fields by dotted names. Rules are
named by kind; those with a threshold are calibrated on the entropy model, so that all cut at the same rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bltkit.config import nearest
from bltkit.study.ablation.shapes import SCORER, TOKENS, grown

ENTROPY = "threshold"
"""The common rule."""


@dataclass(frozen=True)
class Variant:
    """One training. Variants are compared with the first of their group."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name -> value, over the common config."""
    rule: str | None = ENTROPY
    """Kind of the patching rule; None where the variant has no patches or makes its own."""
    scorer: Mapping[str, Any] = field(default_factory=lambda: SCORER)
    """[model] section of the entropy model."""
    learned: bool = False
    """Boundaries learned by the objective `learned-boundary`, at the same rate."""
    group: str = ""


@dataclass(frozen=True)
class Ablation:
    """A named list of variants."""

    name: str
    question: str
    variants: tuple[Variant, ...]
    rate_of_words: bool = False
    """Cut everything at the rate of the rule `space`, which has no parameter."""
    same_flops: bool = False
    """Train every variant of a group with as many operations as its first takes for its steps."""
    rates: tuple[float, ...] = (1.0,)
    """Learning rates, as multiples of the common one. With several, the first seed of a variant tries all of them, and
    the other seeds train at the best on held-out text."""
    needs_texts: bool = False
    """Texts of several kinds, by --text: the standard library alone does not answer the question."""


def ablation_named(name: str) -> Ablation:
    """Raises ValueError that names the nearest one."""
    if name not in ABLATIONS:
        raise ValueError(f"no ablation {name!r}{nearest(name, list(ABLATIONS))}")
    return ABLATIONS[name]


def _model(**changes: Any) -> dict[str, Any]:
    return {f"model.{key}": value for key, value in changes.items()}


def _ngrams(*sizes: int, buckets: int = 2003) -> dict[str, Any]:
    return _model(ngrams={"sizes": list(sizes), "buckets": buckets})


def _scorer(**changes: Any) -> dict[str, Any]:
    return {**SCORER, **changes}


def _local() -> tuple[Variant, ...]:
    variants = []
    for params in (0.8e6, 1.6e6, 3.2e6):
        group = f"{params / 1e6:g}M"
        for width, encoder, decoder in ((64, 1, 2), (64, 1, 1), (64, 1, 4), (64, 2, 4), (32, 1, 2), (96, 1, 2)):
            model = grown(params, width, encoder, decoder)
            variants.append(Variant(f"{group}: width {width}, {encoder}+{decoder}", {"model": model}, group=group))
    return tuple(variants)


_LEVERS: dict[str, dict[str, Any]] = {
    "Muon": {"optim.muon": {}},
    "average of weights": {"optim.ema": 0.997},
    "zero outputs": {"trainer.zero_outputs": True},
    "short rows first": {"data.stages": [{"until": 0.2, "shorter": 4}, {"until": 0.5, "shorter": 2}]},
}


def _all() -> tuple[Ablation, ...]:
    return (
        Ablation(
            "optimizer",
            "What are Muon, an average of the weights, zero outputs and short rows first worth, alone and together?",
            (
                Variant("AdamW"),
                *(Variant(name, changes) for name, changes in _LEVERS.items()),
                Variant("all four", {key: value for changes in _LEVERS.values() for key, value in changes.items()}),
            ),
            rates=(0.5, 1.0, 2.0),
        ),
        Ablation(
            "patching",
            "Which borders are worth most at the same rate?",
            (
                Variant("entropy"),
                Variant("entropy rise", rule="rise"),
                Variant("words", rule="space"),
                Variant("stride", rule="stride"),
                Variant("random", rule="random"),
                Variant("learned", rule=None, learned=True),
            ),
            rate_of_words=True,
        ),
        Ablation(
            "ngrams",
            "What are n-gram sizes and buckets of the hash embeddings worth?",
            (
                Variant("3-6, 2003 buckets"),
                Variant("none", _model(ngrams={"sizes": []})),
                Variant("3", _ngrams(3)),
                Variant("3-4", _ngrams(3, 4)),
                Variant("6", _ngrams(6)),
                Variant("3-8", _ngrams(3, 4, 5, 6, 7, 8)),
                Variant("3-6, 251 buckets", _ngrams(3, 4, 5, 6, buckets=251)),
                Variant("3-6, 16001 buckets", _ngrams(3, 4, 5, 6, buckets=16001)),
            ),
        ),
        Ablation(
            "cross-attention",
            "Where does cross-attention between bytes and patches pay?",
            (
                Variant("encoder: last, decoder: all"),
                Variant("encoder: none, decoder: all", _model(encoder_cross_attn=False)),
                Variant("encoder: last, decoder: first", _model(decoder_cross_attn_all_layers=False)),
                Variant("encoder: last, decoder: none", _model(decoder_cross_attn=False)),
                Variant("none", _model(encoder_cross_attn=False, decoder_cross_attn=False)),
                Variant("one vector a patch", _model(cross_attn_k=1)),
                Variant("four vectors a patch", _model(cross_attn_k=4)),
            ),
        ),
        Ablation("local", "How large should local modules be as the global part grows?", _local(), same_flops=True),
        Ablation(
            "entropy-model",
            "How large does the entropy model have to be, and how much does it have to see?",
            (
                Variant("width 64, window 128"),
                Variant("width 32", scorer=_scorer(width=32, heads=1, ffn_width=96)),
                Variant("width 128", scorer=_scorer(width=128, ffn_width=384)),
                Variant("window 8", scorer=_scorer(window=8)),
                Variant("window 32", scorer=_scorer(window=32)),
                Variant("window 512", scorer=_scorer(window=512)),
                Variant("two bytes (cnn)", scorer={"kind": "cnn", "width": 64}),
            ),
        ),
        Ablation(
            "scripts",
            "Patches or tokens on a mixture of scripts?",
            (
                Variant("BLT, entropy"),
                Variant("BLT, stride", rule="stride"),
                Variant("BPE 1k", {"model": TOKENS | {"vocab_size": 1024}}, rule=None),
                Variant("BPE 4k", {"model": TOKENS | {"vocab_size": 4096}}, rule=None),
            ),
            needs_texts=True,
        ),
    )


ABLATIONS: Mapping[str, Ablation] = {ablation.name: ablation for ablation in _all()}
"""By name."""
