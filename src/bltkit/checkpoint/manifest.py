"""bltkit.json: what a checkpoint holds beyond what Hugging Face's config.json can say."""

import hashlib
from collections.abc import Mapping
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
from bltkit.model.quantize import WeightForm, weights_of
from bltkit.patching import Rule
from bltkit.vocab import VOCAB_SIZE

FORMAT = 3
"""Raised when older versions of the package could no longer read what is written. 2: `digest`. 3: `weights`; what has
none is written as format 2, which is the same."""

MANIFEST = "bltkit.json"

ScorerModule = EntropyModel | BoundaryModel | CnnEntropy | EntropyTable


class TableConfig(Config):
    """An `EntropyTable`, which has no choices."""

    kind: Literal["entropy-table"] = "entropy-table"


ScorerConfig = Annotated[EntropyConfig | BoundaryConfig | CnnConfig | TableConfig, Field(discriminator="kind")]


class FileEntry(Config):
    """A file of the checkpoint as it was written."""

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
    """Every other file of the checkpoint; weights alone in format 1."""
    weights: WeightForm | None = None
    """Form in which the large matrices are stored and used; None: as numbers that any form is made of."""
    digest: str | None = None
    """The seal (`bltkit.files.seal`)."""


def refuse_coerced(given: Any, parsed: Any, where: str, key: str = "") -> None:
    """Raises ValueError for a value that was only taken to be of its type, as "64" and True are for 64 and 1.

    given: JSON values as they were read. parsed: the same ones after parsing, dumped as JSON values again.
    """
    if isinstance(given, Mapping) and isinstance(parsed, Mapping):
        for name, value in given.items():
            refuse_coerced(value, parsed.get(name), where, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list) and isinstance(parsed, list):
        for index, (value, other) in enumerate(zip(given, parsed, strict=False)):
            refuse_coerced(value, other, where, f"{key}[{index}]")
    elif isinstance(given, int) and abs(given) >= 2**31:
        raise ValueError(f"{where}: {key} = {given!r:.80} is too large; expected an integer below 2^31")
    elif given != parsed or isinstance(given, bool) != isinstance(parsed, bool):
        raise ValueError(f"{where}: {key} = {given!r:.80} is of another type than expected; write {parsed!r:.80}")


def scorer_config(scorer: ScorerModule) -> ScorerConfig:
    """What describes a scorer."""
    return TableConfig() if isinstance(scorer, EntropyTable) else scorer.config


def scorer_hash(scorer: ScorerModule) -> str:
    """sha256 over a scorer's config and weights: equal hashes, equal scores.

    Weights count as float32 at least, so that it does not matter in which dtype they are stored or held. What a form
    rounds counts as it was rounded.
    """
    config = scorer_config(scorer)
    state = hashlib.sha256(f"{config.kind}{config.model_dump_json(exclude_defaults=True)}".encode())
    for name, weight in weights_of(scorer):
        state.update(f"{name}{list(weight.shape)}".encode())
        wide = weight.detach().to(device="cpu", dtype=torch.promote_types(weight.dtype, torch.float32))
        state.update(memoryview(wide.contiguous().numpy().data).cast("B"))
    return state.hexdigest()


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
