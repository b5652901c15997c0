"""What generation costs: passes are counted as they happen, bytes read follow from them.

A pass is one forward call of a module's layers, whatever the number of positions or rows it covers. Decoding
is bound by memory, so what counts beside time is the weights and the cached keys and values that passes read.
The paper's own figure (`paper_gb` in cost/formulas/fast_blt.py) is kept apart: it charges the encoder per patch and
leaves the entropy model out.
"""

from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor, nn

from bltkit.cost.formulas.fast_blt import GB, paper_gb, paper_params
from bltkit.generate.session_state import Passes
from bltkit.model import Blt, EntropyTable, Scorer
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import LocalDecoder
from bltkit.model.embed import NgramEmbedding
from bltkit.model.quantize import weight_bytes
from bltkit.native import backend_of


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
    backend: str
    """What ran the stacks: `eager`, `native`, or `native, eager NAMES` (`native/`)."""
    paper_gb: float
    """2 bytes x [decoder passes x P_dec + global passes x (P_enc + P_glob)] / 1e9 (Fast BLT's memory bandwidth):
    weights only, 16 bits each, no entropy model, no tables, an encoder pass charged with every global pass."""

    @property
    def gb_per_second(self) -> float:
        """Bandwidth achieved: weights and cached keys and values read, in GB, by the time it took."""
        return (self.weight_gb_read + self.kv_gb_read) / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, float | str]:
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
            backend=backend_of(*(module for module in (model, scorer) if isinstance(module, nn.Module))),
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
