"""What generation costs: passes are counted as they happen, bytes read follow from them.

A pass is one forward call of a module's layers, whatever the number of positions or rows it covers. Decoding
is bound by memory, so what counts beside time is the weights and the cached keys and values that passes read.
The paper's own figure (`paper_gb`) is kept apart: it charges the encoder per patch and leaves the entropy model
out; `paper_passes` says how many passes the paper's way of decoding would have made.
"""

from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor, nn

from bltkit.model import Blt, EntropyTable, Scorer
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import LocalDecoder
from bltkit.model.embed import NgramEmbedding
from bltkit.model.quantize import FormedLinear, weight_bytes

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
    """Ids that scorer, encoder and decoder read: each looks up its rows in all embedding tables."""
    kv_bytes: int = 0
    """Cached keys and values that passes read, in bytes; those that a pass itself makes are not counted."""
    draft_ids: int = 0
    """Ids that encoder and decoder read to draft: as `ids`, but for the scorer's tables."""
    cells: int = 0
    """Ids that the decoder reads by itself, those of blocks: each looks up one row of a table of bytes."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.entropy + other.entropy,
            self.encoder + other.encoder,
            self.latent + other.latent,
            self.decoder + other.decoder,
            self.ids + other.ids,
            self.kv_bytes + other.kv_bytes,
            self.draft_ids + other.draft_ids,
            self.cells + other.cells,
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class WeightReads:
    """Bytes of weights that one pass of each module reads, whatever the number of positions and rows it covers.

    Embedding and n-gram tables are not read whole: `id`, `draft_id` and `cell` are the rows that each kind of id
    looks up.
    """

    entropy: int
    encoder: int
    """Its byte layers: pooling is the latent pass's."""
    latent: int
    """The global transformer, and what is made once a patch beside it: pooled vectors, keys and values for bytes."""
    decoder: int
    id: int
    draft_id: int
    cell: int

    @classmethod
    def of(cls, model: Blt, scorer: Scorer | None) -> Self:
        """Of the weights in the form in which they are held."""
        encoder, decoder, embed = model.encoder, model.decoder, model.embed
        keys_values = sum(weight_bytes(block.kv) + weight_bytes(block.kv_norm) for block in _cross(decoder))
        patch_side = weight_bytes(decoder.patch_projection) + keys_values
        own_table = 0 if decoder.bytes is None else weight_bytes(decoder.bytes)
        own_row = 0 if decoder.bytes is None else _row(decoder.bytes.weight)
        tables = model.config.ngrams.num_tables * _row(embed.ngrams) if isinstance(embed, NgramEmbedding) else 0
        draft_id = _row(embed.bytes.weight) + tables + own_row
        scorer_pass, scorer_row = _scorer_reads(scorer)
        return cls(
            entropy=scorer_pass,
            encoder=weight_bytes(encoder.stack),
            latent=weight_bytes(encoder) - weight_bytes(encoder.stack) + weight_bytes(model.latent) + patch_side,
            decoder=weight_bytes(decoder) - own_table - patch_side,
            id=draft_id + scorer_row,
            draft_id=draft_id,
            cell=own_row or _row(embed.bytes.weight),
        )

    def total(self, passes: Passes) -> int:
        """Bytes that these passes read."""
        return (
            passes.entropy * self.entropy
            + passes.encoder * self.encoder
            + passes.latent * self.latent
            + passes.decoder * self.decoder
            + passes.ids * self.id
            + passes.draft_ids * self.draft_id
            + passes.cells * self.cell
        )


def paper_gb(
    decoder_passes: float, encoder_passes: float, decoder_params: float, other_params: float, param_bytes: float = 2
) -> float:
    """Memory bandwidth as Fast BLT estimates it, in GB: b [N_dec P_dec + N_enc (P_enc + P_glob)] / 1e9.

    decoder_passes, encoder_passes: N, of one output; the mean where there are several. The paper counts encoder and
    global transformer together.
    decoder_params, other_params: P_dec; P_enc + P_glob.
    param_bytes: b, of one parameter.
    """
    return param_bytes * (decoder_passes * decoder_params + encoder_passes * other_params) / GB


@dataclass(frozen=True)
class PaperPasses:
    """Passes that the paper's accounting charges for one output, as means: fractions are meant."""

    rounds: float
    decoder: float
    encoder: float
    """Of encoder and global transformer."""


def paper_passes(
    num_bytes: int, drafted: float, acceptance: float, decoder_per_round: float, latent_reuse: bool = False
) -> PaperPasses:
    """The round model of drafting and verification: rounds = L / (acc B + 1).

    The paper charges two passes of encoder and global transformer a round, one to draft and one to verify. The
    latents that verification makes serve the next draft as well (`latent_reuse`): then it is one.

    num_bytes: L, made in all. drafted: B or k, a round. acceptance: share of drafted bytes that are kept, 0 to 1.
    decoder_per_round: k + 1 where the decoder drafts byte by byte, unmasking steps + 1 where it fills blocks.

    Raises ValueError for an acceptance beyond 0 to 1 or a negative number.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance = {acceptance}: must be a share from 0 to 1")
    if min(num_bytes, drafted, decoder_per_round) < 0:
        raise ValueError(
            f"num_bytes = {num_bytes}, drafted = {drafted}, decoder_per_round = {decoder_per_round}: "
            "each must be 0 or more"
        )
    rounds = num_bytes / (acceptance * drafted + 1)
    return PaperPasses(rounds, rounds * decoder_per_round, rounds * (1 if latent_reuse else 2))


def paper_params(model: Blt) -> tuple[int, int]:
    """P_dec and P_enc + P_glob. A byte table that the decoder has of its own is looked up, as the encoder's tables
    are: none of them counts."""
    decoder = count_parameters(model.decoder) - (
        0 if model.decoder.bytes is None else count_parameters(model.decoder.bytes)
    )
    return decoder, count_parameters(model.encoder) + count_parameters(model.latent)


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
            weight_gb_read=WeightReads.of(model, scorer).total(passes) / GB,
            kv_gb_read=passes.kv_bytes / GB,
            paper_gb=paper_gb(passes.decoder, passes.latent, *paper_params(model)),
        )


def _scorer_reads(scorer: Scorer | None) -> tuple[int, int]:
    """Bytes of a pass, and of each id that it reads."""
    if isinstance(scorer, EntropyTable):
        return 0, scorer.entropies.element_size()
    if not isinstance(scorer, nn.Module):
        return 0, 0
    tables = [module for module in scorer.modules() if isinstance(module, nn.Embedding)]
    dense = weight_bytes(scorer) - sum(map(weight_bytes, tables))
    return dense, sum(_row(table.weight) for table in tables)


def _cross(decoder: LocalDecoder) -> list[CrossAttention]:
    return [block for block in decoder.readers if isinstance(block, CrossAttention)]


def _row(table: Tensor) -> int:
    return table.shape[1] * table.element_size()


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, those of weights in another form included."""
    formed = (inner for inner in module.modules() if isinstance(inner, FormedLinear))
    return sum(weight.numel() for weight in module.parameters()) + sum(
        one.in_features * one.out_features for one in formed
    )
