"""Families of models in the study `scaling`: a name and a size become a training config and its operations per byte.

A family gives the sections `[model]` and `[patching]`, and costs at a number of bytes per unit (patch or token), which
is measured during the run.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from bltkit.config import Config, nearest, parse
from bltkit.cost.formulas.operations import exact_flops, paper_flops, paper_token_flops, scorer_flops, token_flops
from bltkit.model import BltConfig, CnnConfig, EntropyConfig
from bltkit.model.config import TokenShape

TRAINING = 3
"""Forward passes that a step costs: backward is two."""

Rule = Literal["entropy", "space", "stride"]


class Local(Config):
    """The byte side of a BLT: encoder and decoder are of one width."""

    width: PositiveInt = 64
    heads: PositiveInt = 1
    ffn_width: PositiveInt | None = None
    encoder_layers: PositiveInt = 1
    decoder_layers: PositiveInt = 1
    window: PositiveInt = 128
    ngram_sizes: tuple[PositiveInt, ...] = (3, 4, 5)
    ngram_buckets: PositiveInt = 4001
    cross_attn_k: PositiveInt = 2


class ScalingSize(Config):
    """A size of the study: the global transformer that all families have, and the local models of BLTs."""

    name: str = Field(pattern=r"^[a-z0-9]+(@[0-9.]+)?$")
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ffn_width: PositiveInt | None = None
    local: Local = Local()
    lr: float = Field(default=2e-3, gt=0)
    rate: float | None = Field(default=None, gt=0)
    """Measured training FLOP/s: for estimates only; the plan's by default."""
    token_rate: float | None = Field(default=None, gt=0)
    """Rate of token models, whose few large products run faster; `rate` by default."""

    def stack(self) -> dict[str, Any]:
        """Fields of the global transformer, and of a token model's layers."""
        return {"width": self.width, "layers": self.layers, "heads": self.heads, "ffn_width": self.ffn_width}


@dataclass(frozen=True)
class ForwardCost:
    """Operations of a forward pass per byte of text. paper: without the scorer, as published."""

    exact: float
    paper: float
    scorer: float
    """Entropy model: one forward pass over every byte of training."""

    def training(self, num_bytes: float, include_scorer: bool = True) -> float:
        """Operations of training on `num_bytes` bytes of text."""
        return num_bytes * (TRAINING * self.exact + (self.scorer if include_scorer else 0.0))


class Family(Config):
    """Models that are compared. `name` stands in command lines and rows."""

    name: str

    unit: ClassVar[str] = "patch"

    @property
    def needs_scorer(self) -> bool:
        """Whether training reads entropies."""
        return False

    @property
    @abstractmethod
    def assumed_unit_bytes(self) -> float:
        """Bytes per patch or token before anything was measured: for cost estimates only."""

    @abstractmethod
    def sections(self, size: ScalingSize, rule: str | None, scorer: str | None) -> dict[str, Any]:
        """`[model]` and, where it has one, `[patching]` of a training config. rule, scorer: those of `Prepared`."""

    @abstractmethod
    def cost(
        self, size: ScalingSize, unit_bytes: float, row_bytes: int, scorer: EntropyConfig | CnnConfig | None
    ) -> ForwardCost:
        """Cost of a byte at this size."""


class BltFamily(Family):
    """BLTs with one patching rule at one mean patch size."""

    rule: Rule
    patch_bytes: float | None = None
    """None for words, whose size depends on the text."""

    @property
    def needs_scorer(self) -> bool:
        return self.rule == "entropy"

    @property
    def assumed_unit_bytes(self) -> float:
        return self.patch_bytes or 5.0

    def sections(self, size: ScalingSize, rule: str | None, scorer: str | None) -> dict[str, Any]:
        if self.rule == "entropy":
            assert rule is not None and scorer is not None
            patching = {"model": scorer, "rule": rule}
        else:
            patching = {"rule": "space" if self.rule == "space" else f"stride:k={self.patch_bytes:g}"}
        return {"model": self.model(size).model_dump(mode="json", exclude_none=True), "patching": patching}

    def model(self, size: ScalingSize) -> BltConfig:
        """Config of the model."""
        local = size.local
        side = {"width": local.width, "heads": local.heads, "ffn_width": local.ffn_width, "window": local.window}
        fields = {
            "encoder": side | {"layers": local.encoder_layers},
            "latent": size.stack(),
            "decoder": side | {"layers": local.decoder_layers},
            "cross_attn_k": local.cross_attn_k,
            "ngrams": {"sizes": local.ngram_sizes, "buckets": local.ngram_buckets},
        }
        config: BltConfig = parse(BltConfig, fields, f"size {size.name!r}")
        return config

    def cost(
        self, size: ScalingSize, unit_bytes: float, row_bytes: int, scorer: EntropyConfig | CnnConfig | None
    ) -> ForwardCost:
        model = self.model(size)
        reading = scorer_flops(scorer, row_bytes) if self.needs_scorer and scorer is not None else 0.0
        exact = sum(exact_flops(model, unit_bytes, row_bytes).values())
        return ForwardCost(exact, sum(paper_flops(model, unit_bytes, row_bytes).values()), reading)


class BpeFamily(Family):
    """Token models of Llama's shape, with layers like the global transformer of a BLT of the same size.

    The tokenizer is trained on the run's training documents; the rows of bytes are those that every BLT sees.
    """

    vocab_size: PositiveInt

    unit: ClassVar[str] = "token"

    @property
    def assumed_unit_bytes(self) -> float:
        return 3.3 if self.vocab_size < 16_000 else 4.0

    def sections(self, size: ScalingSize, rule: str | None, scorer: str | None) -> dict[str, Any]:
        fields = {"kind": "bpe", "vocab_size": self.vocab_size} | size.stack()
        return {"model": {name: value for name, value in fields.items() if value is not None}}

    def cost(
        self, size: ScalingSize, unit_bytes: float, row_bytes: int, scorer: EntropyConfig | CnnConfig | None
    ) -> ForwardCost:
        fields = size.stack() | {"vocab_size": self.vocab_size}
        shape: TokenShape = parse(TokenShape, fields, f"size {size.name!r}")
        exact, paper = (sum(count(shape, unit_bytes, row_bytes).values()) for count in (token_flops, paper_token_flops))
        return ForwardCost(exact, paper, 0.0)


_BLT = re.compile(r"blt-(entropy|stride)-([0-9]+(?:\.[0-9]+)?)|blt-(space)")
_BPE = re.compile(r"bpe-([0-9]+)")
_KNOWN = ("blt-entropy-4.5", "blt-space", "blt-stride-6", "bpe-4096")


def parse_family(name: str) -> Family:
    """A family by its name: `blt-entropy-4.5`, `blt-stride-6`, `blt-space` or `bpe-4096`.

    Raises ValueError for any other name, and for a patch or vocabulary too small.
    """
    if (match := _BLT.fullmatch(name)) is not None:
        rule, patch_bytes = match[1] or match[3], match[2] and float(match[2])
        if patch_bytes and patch_bytes < 1:
            raise ValueError(f"family {name!r}: a patch holds at least 1 byte")
        family: Family = parse(BltFamily, {"name": name, "rule": rule, "patch_bytes": patch_bytes}, f"family {name!r}")
        return family
    if (match := _BPE.fullmatch(name)) is not None:
        if int(match[1]) < 260:
            raise ValueError(f"family {name!r}: a vocabulary holds the 256 bytes, special tokens and some merges")
        return BpeFamily(name=name, vocab_size=int(match[1]))
    raise ValueError(f"family {name!r}{nearest(name, _KNOWN)}; PATCH and VOCABULARY may be any number")


def grown(size: ScalingSize, family: Family, base_patch: float, row_bytes: int) -> ScalingSize:
    """The size whose inference costs as much per byte at the family's patch size as `size` does at `base_patch`.

    The global transformer grows in width, its heads keep their number, FFN and width their ratio (BLT 5.3, "growing
    patch and model together"); everything that runs once a byte stays. The nearest width that heads divide.
    """
    assert isinstance(family, BltFamily) and family.patch_bytes is not None
    base = family.model_copy(update={"patch_bytes": base_patch})
    target = base.cost(size, base_patch, row_bytes, None).exact
    step, ratio = 2 * size.heads, (size.ffn_width or 0) / size.width

    def at(number: int) -> ScalingSize:
        width = number * step
        fields = {"name": f"{size.name}@{family.patch_bytes:g}", "width": width}
        return size.replace(**fields, ffn_width=round(ratio * width / 8) * 8 or None)

    def more(number: int) -> float:
        return family.cost(at(number), family.patch_bytes or base_patch, row_bytes, None).exact - target

    low, high = 1, 8 * size.width // step  # the cost rises with the width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if more(middle) > 0 else (middle, high)
    return min(at(low), at(high), key=lambda size: abs(more(size.width // step)))


_LOOKED_UP = ("embed.", "decoder.bytes.")
"""Tables whose rows are looked up: they hold parameters and cost no operations."""


def parameters(sizes: Mapping[str, int]) -> tuple[int, int]:
    """Numbers of parameters of named weights: all, and those without tables that are only looked up."""
    whole = sum(sizes.values())
    return whole, whole - sum(count for name, count in sizes.items() if name.startswith(_LOOKED_UP))
