"""bltkit.json: what a checkpoint holds beyond what Hugging Face's config.json can say."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from bltkit.config import Config
from bltkit.model import (
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    EntropyTable,
)
from bltkit.patching import Rule
from bltkit.vocab import VOCAB_SIZE

FORMAT = 1
"""Raised when older versions of the package could no longer read what is written."""

ScorerModule = EntropyModel | BoundaryModel | CnnEntropy | EntropyTable


class TableConfig(Config):
    """An `EntropyTable`, which has no choices."""

    kind: Literal["entropy-table"] = "entropy-table"


ScorerConfig = Annotated[EntropyConfig | BoundaryConfig | CnnConfig | TableConfig, Field(discriminator="kind")]


class FileEntry(Config):
    """A weight file as it was written."""

    sha256: str
    bytes: int


class Manifest(Config):
    """The content of bltkit.json. `kind` is "blt", or the scorer's where it stands alone."""

    format: int
    bltkit: str
    kind: str
    rule: Rule | None
    model: BltConfig | None
    scorer: ScorerConfig | None
    record: dict[str, Any]
    files: dict[str, FileEntry]


def scorer_config(scorer: ScorerModule) -> ScorerConfig:
    """What describes a scorer."""
    return TableConfig() if isinstance(scorer, EntropyTable) else scorer.config


def build_scorer(config: ScorerConfig) -> ScorerModule:
    """The scorer that a config describes, without weights."""
    match config:
        case BoundaryConfig():
            return BoundaryModel(config)
        case EntropyConfig():
            return EntropyModel(config)
        case CnnConfig():
            return CnnEntropy(config)
        case TableConfig():
            return EntropyTable(torch.empty(VOCAB_SIZE, VOCAB_SIZE))
