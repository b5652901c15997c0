"""Counters of what the engine computed, for `Figures`."""

from collections import Counter
from dataclasses import dataclass, field

from bltkit.generate import Chunk, Passes
from bltkit.generate.ledger import WeightReads
from bltkit.serve.messages import Figures


@dataclass
class Counters:
    """They rise only."""

    reads: WeightReads
    rounds: int = 0
    round_rows: int = 0
    round_seconds: float = 0.0
    prompts: int = 0
    prompt_bytes: int = 0
    prefix_hits: int = 0
    prefix_hit_bytes: int = 0
    generated_bytes: int = 0
    patches: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0
    passes: Passes = field(default_factory=Passes)
    """Of rounds and of prompts."""
    finished: Counter[str] = field(default_factory=Counter)

    def prompt(self, num_bytes: int, hit: int) -> None:
        """A prompt has been read, of which the state behind the first `hit` ids was there."""
        self.prompts += 1
        self.prompt_bytes += num_bytes
        self.prefix_hits += hit > 1  # BOS alone is no prefix
        self.prefix_hit_bytes += max(0, hit - 1)

    def round(self, rows: int, seconds: float, cost: Passes) -> None:
        """A round has been made."""
        self.rounds += 1
        self.round_rows += rows
        self.round_seconds += seconds
        self.passes += cost

    def chunk(self, chunk: Chunk) -> None:
        """Bytes have become certain."""
        self.generated_bytes += len(chunk.data)
        self.patches += sum(chunk.opens)
        if chunk.stats is not None:
            self.drafts(chunk.stats.drafted, chunk.stats.accepted)
        if chunk.finish is not None:
            self.finished[chunk.finish] += 1

    def drafts(self, proposed: int, accepted: int) -> None:
        """A sequence has ended that drafted so much."""
        self.drafts_proposed += proposed
        self.drafts_accepted += accepted

    def figures(self) -> Figures:
        """The counters; the state is the scheduler's."""
        return Figures(
            rounds=self.rounds,
            round_rows=self.round_rows,
            round_seconds=self.round_seconds,
            prompts=self.prompts,
            prompt_bytes=self.prompt_bytes,
            prefix_hits=self.prefix_hits,
            prefix_hit_bytes=self.prefix_hit_bytes,
            generated_bytes=self.generated_bytes,
            patches=self.patches,
            global_passes=self.passes.latent,
            drafts_proposed=self.drafts_proposed,
            drafts_accepted=self.drafts_accepted,
            weight_bytes_read=self.reads.total(self.passes),
            kv_bytes_read=self.passes.kv_bytes,
            finished=dict(self.finished),
        )
