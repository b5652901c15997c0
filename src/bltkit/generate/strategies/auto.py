"""Chooses how to draft, row by row and round by round: not at all, by the local model, or as a block.

What is expected of each way follows from how far its drafts were right in this text, apart for bytes that the model
was sure of and for others; what it costs, from the weights and cached keys that its passes read. Every draft is
verified, so the bytes are those of autoregressive decoding, whatever is chosen; and nothing asks a clock, so a run
can be repeated to its last pass.
"""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from bltkit.generate.ledger import WeightReads
from bltkit.generate.session import Session
from bltkit.generate.session_state import Passes
from bltkit.generate.strategies.acceptance import CPU, GPU, LONGEST, WAYS, DraftPlan, Experience, RoundCosts, plan
from bltkit.generate.strategies.blocks import Unmasking, fill_blocks
from bltkit.generate.strategies.speculative import Speculative
from bltkit.generate.strategies.strategy import Outcome, Pending, Proposal, Strategy
from bltkit.model import Blt, Scorer
from bltkit.model.config import ByteTransformerConfig

SURE = 1.0
"""Nats: the model is sure of an id chosen from a distribution of less entropy."""

NO_DRAFT = "none"
_ARMS = {f"{way}, {'sure' if sure else 'unsure'}": (way, sure) for way in WAYS for sure in (False, True)}
"""What `Proposal.ways` calls a draft: how it was made, and whether the model was sure of the byte in front of it."""


class Auto(Strategy):
    """Proposes what pays: nothing, bytes as `speculative` does or, where the model was trained for blocks, a block in
    one pass as `verified` does. Rows of a batch may do so in different ways."""

    reads_entropy: ClassVar[bool] = True
    kind: Literal["auto"] = "auto"

    def propose(self, session: Session, rows: Sequence[Pending]) -> Proposal:
        """By the plan of this round. Each way's passes run once, for all rows that take part."""
        chosen = _plan(session, rows)
        drafts: list[tuple[int, ...]] = [()] * len(rows)
        passes = Passes()
        if any(counts := chosen.counts_of("bytes")):
            asked = [replace(row, state=count) for row, count in zip(rows, counts, strict=True)]
            found = Speculative().propose(session, asked)
            drafts, passes = list(found.drafts), found.passes
        if any(counts := chosen.counts_of("block")):
            sizes = [count + 1 if count else 0 for count in counts]
            blocks, cost = fill_blocks(session, rows, sizes, Unmasking())
            drafts = [block or own for block, own in zip(blocks, drafts, strict=True)]
            passes += cost
        names = {arm: name for name, arm in _ARMS.items()}
        ways = tuple(
            NO_DRAFT if way is None else names[way, _is_sure(row)] for way, row in zip(chosen.ways, rows, strict=True)
        )
        return Proposal(tuple(drafts), passes, ways=ways)

    @property
    def first_state(self) -> Experience:
        """None yet."""
        return Experience()

    def next_state(self, state: Any, outcome: Outcome) -> Experience:
        """What became of the draft; a round that was to have none makes the others a little less certain."""
        known: Experience = state
        if outcome.way in _ARMS:
            way, sure = _ARMS[outcome.way]
            return known.after(way, sure, outcome.drafted, outcome.accepted)
        return known.after(None, False, 0, 0) if outcome.way == NO_DRAFT else known


def _is_sure(row: Pending) -> bool:
    return row.entropy is None or row.entropy < SURE


def _plan(session: Session, rows: Sequence[Pending]) -> DraftPlan:
    block = (session.model.config.diffusion_block or 1) - 1
    longest = dict(zip(WAYS, (LONGEST, block), strict=True))
    gains = {
        way: np.stack([row.state.gains(way, _is_sure(row), row.room - 1, longest[way]) for row in rows]) for way in WAYS
    }
    return plan(gains, _costs(session).rounds(LONGEST, block))


def _costs(session: Session) -> RoundCosts:
    """Of the weights, and of the keys and values that are cached now."""
    model, scorer = session.model, session.scorer
    reads = _reads(weakref.ref(model), None if scorer is None else weakref.ref(scorer))
    config = model.config
    scoring = getattr(scorer, "config", None)
    scorer_layers = scoring.layers if isinstance(scoring, ByteTransformerConfig) else 0
    encoder = reads.encoder + session.encoder.num_bytes
    decoder = reads.decoder + session.decoder.num_bytes
    scored = reads.entropy + (0 if scorer is None else session.scorer_state.num_bytes)
    drafting = decoder + (0 if model.decoder.bytes is not None else encoder)
    layers = config.decoder.layers + (0 if model.decoder.bytes is not None else config.encoder.layers)
    closed = sum(sum(cache.positions) for cache in session.latents)
    return RoundCosts(
        machine=CPU if session.device.type == "cpu" else GPU,
        rows=session.rows,
        read=scored + encoder + decoder,
        bytes=drafting,
        block=decoder,
        latent=reads.latent + sum(cache.num_bytes for cache in session.latents) / session.rows,
        layers=(
            scorer_layers + config.encoder.layers + config.decoder.layers,
            layers,
            config.decoder.layers,
            config.latent.layers,
        ),
        closing=min(1.0, (closed + 1) / (sum(session.positions) + 1)),
    )


@lru_cache(maxsize=16)
def _reads(model: weakref.ref[Blt], scorer: weakref.ref[Scorer] | None) -> WeightReads:
    """Counted once a model: that takes as long as reading a byte does. Models are not kept alive for it."""
    found, scoring = model(), None if scorer is None else scorer()
    assert found is not None
    return WeightReads.of(found, scoring)
