"""The local decoder: patches -> bytes (BLT 3.3, docs/model.md 8). A byte reads one latent before each layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.block_attention import BlockAttention
from bltkit.model.cache import Slot, StackCache
from bltkit.model.config import BltConfig
from bltkit.model.cross import CrossAttention
from bltkit.model.fused_linear import Linear, RMSNorm, normed_product
from bltkit.model.layers import Embedding, Transformer, truncated_normal
from bltkit.model.masked_blocks import BlockRowAttention, BlockRows
from bltkit.model.pooling import AddedLatent
from bltkit.model.segment_ops import Latents, RowsOfLatents
from bltkit.vocab import VOCAB_SIZE

Reader = CrossAttention | AddedLatent


@dataclass(frozen=True, eq=False)
class PatchKV:
    """The tensors that bytes read of patches.

    readers: for every reader keys and values [B, P, k, H, d], or one vector to add [B, P, D].
    """

    readers: tuple[tuple[Tensor, ...], ...]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.readers)

    def __getitem__(self, reader: int) -> tuple[Tensor, ...]:
        return self.readers[reader]

    @classmethod
    def cat(cls, parts: Sequence[Self], dim: int = 0) -> Self:
        """Concatenate along the rows (`dim` 0) or the patches (1)."""
        readers = zip(*parts, strict=True)
        return cls(tuple(tuple(torch.cat(each, dim) for each in zip(*reader, strict=True)) for reader in readers))

    def select(self, rows: Int64[Tensor, " N"]) -> Self:
        """These rows, in this order, with all of their patches."""
        return self._mapped(lambda x: x[rows])

    def index(self, rows: Int64[Tensor, "..."], patches: Int64[Tensor, "..."]) -> Self:
        """Patch patches[i] of row rows[i], the two broadcast against each other as in tensor indexing."""
        return self._mapped(lambda x: x[rows, patches])

    def spread(self, rows: Int64[Tensor, " B"], count: int) -> Self:
        """`count` rows, those at `rows` from this value in order, the others zeros."""
        return self._mapped(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy_(0, rows, x))

    def replace(self, rows: Int64[Tensor, " N"], other: Self) -> Self:
        """A copy whose rows at `rows` are those of `other`, in order."""
        pairs = zip(self, other, strict=True)
        return type(self)(
            tuple(tuple(x.index_copy(0, rows, new) for x, new in zip(*pair, strict=True)) for pair in pairs)
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(x.numel() * x.element_size() for reader in self for x in reader)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(tuple(tuple(map(change, reader)) for reader in self.readers))


@dataclass(frozen=True, eq=False)
class PatchReads:
    """In front of each of the first layers, bytes read the patch that they see: the decoder's `Before`."""

    readers: tuple[Reader, ...]
    kv: PatchKV
    latents: Latents | RowsOfLatents | None = None
    """Which patch each byte sees; None where `kv` holds one for each byte, or one for all of a row."""

    def __call__(self, i: int, h: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The stream in front of layer i."""
        return h if i >= len(self.readers) else self.readers[i].read(h, cast(Any, self.kv[i]), self.latents)


class LocalDecoder(nn.Module):
    """Byte states h [B, T, D] and latents o [B, P, H] -> logits [B, T, 260] of the next byte."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        own_table = config.decoder_input == "embedding"
        self.bytes = Embedding(VOCAB_SIZE, config.decoder.width) if own_table else None
        self.patch_projection = Linear(config.latent.width, config.read_width)
        blocks = (
            CrossAttention(config.decoder, config.quirks.doubled_residual) for _ in range(config.num_decoder_cross)
        )
        self.cross = nn.ModuleList(blocks if config.decoder_cross_attn else [AddedLatent()])
        self.stack = Transformer(config.decoder)
        self.norm = RMSNorm(config.decoder.width, config.decoder.norm_eps)
        self.head = Linear(config.decoder.width, VOCAB_SIZE)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as docs/model.md 9 says."""
        for projection in (self.patch_projection, self.head):
            truncated_normal(projection.weight, projection.in_features**-0.5, generator)
        for i, block in enumerate(self.readers):
            block.reset_parameters(i, generator)
        self.stack.reset_parameters(generator)
        nn.init.ones_(self.norm.weight)
        if self.bytes is not None:
            truncated_normal(self.bytes.weight, self.bytes.weight.shape[1] ** -0.5, generator)

    def forward(
        self,
        h: Float[Tensor, "B L D"],
        latents: Float[Tensor, "B P H"],
        byte_latent: Int64[Tensor, "B T"],
        documents: Int64[Tensor, "B T"] | None = None,
        blocks: BlockRows | None = None,
    ) -> Float[Tensor, "B L V"]:
        """byte_latent: the one latent that each of the row's bytes sees.

        blocks: h [B, T + N S, D] goes on with their cells, and so do the logits, each of its own byte.
        """
        patch_kv = self.patch_keys_values(latents)
        if blocks is None:
            read: Latents | RowsOfLatents = Latents(byte_latent, latents.shape[1])
            return self._logits(self.stack(h, documents, self._reading(patch_kv, read))[-1])
        of_cells = blocks.latent.repeat_interleave(blocks.ids.shape[2], 1)
        read = RowsOfLatents((byte_latent, of_cells), latents.shape[1])
        config, length = self.stack.config, byte_latent.shape[1]
        clean = self.stack.row_attention(length, documents, h)
        attend = BlockRowAttention.of(clean, blocks, documents, config.head_dim, config.rope_theta, h)
        return self._logits(self.stack.through(h, attend, self._reading(patch_kv, read))[-1])

    def extend(
        self, h: Float[Tensor, "R S D"], byte_kv: PatchKV, cache: StackCache
    ) -> tuple[Float[Tensor, "R S V"], Slot]:
        """`forward` for S further bytes of every row; byte_kv: of the patch that each byte sees, or, [R, 1, ...], of
        the one that all of a row see."""
        outputs, (slot,) = self.stack.extend(h, [cache], self._reading(byte_kv))
        return self._logits(outputs[-1]), slot

    def fill(self, x: Float[Tensor, "R S D"], patch_kv: PatchKV, attend: BlockAttention) -> Float[Tensor, "R S V"]:
        """Logits of a block's cells, each of its own byte. patch_kv: [R, 1, ...], of the patch that all of a row see.

        Nothing is kept. x: their `Blt.block_inputs`. attend: made for the block, and used for every pass over it.
        """
        return self._logits(self.stack.through(x, attend, self._reading(patch_kv))[-1])

    def patch_keys_values(self, latents: Float[Tensor, "B P H"]) -> PatchKV:
        """What the bytes read of each patch: its k vectors as keys and values of every block, or one to add."""
        vectors = self.patch_projection(latents).unflatten(-1, (-1, len(self.norm.weight)))
        return PatchKV(tuple(block.patch_keys_values(vectors) for block in self.readers))

    def no_patch(self, rows: int) -> PatchKV:
        """In place of what bytes read of a patch where there is none yet: zeros, [rows, 1, ...]."""
        k = self.patch_projection.out_features // len(self.norm.weight)
        return PatchKV(tuple(block.no_patch(rows, k, self.norm.weight) for block in self.readers))

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The blocks in front of the first layers, by which bytes read a patch."""
        return tuple(cast(Reader, block) for block in self.cross)

    def _reading(self, kv: PatchKV, latents: Latents | RowsOfLatents | None = None) -> PatchReads:
        return PatchReads(self.readers, kv, latents)

    def _logits(self, h: Tensor) -> Tensor:
        return normed_product(self.norm, self.head, h)
