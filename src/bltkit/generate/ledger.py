"""What generation costs: passes are counted as they happen, bytes read follow from them.

A pass is one forward call of a module's layers, whatever the number of positions or rows it covers. Decoding
is bound by memory, so what counts beside time is the weights and the cached keys and values that passes read.
The paper's own figure (`paper_gb`) is kept apart: it charges the encoder per patch and leaves the entropy model
out.
"""

from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor, nn

from bltkit.model import Blt, EntropyTable, Scorer
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import LocalDecoder
from bltkit.model.forms import FormedLinear, weight_bytes

GB = 1e9


@dataclass(frozen=True)
class Passes:
    """Counts since a session's start; the difference of two is what lay between them."""

    entropy: int = 0
    """Calls of the scorer."""
    encoder: int = 0
    latent: int = 0
    """Calls of the global transformer; byte by byte, one for every patch that closes."""
    decoder: int = 0
    ids: int = 0
    """Ids read: each looks up its rows in the embedding tables."""
    kv_bytes: int = 0
    """Cached keys and values that passes read, in bytes; those that a pass itself makes are not counted."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.entropy + other.entropy,
            self.encoder + other.encoder,
            self.latent + other.latent,
            self.decoder + other.decoder,
            self.ids + other.ids,
            self.kv_bytes + other.kv_bytes,
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Stats:
    """The ledger of one generation. The prompt's passes are not in it: they are in the session given."""

    bytes: int
    """Bytes handed out: neither EOS nor stop strings."""
    seconds: float
    """Time inside the engine; what the consumer does between two chunks is left out."""
    bytes_per_second: float
    decoder_passes: int
    encoder_passes: int
    global_passes: int
    entropy_passes: int
    drafted: int
    """Bytes proposed by a draft; 0 for plain autoregressive decoding."""
    accepted: int
    """Of these, the bytes that verification kept."""
    weight_gb_read: float
    """Weights of every module times its passes, in GB (1e9 bytes), entropy model included. Of embedding and
    n-gram tables only the rows looked up."""
    kv_gb_read: float
    """Cached keys and values that attention read, in GB, those of the entropy model included."""
    paper_gb: float
    """2 bytes x [decoder passes x P_dec + global passes x (P_enc + P_glob)] / 1e9 (Fast BLT's memory bandwidth):
    weights only, 16 bits each, no entropy model, no tables, an encoder pass charged with every global pass."""

    @property
    def gb_per_second(self) -> float:
        """Bandwidth achieved: weights and cached keys and values read, in GB, by the time it took."""
        return (self.weight_gb_read + self.kv_gb_read) / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"gb_per_second": self.gb_per_second}

    @classmethod
    def of(
        cls,
        model: Blt,
        scorer: Scorer | None,
        passes: Passes,
        num_bytes: int,
        seconds: float,
        drafted: int = 0,
        accepted: int = 0,
    ) -> Self:
        """The ledger of `passes` made by `model` and `scorer`."""
        per_patch = _count(model.encoder) + _count(model.latent)
        return cls(
            bytes=num_bytes,
            seconds=seconds,
            bytes_per_second=num_bytes / seconds if seconds > 0 else 0.0,
            decoder_passes=passes.decoder,
            encoder_passes=passes.encoder,
            global_passes=passes.latent,
            entropy_passes=passes.entropy,
            drafted=drafted,
            accepted=accepted,
            weight_gb_read=_weight_bytes(model, scorer, passes) / GB,
            kv_gb_read=passes.kv_bytes / GB,
            paper_gb=2 * (passes.decoder * _count(model.decoder) + passes.latent * per_patch) / GB,
        )


def _weight_bytes(model: Blt, scorer: Scorer | None, passes: Passes) -> int:
    encoder, decoder, embed = model.encoder, model.decoder, model.embed
    # Made once a patch, beside its latent: its pooled vectors, and the keys and values that bytes read of it.
    keys_values = sum(weight_bytes(block.kv) + weight_bytes(block.kv_norm) for block in _cross(decoder))
    patch_side = weight_bytes(decoder.patch_projection) + keys_values
    per_patch = weight_bytes(encoder) - weight_bytes(encoder.stack) + weight_bytes(model.latent) + patch_side
    rows = _row(embed.bytes.weight) + model.config.ngrams.num_tables * _row(embed.ngrams)
    return (
        passes.encoder * weight_bytes(encoder.stack)
        + passes.latent * per_patch
        + passes.decoder * (weight_bytes(decoder) - patch_side)
        + passes.ids * rows
        + _scorer_bytes(scorer, passes)
    )


def _scorer_bytes(scorer: Scorer | None, passes: Passes) -> int:
    if isinstance(scorer, EntropyTable):
        return passes.ids * scorer.entropies.element_size()
    if not isinstance(scorer, nn.Module) or not passes.entropy:
        return 0
    tables = [module for module in scorer.modules() if isinstance(module, nn.Embedding)]
    dense = weight_bytes(scorer) - sum(map(weight_bytes, tables))
    return passes.entropy * dense + passes.ids * sum(_row(table.weight) for table in tables)


def _cross(decoder: LocalDecoder) -> list[CrossAttention]:
    return [block for block in decoder.cross if isinstance(block, CrossAttention)]


def _row(table: Tensor) -> int:
    return table.shape[1] * table.element_size()


def _count(module: nn.Module) -> int:
    formed = (inner for inner in module.modules() if isinstance(inner, FormedLinear))
    return sum(weight.numel() for weight in module.parameters()) + sum(
        one.in_features * one.out_features for one in formed
    )
