"""A BLT together with the router that learns, with it, where patches begin (after H-Net, arXiv 2507.07955).

The router is a `BoundaryModel`: a score at t, "the byte behind t opens a patch", from the bytes up to t alone. What is
trained is a BLT and this scorer, and that is what a checkpoint holds: with rule `bpe` at the same threshold everything
else (scoring, generation, evaluation) takes the two as it takes any BLT with a scorer.

Patches are hard decisions, so how sure they were must reach the gradient by another way. Of the latent z_j, which bytes
read from the border on that the router set with probability p_j, forward is z_j itself and backward is that of

    p_j z_j + (1 - p_j) z_{j-1}

which is what these bytes would read without the border: p_j grows where having the new latent lowers the loss of the
bytes behind the border, and shrinks where the old one would have done. How this differs from H-Net:

- H-Net decides at t whether byte t itself begins a chunk. Here the decision at t is about byte t + 1: it must not see
  that byte, or its being a border would tell what it is.
- H-Net smooths also forward (an average over all chunks before) and scales what each byte reads by its confidence
  (forward by 1). Here both are one term, with a forward value of nothing: what is trained is exactly what is used.
- H-Net's p is half of 1 - cosine of two projections of neighbouring states; here it is a logistic function of one
  causal state. Bytes that open no patch learn from the rate alone (objective `learned-boundary`).
"""

from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.model.blt import Blt
from bltkit.model.config import BltConfig, BoundaryConfig
from bltkit.model.entropy import BoundaryModel
from bltkit.patches import Patches
from bltkit.vocab import BOS


class RoutedBlt(Blt):
    """`Blt`, whose `forward` it has, and its router."""

    def __init__(self, config: BltConfig, router: BoundaryConfig) -> None:
        super().__init__(config)
        self.router = BoundaryModel(router)

    def reset_parameters(self, generator: torch.Generator | None = None) -> Self:
        """The BLT first: its weights are those that it has without a router."""
        super().reset_parameters(generator)
        self.router.reset_parameters(generator)
        return self

    def routed(
        self, ids: Int64[Tensor, "B T"], patches: Patches, threshold: float
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T"]]:
        """The logits of `forward`, whose gradient reaches the router, and its probabilities of a border behind each id.

        patches: the router's own, by rule `bpe` at `threshold`. Borders that something else set, a document's beginning
        or the longest patch, teach it nothing.
        """
        p = torch.sigmoid(self.router.score(self.router(ids)) - threshold)
        own = patches.starts[:, 1:] & (p > 0.5) & (ids != BOS)
        certain = p.where(own, 1.0)
        return self(ids, patches, between=lambda latents: renewed(latents, patches, certain)), p


def renewed(latents: Float[Tensor, "B P H"], patches: Patches, p: Float[Tensor, "B T"]) -> Float[Tensor, "B P H"]:
    """The latents, with the gradient of p z_j + (1 - p) z_{j-1} for p alone. p[b, t]: of the border behind byte t."""
    last = (patches.first_byte + patches.lengths - 1).clamp(0, p.shape[1] - 1)
    sure = p.gather(1, last)
    step = torch.cat((torch.zeros_like(latents[:, :1]), latents[:, 1:] - latents[:, :-1]), 1).detach()
    return latents + ((sure - sure.detach())[..., None] * step).to(latents.dtype)


def without_router(model: Blt) -> Blt:
    """The BLT alone, of the same tensors; a model that has no router as it is."""
    if not isinstance(model, RoutedBlt):
        return model
    with torch.device("meta"):
        alone = Blt(model.config)
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("router.")}
    alone.load_state_dict(own, assign=True)
    return alone
