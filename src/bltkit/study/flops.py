"""The ledger of a model: per byte of text and by module, what it computes and what decoding has to read.

Operations are those of `model.flops`, a row's mean. Reads are those of a decoder that goes byte by byte, one row at a
time, with everything cached: the latent transformer reads its weights and its keys once a patch, so once in
`patch_bytes` bytes. Parameters are counted on the meta device: an 8B model costs no memory here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from bltkit.checkpoint import load_bundle, resolve_model
from bltkit.config import Config, load_toml, nearest, parse
from bltkit.model import (
    ENTROPY_PRESETS,
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    CnnConfig,
    CnnEntropy,
    EntropyConfig,
    EntropyModel,
    StackConfig,
    entropy_preset,
)
from bltkit.model.flops import exact_flops, mean_visible_keys, paper_flops, scorer_flops
from bltkit.model.presets import expand_preset

ScorerConfig = EntropyConfig | BoundaryConfig | CnnConfig

PATCH_BYTES = 4.5
"""Mean bytes per patch where neither the user nor the model's record says it: the paper's and the released models'."""

ASSUMED_SCORER = "100m"
"""Preset counted where a training config names an entropy model that is not there yet (the released models'), unless
its name is `PRESET-entropy`, as our own configs call theirs."""

_MODULES = {
    "embed": ("embed.", "decoder.bytes."),
    "encoder": ("encoder.stack.",),
    "encoder_cross": ("encoder.cross.", "encoder.patch_projection."),
    "latent": ("latent.",),
    "decoder": ("decoder.stack.", "decoder.norm.", "decoder.head."),
    "decoder_cross": ("decoder.cross.", "decoder.patch_projection."),
}
"""The rows of the ledger, by the names of their parameters."""

_PATCH_SIDE = ("decoder.patch_projection.", ".kv.", ".kv_norm.")
"""What `decoder_cross` runs once a patch: it makes the keys and values that bytes read."""


@dataclass(frozen=True)
class Row:
    """A module, or a sum of modules; all but `params` per byte of text."""

    params: int
    weight_bytes: float
    """Weights that decoding reads; of embedding tables the rows looked up."""
    kv_bytes: float
    """Cached keys and values that decoding reads, mean over the row."""
    flops_exact: float
    """Operations of all matrix products, forward."""
    flops_paper: float | None
    """The paper's formula (eq. 13-17), which leaves the entropy model out: None there."""
    flops_train: float
    """Forward and backward: three times the exact count."""

    @classmethod
    def of(cls, params: int, weight_bytes: float, kv_bytes: float, exact: float, paper: float | None) -> Self:
        return cls(params, weight_bytes, kv_bytes, exact, paper, 3 * exact)

    def line(self, name: str) -> str:
        """The row of a table."""
        paper = "" if self.flops_paper is None else f"{self.flops_paper / 1e6:.2f}"
        read = (self.weight_bytes + self.kv_bytes) / 1e6
        return f"{name:<20}{self.params:>14,}{read:>10.2f}{self.flops_exact / 1e6:>10.2f}{paper:>10}"

    def __add__(self, other: Self) -> Self:
        paper = None
        if self.flops_paper is not None and other.flops_paper is not None:
            paper = self.flops_paper + other.flops_paper
        return type(self)(
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.flops_exact + other.flops_exact,
            paper,
            self.flops_train + other.flops_train,
        )


@dataclass(frozen=True)
class Ledger:
    """What `blt flops` answers."""

    modules: Mapping[str, Row]
    """The model's parts, and `entropy` for the scorer."""
    total: Row
    """The modules that the paper counts; the scorer alone where there is nothing else."""
    total_with_entropy: Row
    params: int
    """Of the model without its scorer."""
    patch_bytes: float
    context: int
    element_bytes: int
    scorer: str | None
    """Whose cost stands under `entropy`: a checkpoint, or a preset that was assumed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """A table for people: what one byte of text costs, by module."""
        head = f"{'module':<20}{'params':>14}{'MB read':>10}{'MFLOP':>10}{'paper':>10}"
        rows = dict(self.modules) | {"total": self.total, "total_with_entropy": self.total_with_entropy}
        lines = [head, *(row.line(name) for name, row in rows.items())]
        entropy = f", entropy model: {self.scorer}" if self.scorer else ""
        return "\n".join(
            [*lines, f"per byte, at {self.patch_bytes:.2f} bytes per patch and {self.context} bytes{entropy}"]
        )


def ledger(
    model: BltConfig | None,
    scorer: ScorerConfig | None,
    patch_bytes: float = PATCH_BYTES,
    context: int = 8192,
    *,
    element_bytes: int = 4,
    scorer_name: str | None = None,
) -> Ledger:
    """The ledger of a BLT, of its scorer, or of both.

    patch_bytes: mean bytes per patch. context: bytes in the row. element_bytes: of a weight and of a cached number.
    Raises ValueError where there is nothing to count, or a number is out of range.
    """
    if model is None and scorer is None:
        raise ValueError("nothing to count: give a model, a scorer, or both")
    if not 1 <= patch_bytes <= context:
        raise ValueError(f"patch_bytes = {patch_bytes} must lie between 1 and context = {context}")
    rows = {} if model is None else _model_rows(model, patch_bytes, context, element_bytes)
    parts = list(rows.values())
    if scorer is not None:
        rows["entropy"] = _scorer_row(scorer, context, element_bytes)
        parts = parts or [rows["entropy"]]
    total = _sum(parts)
    whole = _sum(list(rows.values()))
    return Ledger(rows, total, whole, total.params, patch_bytes, context, element_bytes, scorer_name)


def ledger_of(
    target: str | Path, patch_bytes: float | None = None, context: int = 8192, overrides: Sequence[str] = ()
) -> Ledger:
    """The ledger of a training config (a TOML file) or of a MODEL.

    overrides: `section.key=value` on top of a config.
    patch_bytes: by default what the model's record holds as `mean_patch_bytes`, else `PATCH_BYTES`.
    A config's scorer is the checkpoint under `patching.model`; of one that is not there yet the size is assumed, and
    `Ledger.scorer` says so. Raises ValueError with one line.
    """
    if str(target).endswith(".toml"):
        model, scorer, name = _of_config(Path(target), overrides)
        return ledger(model, scorer, PATCH_BYTES if patch_bytes is None else patch_bytes, context, scorer_name=name)
    if overrides:
        raise ValueError(f"{overrides[0]}: {target} is no training config (TOML), of which alone a value can be set")
    bundle = load_bundle(resolve_model(target), device="meta")
    scorer = _config_of(bundle.scorer)
    model = None if bundle.model is None else bundle.model.config
    recorded = bundle.record.get("mean_patch_bytes")
    if patch_bytes is None:
        patch_bytes = recorded if isinstance(recorded, float) else PATCH_BYTES
    return ledger(model, scorer, patch_bytes, context, scorer_name=None if scorer is None else str(target))


def scorer_named(name: str) -> tuple[ScorerConfig | None, str]:
    """The scorer of a checkpoint, and whose it is; of a checkpoint that is not there an assumed one."""
    try:
        directory = resolve_model(name)
    except ValueError:
        called = Path(name).name.removesuffix("-entropy")
        preset = called if called in ENTROPY_PRESETS else ASSUMED_SCORER
        return entropy_preset(preset), f"preset {preset} ({name} is not there)"
    return _config_of(load_bundle(directory, device="meta").scorer), name


def _of_config(path: Path, overrides: Sequence[str]) -> tuple[BltConfig | None, ScorerConfig | None, str | None]:
    """Model, scorer and the scorer's name of a training config."""
    data = load_toml(path, overrides)
    section = data.get("model")
    if not isinstance(section, dict):
        raise ValueError(f"{path}: section [model] is missing")
    section = expand_preset(section)
    kinds: dict[str, type[Config]] = {
        "blt": BltConfig,
        "entropy": EntropyConfig,
        "boundary": BoundaryConfig,
        "cnn": CnnConfig,
    }
    if section["kind"] not in kinds:
        raise ValueError(f"{path}: model.kind = {section['kind']!r}{nearest(str(section['kind']), list(kinds))}")
    model: Config = parse(kinds[section["kind"]], section, f"{path}: model")
    if not isinstance(model, BltConfig):
        assert isinstance(model, ScorerConfig)
        return None, model, str(path)
    name = data.get("patching", {}).get("model")
    return (model, None, None) if name is None else (model, *scorer_named(name))


def _config_of(scorer: nn.Module | None) -> ScorerConfig | None:
    """None for an entropy table, whose look-up costs nothing that is counted here."""
    config = getattr(scorer, "config", None)
    return config if isinstance(config, ScorerConfig) else None


def _model_rows(config: BltConfig, patch_bytes: float, context: int, element: int) -> dict[str, Row]:
    with torch.device("meta"):
        sizes = {name: weight.numel() for name, weight in Blt(config).named_parameters()}
    exact, paper = exact_flops(config, patch_bytes, context), paper_flops(config, patch_bytes, context)
    patch_width, per_patch = config.decoder.num_kv_heads * config.decoder.head_dim, 1 / patch_bytes
    looked_up = 1 + config.ngrams.num_tables + (config.decoder_input == "embedding")
    # Where nothing is attended to, a byte reads the one vector that is added to it.
    added = 0 if config.decoder_cross_attn else config.decoder.width
    numbers = {
        "embed": looked_up * config.encoder.width,
        "encoder": _cached(config.encoder, context),
        "encoder_cross": 0.0,
        "latent": _cached(config.latent, context / patch_bytes) * per_patch,
        "decoder": _cached(config.decoder, context),
        "decoder_cross": config.num_decoder_cross * 2 * config.cross_attn_k * patch_width + added,
    }
    rows = {}
    for module, prefixes in _MODULES.items():
        own = {name: size for name, size in sizes.items() if name.startswith(prefixes)}
        if module == "embed":
            rows[module] = Row.of(sum(own.values()), element * numbers[module], 0.0, 0.0, 0.0)
            continue
        # The encoder pools, and the latent transformer runs, when a patch closes.
        seldom = sum(
            size
            for name, size in own.items()
            if module in ("encoder_cross", "latent") or any(part in name for part in _PATCH_SIDE)
        )
        read = sum(own.values()) - seldom + seldom * per_patch
        kv = element * numbers[module]
        rows[module] = Row.of(sum(own.values()), element * read, kv, exact[module], paper[module])
    return rows


def _scorer_row(config: ScorerConfig, context: int, element: int) -> Row:
    with torch.device("meta"):
        module = _scorer(config)
    params = sum(weight.numel() for weight in module.parameters())
    table = module.embed.weight
    read = params - table.numel() + table.shape[1]
    kv = _cached(config, context) if isinstance(config, StackConfig) else 0.0
    return Row.of(params, element * read, element * kv, scorer_flops(config, context), None)


def _scorer(config: ScorerConfig) -> EntropyModel | BoundaryModel | CnnEntropy:
    if isinstance(config, CnnConfig):
        return CnnEntropy(config)
    return BoundaryModel(config) if isinstance(config, BoundaryConfig) else EntropyModel(config)


def _cached(stack: StackConfig, length: float) -> float:
    """Keys and values that one position reads of a stack's cache, in numbers, mean over a row of `length`."""
    return 2 * stack.layers * stack.num_kv_heads * stack.head_dim * mean_visible_keys(length, stack.window)


def _sum(rows: list[Row]) -> Row:
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
