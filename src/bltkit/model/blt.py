"""The Byte Latent Transformer: embed -> encoder -> latent -> decoder (BLT 3). Architecture only.

It never sees a patching rule: it receives ids and the `Patches` that somebody decided on.
"""

from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.config import BltConfig
from bltkit.model.decoder import LocalDecoder
from bltkit.model.embed import byte_embedding
from bltkit.model.encoder import LocalEncoder
from bltkit.model.latent import LatentTransformer
from bltkit.model.masked_blocks import BlockRows
from bltkit.patches import Patches
from bltkit.vocab import BOS


def document_of(ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """The number of each id's document: a document begins with its BOS."""
    return (ids == BOS).cumsum(-1)


class Blt(nn.Module):
    """ids [B, T] and their patches -> logits [B, T, 260]; logits[:, t] predict id t+1."""

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = byte_embedding(config.ngrams, config.encoder.width, config.quirks.averaged_ngrams)
        self.encoder = LocalEncoder(config)
        self.latent = LatentTransformer(config)
        self.decoder = LocalDecoder(config)

    def reset_parameters(self, generator: torch.Generator | None = None) -> Self:
        """Initialise all weights as docs/model.md 9 says; returns the model."""
        for stage in (self.embed, self.encoder, self.latent, self.decoder):
            stage.reset_parameters(generator)
        return self

    def forward(
        self,
        ids: Int64[Tensor, "B T"],
        patches: Patches,
        blocks: BlockRows | None = None,
        *,
        between: Callable[[Float[Tensor, "B P H"]], Float[Tensor, "B P H"]] | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Columns after a row's num_bytes hold nothing of meaning, and no other column depends on them.

        blocks: N of S cells a row, whose logits, of their own bytes, stand behind the row's: [B, T + N S, V].
        between: what becomes of the latents before bytes read them.
        """
        documents = self.documents(ids)
        h, z = self.encoder(self.embed(ids, documents), patches, documents)
        latents = self.latent(z, self.patch_documents(documents, patches))
        latents = latents if between is None else between(latents)
        x = self.byte_inputs(h, ids)
        if blocks is not None:
            x = torch.cat((x, self.block_inputs(blocks.ids.flatten(1)).to(x.dtype)), 1)
        return self.decoder(x, latents, patches.byte_latent, documents, blocks)

    def block_inputs(self, ids: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """What the decoder begins with for bytes of a block, masked or not."""
        table = self.embed.bytes if self.decoder.bytes is None else self.decoder.bytes
        embedded: Tensor = table(ids)
        return embedded

    def byte_inputs(self, h: Float[Tensor, "B T D"], ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What the decoder begins with for bytes of the text. h: their states from the encoder."""
        return h if self.decoder.bytes is None else self.block_inputs(ids)

    def documents(self, ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"] | None:
        """What attention and n-grams stay within; None where the model ignores documents."""
        return document_of(ids) if self.config.document_masks else None

    def patch_documents(self, documents: Int64[Tensor, "B T"] | None, patches: Patches) -> Int64[Tensor, "B P"] | None:
        """The document of each patch: that of its first byte, since a document opens a patch."""
        if documents is None:
            return None
        return documents.gather(1, patches.first_byte.clamp_max(documents.shape[1] - 1))
