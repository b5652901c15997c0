"""Tiny random models of this package with a rule and a row of ids each, for tests of state and exactness.

`cases()` draws the corners: grouped heads, windows shorter than the row, every streaming rule, every kind of
scorer, rows of several documents, documents that the model masks or ignores.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    EntropyTable,
    NgramConfig,
    StackConfig,
)
from bltkit.patching import PatchingRule, parse_rule, patch

Scorer = EntropyModel | BoundaryModel | EntropyTable

QUANTILES = {"threshold": ["threshold"], "rise": ["rise"], "both": ["threshold", "rise"], "bpe": ["threshold"]}
"""The fields that are drawn as quantiles, by the kind of the rules that read scores."""


@dataclass(frozen=True)
class Case:
    """A tiny model, what cuts its rows into patches, and a row that begins with BOS.

    Everything follows from the fields; the weights are made when first asked for.
    """

    config: BltConfig
    scorer_config: EntropyConfig | BoundaryConfig | CnnConfig | None
    rule_fields: dict[str, Any]
    """With `threshold` and `rise` as quantiles of what the row's own scores give."""
    ids: list[int]
    seed: int = 0
    dtype: torch.dtype = torch.float64

    @cached_property
    def model(self) -> Blt:
        return cast(Blt, fill(Blt(self.config).to(self.dtype), self.seed))

    @cached_property
    def scorer(self) -> Scorer | None:
        """An entropy table in place of the convolutional model, which has no state."""
        kinds: dict[str, Any] = {"entropy": EntropyModel, "boundary": BoundaryModel, "cnn": CnnEntropy}
        if self.scorer_config is None:
            return None
        scorer = fill(kinds[self.scorer_config.kind](self.scorer_config), self.seed + 1, head=4.0)
        return cast(Scorer, (scorer.table() if isinstance(scorer, CnnEntropy) else scorer).to(self.dtype))

    @cached_property
    def rule(self) -> PatchingRule:
        fields = dict(self.rule_fields)
        if self.scorer is not None:
            scores = scores_of(self.scorer, torch.tensor([self.ids]))[0].double()
            for name, values in (("threshold", scores), ("rise", scores.diff())):
                if name in fields:
                    fields[name] = _between(values, fields[name])
        return parse_rule(fields)

    @torch.no_grad()
    def run(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits [T, V] and starts [T+1] of a whole row, without any cache."""
        row = torch.tensor([list(ids)])
        scores = None if self.scorer is None else scores_of(self.scorer, row)
        patches = patch(self.rule, row, scores, documents=self.config.document_masks)
        return self.model(row, patches)[0], patches.starts[0]

    def in_float64(self) -> "Case":
        """The same weights and thresholds, computed in float64."""
        exact = replace(self, dtype=torch.float64)
        for name, value in (("model", self.model), ("scorer", self.scorer)):
            exact.__dict__[name] = value if value is None else copy.deepcopy(value).double()
        exact.__dict__["rule"] = self.rule
        return exact


@torch.no_grad()
def scores_of(scorer: Scorer, ids: Tensor) -> Tensor:
    """Scores of whole rows by one forward pass."""
    if isinstance(scorer, EntropyTable):
        return scorer.scores(ids)
    return scorer.score(scorer(ids))


@torch.no_grad()
def fill(module: Any, seed: int, head: float = 1.0) -> Any:
    """Weights of a healthy scale, so that every branch counts in the outputs; `head` scales the output's."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in cast(nn.Module, module).named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        gain = head if name == "head.weight" else 1.0
        weight.copy_(1 + 0.1 * noise if weight.ndim == 1 else gain * noise / weight.shape[1] ** 0.5)
    return module


@st.composite
def stacks(
    draw: st.DrawFn, width: int, layers: int = 2, kind: type[StackConfig] = StackConfig, fewest: int = 1
) -> StackConfig:
    """One transformer; heads of an even width (RoPE turns pairs), key/value heads dividing the heads."""
    heads = draw(st.sampled_from([n for n in (1, 2, 4) if width % (2 * n) == 0]))
    return kind(
        width=width,
        layers=draw(st.integers(fewest, layers)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (None, 1, 2) if heads % (n or 1) == 0])),
        ffn_width=12,
        window=draw(st.one_of(st.none(), st.integers(3, 8))),
    )


@st.composite
def models(draw: st.DrawFn, others: bool = True) -> BltConfig:
    """The shape of a tiny model. others: half of them with what byte models other than BLT have."""
    width, k, is_blt = draw(st.sampled_from([8, 16])), draw(st.integers(1, 3)), not others or draw(st.booleans())
    encoder = draw(stacks(width, fewest=1 if is_blt else 0))
    pooling = "max" if is_blt else draw(st.sampled_from(["max", "mean", "last"]))
    encoder_cross = is_blt or draw(st.booleans())
    return BltConfig(
        encoder=encoder,
        decoder=draw(stacks(width)),
        # k times the local width needs no projection into the latent model; the other width does.
        latent=draw(stacks(draw(st.sampled_from([k * width, 12])))),
        cross_attn_k=k,
        ngrams=NgramConfig(
            sizes=draw(st.sampled_from([(3, 4, 5, 6, 7, 8), (1, 4), (2,), *([] if is_blt else [()])])),
            buckets=draw(st.integers(5, 61)),
            functions=draw(st.integers(1, 2)),
        ),
        pooling=pooling,
        pooled_bytes=draw(st.integers(1, 4)) if pooling == "last" else 1,
        encoder_cross_attn=encoder_cross,
        encoder_cross_attn_all_layers=draw(st.booleans()) if encoder_cross and encoder.layers else False,
        decoder_cross_attn=is_blt or draw(st.booleans()),
        decoder_cross_attn_all_layers=draw(st.booleans()),
        document_masks=draw(st.booleans()),
    )


@st.composite
def rows(draw: st.DrawFn, length: int = 24) -> list[int]:
    """BOS, and then bytes; in some rows also EOS and the BOS of further documents, in any order."""
    seed, size = draw(st.integers(0, 2**16)), draw(st.integers(0, length))
    alphabet = draw(st.sampled_from([b"ab \n", bytes(range(256)), b"a"]))
    special = draw(st.sampled_from([0.0, 0.3]))
    random = np.random.RandomState(seed)
    ids = [alphabet[i] + 4 for i in random.randint(len(alphabet), size=size)]
    return [1, *(int(random.randint(1, 3)) if random.rand() < special else value for value in ids)]


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Case:
    """A tiny model of weights `dtype` with rule, scorer and row."""
    kind = draw(st.sampled_from(["threshold", "rise", "both", "bpe", "stride", "space", "byte"]))
    fields: dict[str, Any] = {"kind": kind, "max_patch_bytes": draw(st.sampled_from([None, 1, 3, 5]))}
    if kind == "stride":
        fields["k"] = draw(st.sampled_from([1.0, 2.5, 4.0]))
    fields |= {name: draw(st.floats(0, 1)) for name in QUANTILES.get(kind, ())}
    return Case(
        config=draw(models()),
        scorer_config=draw(scorers(kind == "bpe")) if kind in QUANTILES else None,
        rule_fields=fields,
        ids=draw(rows()),
        seed=draw(st.integers(0, 2**16)),
        dtype=dtype,
    )


@st.composite
def scorers(draw: st.DrawFn, boundary: bool) -> EntropyConfig | BoundaryConfig | CnnConfig:
    """What gives the scores that the rule reads."""
    if not boundary and draw(st.integers(0, 4)) == 0:
        return CnnConfig(width=8)
    config: Any = draw(stacks(8, kind=BoundaryConfig if boundary else EntropyConfig))
    masks, reset = draw(st.booleans()), draw(st.booleans())
    return cast(EntropyConfig, config.replace(document_masks=masks, reset_at_newline=reset))


def _between(values: Tensor, quantile: float) -> float:
    """A float between two neighbours of `values`, so that no comparison hangs on rounding."""
    ordered = values.sort().values.tolist() or [0.0]
    at = round(quantile * (len(ordered) - 1))
    return float((ordered[at] + ordered[min(at + 1, len(ordered) - 1)]) / 2)
