"""One growing row of ids as a value: exact decoding with everything cached that a further byte needs.

`extend` reads any number of ids on one path: scorer -> rule -> embed -> encoder -> latents of the patches that
these ids closed -> decoder. The global transformer runs only when a patch closes. What comes out equals the
uncached model on the whole row, however the row was cut into calls. Extending one session twice gives two
independent sessions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit import patching
from bltkit.generate.ledger import Passes
from bltkit.model import Blt, Scorer
from bltkit.model.cache import StackCache
from bltkit.model.decoder import PatchKV
from bltkit.patches import Patches
from bltkit.patching import PatchingRule, Stream
from bltkit.vocab import BOS

CHUNK = 4096
"""Ids of a long prompt read at once: what bounds its memory. State carries over, so the cut is invisible."""

ByteStates = tuple[Tensor, ...]
"""States [1, n, D] of n bytes that pooling reads, one for every cross-attention block of the encoder."""


@dataclass(frozen=True, eq=False)
class Session:
    """A model, its scorer and rule, and their state after `position` ids of one row.

    A row begins with BOS. Where the model masks documents, a later BOS begins a new one: it closes the open
    patch, and nothing before it is seen again. Such a BOS comes too late for the byte in front of it, whose logits
    were computed with the patch still open, while `patch` on the whole row closes it. No other position sees that.
    """

    model: Blt = field(repr=False)
    scorer: Scorer | None = field(repr=False)
    """May be None for a rule that reads no scores, and is not run then."""
    rule: PatchingRule
    stream: Stream = field(repr=False)
    encoder: StackCache = field(repr=False)
    latent: StackCache = field(repr=False)
    """Its position is the number of patches that closed."""
    decoder: StackCache = field(repr=False)
    scorer_state: object | None = field(default=None, repr=False)
    history: Int64[Tensor, "1 h"] | None = field(default=None, repr=False)
    """The last ids, for the n-grams."""
    open_patch: tuple[ByteStates, ...] = field(default=(), repr=False)
    """The bytes of the patch not yet closed, as they came; empty where the next byte opens one."""
    patch_kv: PatchKV | None = field(default=None, repr=False)
    """What the decoder reads of the last patch that closed."""
    next_logits: Float[Tensor, " V"] | None = field(default=None, repr=False)
    position: int = 0
    """Ids read."""
    passes: Passes = field(default_factory=Passes)

    @classmethod
    def start(cls, model: Blt, scorer: Scorer | None, rule: PatchingRule) -> Self:
        """The session in front of the first id.

        Raises ValueError for a rule that cannot stream, or that reads scores where there is no scorer.
        """
        if rule.scores is None:
            scorer = None
        elif scorer is None:
            raise ValueError(
                f"rule {rule.kind!r} reads the {rule.scores} score of every byte, but there is no scorer; "
                "pass the scorer model, or use a rule that reads none, such as 'space' or 'stride:k=4.5'"
            )
        device = model.embed.ngrams.device
        stream = patching.start_stream(rule, device=device, documents=model.config.document_masks)
        return cls(
            model=model,
            scorer=scorer,
            rule=rule,
            stream=stream,
            encoder=model.encoder.stack.empty_cache(),
            latent=model.latent.stack.empty_cache(),
            decoder=model.decoder.stack.empty_cache(),
        )

    @property
    def logits(self) -> Float[Tensor, " V"]:
        """Raw logits of the next id. Raises ValueError before the first one."""
        if self.next_logits is None:
            raise ValueError("an empty session predicts nothing; extend it with ids that begin with BOS (1)")
        return self.next_logits

    @property
    def opens(self) -> bool:
        """Does the next byte open a patch."""
        return not self.open_patch

    def extend(self, ids: Int64[Tensor, " S"] | Sequence[int]) -> Self:
        """The session after S further ids; this one stays as it was. No ids, no change.

        Raises ValueError where a row does not begin with BOS.
        """
        values: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if values and not self.position and values[0] != BOS:
            raise ValueError(f"a row begins with BOS ({BOS}), got id {values[0]}; vocab.encode(text) puts it in front")
        session = self
        with torch.inference_mode():
            for piece in _pieces(values, documents=self.stream.documents):
                session = session._read(piece)
        return session

    def _read(self, values: list[int]) -> Self:
        """Reads ids of one document; a BOS that begins one can only be the first."""
        begins = values[0] == BOS and self.stream.documents
        before = self._new_document() if begins else self
        model = self.model
        ids = torch.tensor([values], device=self.stream.position.device)

        scores, scorer_state = None, None
        if self.scorer is not None:
            scores, scorer_state = self.scorer.extend_scores(ids, self.scorer_state)
        opens, stream = patching.extend(self.rule, self.stream, ids, scores)

        x = model.embed(ids, None, before.history)
        outputs, encoder = model.encoder.stack.extend(x, before.encoder)
        closes: list[bool] = opens[0].tolist()  # the one place where the host waits for the device
        latent, patch_kv, open_patch = before._close_patches(model.encoder.pooled_from(outputs), closes)

        # The last patch from before stands in front of the new ones, unless the first id already sees a new one.
        byte_latent = opens.cumsum(1) - int(closes[0])
        logits, decoder = model.decoder.extend(outputs[-1], patch_kv, byte_latent, before.decoder)
        return replace(
            self,
            stream=stream,
            encoder=encoder,
            latent=latent,
            decoder=decoder,
            scorer_state=scorer_state,
            history=model.embed.next_history(ids, None, before.history),
            open_patch=open_patch,
            patch_kv=tuple((_last(k), _last(v)) for k, v in patch_kv),
            next_logits=_last(logits)[0, 0],
            position=self.position + len(values),
            passes=self.passes + before._cost(len(values), any(closes)),
        )

    def _close_patches(
        self, states: ByteStates, closes: list[bool]
    ) -> tuple[StackCache, PatchKV, tuple[ByteStates, ...]]:
        """Runs the global transformer over the patches that close after one of the new bytes.

        Returns its cache, what the new bytes read of patches, and the bytes of the patch that stays open.
        """
        if not any(closes):
            assert self.patch_kv is not None, "the first byte of a document closes its patch"
            return self.latent, self.patch_kv, (*self.open_patch, states)
        new = len(closes)
        states = tuple(torch.cat(parts, 1) for parts in zip(*self.open_patch, states, strict=True))
        held = states[0].shape[1] - new
        done = new - closes[::-1].index(True)
        starts = torch.tensor([[True] + [False] * held + closes[:done]], device=states[0].device)
        num_bytes = torch.tensor([held + done], device=starts.device)
        patches = Patches(starts, num_bytes, sum(closes))
        z = self.model.encoder.pool(tuple(state[:, : held + done] for state in states), patches)
        latents, latent = self.model.latent.extend(z, self.latent)
        patch_kv = self.model.decoder.patch_keys_values(latents)
        if not closes[0]:
            assert self.patch_kv is not None
            pairs = zip(self.patch_kv, patch_kv, strict=True)
            patch_kv = tuple((torch.cat((k0, k), 1), torch.cat((v0, v), 1)) for (k0, v0), (k, v) in pairs)
        rest = tuple(state[:, held + done :].clone() for state in states)
        return latent, patch_kv, (rest,) if done < new else ()

    def _new_document(self) -> Self:
        """Nothing of the document before is seen again, so nothing is kept; only positions run on.

        The patch that ends here takes one, but its latent is not computed: nobody would read it.
        """
        return replace(
            self,
            history=None,
            encoder=_emptied(self.encoder),
            latent=_emptied(self.latent, int(not self.opens)),
            decoder=_emptied(self.decoder),
            open_patch=(),
            patch_kv=None,
        )

    def _cost(self, num_ids: int, closing: bool) -> Passes:
        """Of reading ids from here on."""
        kv_bytes = self.encoder.num_bytes + self.decoder.num_bytes + closing * self.latent.num_bytes
        kv_bytes += getattr(self.scorer_state, "num_bytes", 0)
        return Passes(int(self.scorer is not None), 1, int(closing), 1, num_ids, kv_bytes)


def _pieces(ids: list[int], documents: bool) -> Iterator[list[int]]:
    """Stretches of at most CHUNK ids that lie within one document."""
    borders = [at for at, value in enumerate(ids) if at and value == BOS] if documents else []
    for begin, end in pairwise((0, *borders, len(ids))):
        for at in range(begin, end, CHUNK):
            yield ids[at : min(at + CHUNK, end)]


def _emptied(cache: StackCache, skipped: int = 0) -> StackCache:
    return replace(StackCache.empty(len(cache.layers)), position=cache.position + skipped)


def _last(x: Tensor) -> Tensor:
    """The last column; a copy where it would keep the others alive."""
    return x if x.shape[1] == 1 else x[:, -1:].clone()
