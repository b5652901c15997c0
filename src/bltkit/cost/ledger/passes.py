"""Passes of a decoding strategy per byte of text: expected from what drafts are worth, or taken from a real run.

A round is what the engine does: a strategy drafts, the full model reads the chosen byte and the drafts in one pass
(`generate.engine`). So a round of d drafted bytes of which a share is kept makes 1 + share x d bytes of text.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bltkit.files import read_json
from bltkit.generate.session_state import Passes
from bltkit.generate.strategies import Auto, Autoregressive, Diffusion, Speculative, Strategy
from bltkit.generate.strategies.blocks import BlockStrategy
from bltkit.model import BltConfig


@dataclass(frozen=True)
class PassRates:
    """`generate.ledger.Passes` per byte of text, one row at a time.

    entropy, encoder, latent, decoder: passes, each of which reads the module's weights once. ids: that the full model
    reads. draft_ids: that encoder and decoder read to draft. cells: that the decoder reads by itself. block: cells of a
    block. open_latents: patches that the global transformer computes before they close.
    """

    entropy: float
    encoder: float
    latent: float
    decoder: float
    ids: float
    draft_ids: float = 0.0
    cells: float = 0.0
    block: int = 1
    open_latents: float = 0.0

    @classmethod
    def plain(cls, patch_bytes: float, entropy: bool = True) -> Self:
        """Byte by byte."""
        return cls(float(entropy), 1.0, 1 / patch_bytes, 1.0, 1.0)

    @classmethod
    def of_passes(cls, passes: Passes, num_bytes: int, block: int = 1) -> Self:
        """Counted passes over the bytes that they made. Raises ValueError for no bytes."""
        if num_bytes < 1:
            raise ValueError(f"num_bytes = {num_bytes}: passes per byte of text need some bytes")
        return cls(
            entropy=passes.entropy / num_bytes,
            encoder=passes.encoder / num_bytes,
            latent=passes.latent / num_bytes,
            decoder=passes.decoder / num_bytes,
            ids=passes.ids / num_bytes,
            draft_ids=passes.draft_ids / num_bytes,
            cells=passes.cells / num_bytes,
            block=block,
        )

    @classmethod
    def of_stats(cls, stats: Mapping[str, Any], strategy: Strategy, config: BltConfig) -> Self:
        """From the `stats` of `blt generate --json`, of one row.

        How many ids were read follows: every round reads the chosen one and the drafts. Blocks of a strategy that
        chooses their length count as whole. Raises ValueError where a count is missing or nothing was made.
        """
        missing = [name for name in _STATS if not _is_count(stats.get(name))]
        if missing and missing[0] not in stats:
            raise ValueError(f"stats: {missing[0]} is missing")
        if missing or stats["bytes"] < 1:
            raise ValueError(
                f"stats: {missing[0]} = {stats.get(missing[0])!r} must be a number from 0 on"
                if missing
                else "stats: bytes = 0 tell nothing of a byte's cost"
            )
        made, entropy, encoder, latent, decoder, drafted, accepted = (int(stats[name]) for name in _STATS)
        # The scorer runs once a round; where there is none the encoder does, unless it drafts as well.
        rounds = entropy or (encoder if encoder < decoder or not drafted else made - 1 - accepted)
        if isinstance(strategy, BlockStrategy):
            block = _block(strategy, config)
        else:
            block = (config.diffusion_block or 1) if isinstance(strategy, Auto) else 1
        own_table = config.decoder_input == "embedding"
        passes = Passes(
            entropy=entropy,
            encoder=encoder,
            latent=latent,
            decoder=decoder,
            ids=drafted + strategy.draft_column * rounds,
            draft_ids=0 if own_table else encoder - rounds,
            cells=(decoder - rounds if own_table else decoder - encoder) * block,
        )
        return cls.of_passes(passes, made, block)

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Passes per byte."""
        parts = {"decoder": self.decoder, "encoder": self.encoder, "global": self.latent, "entropy": self.entropy}
        return ", ".join(f"{name} {rate:.3f}" for name, rate in parts.items()) + " passes per byte of text"


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10**15


_STATS = ("bytes", "entropy_passes", "encoder_passes", "global_passes", "decoder_passes", "drafted", "accepted")


def read_stats(path: str | Path) -> dict[str, Any]:
    """The `stats` of a file that `blt generate --json` wrote. Raises ValueError for another one."""
    try:
        data = read_json(Path(path), escaped_bytes=True)
    except ValueError as error:
        raise ValueError(f"{error}; write it with blt generate ... --json > FILE") from None
    stats = data.get("stats", data) if isinstance(data, dict) else None
    if not isinstance(stats, dict):
        raise ValueError(f"{path} holds no stats; write it with blt generate ... --json > FILE")
    return stats


def expected(
    strategy: Strategy,
    config: BltConfig,
    patch_bytes: float,
    *,
    accepted: float | None = None,
    unmasking: float | None = None,
    entropy: bool = True,
) -> tuple[PassRates, tuple[str, ...]]:
    """The passes that a strategy makes per byte of text, and what was assumed.

    accepted: share of the drafted bytes that verification keeps. unmasking: passes that fill a block. entropy: is there
    a scorer. Rounds are full: nothing is cut at the end of a text. A byte closes a patch with probability
    1 / patch_bytes whatever came before it, so a round that reads n ids has a global pass with probability
    1 - (1 - 1 / patch_bytes)^n; patches of even length close in more of them. Raises ValueError, with the remedy,
    where something has to be said, or where only a real run tells.
    """
    if isinstance(strategy, Autoregressive):
        _refuse(strategy, accepted=accepted, unmasking=unmasking)
        return PassRates.plain(patch_bytes, entropy), ()
    if isinstance(strategy, Speculative):
        _refuse(strategy, unmasking=unmasking)
        made = _Round.of_bytes(strategy, accepted, config.decoder_input == "embedding")
    elif isinstance(strategy, BlockStrategy):
        made = _Round.of_block(strategy, accepted, unmasking, _block(strategy, config), patch_bytes)
    else:
        raise ValueError(
            f"strategy {strategy.kind!r} chooses by the round: measure a run, blt generate ... --json > F.json, and "
            "give --stats F.json"
        )
    return made.rates(patch_bytes, entropy), made.notes(patch_bytes)


@dataclass(frozen=True)
class _Round:
    """What a full round makes and reads."""

    num_bytes: float
    ids: int
    """That the full model reads, in one pass."""
    drafting: float
    """Passes of the decoder."""
    encoding: float = 0.0
    """Passes of the encoder among them, an id each."""
    cells: float = 0.0
    block: int = 1
    open_latents: float = 0.0
    accepted: float | None = None

    @classmethod
    def of_bytes(cls, strategy: Speculative, accepted: float | None, own_table: bool) -> Self:
        draft = strategy.draft
        if draft is None:
            raise ValueError("strategy 'speculative' adapts its drafts: say how many, speculative:draft=8, or --stats")
        num_bytes = 1 + _share(strategy, accepted) * draft
        if own_table:
            return cls(num_bytes, 1 + draft, draft, cells=draft, accepted=accepted)
        return cls(num_bytes, 1 + draft, draft, encoding=draft, accepted=accepted)

    @classmethod
    def of_block(
        cls,
        strategy: BlockStrategy,
        accepted: float | None,
        unmasking: float | None,
        block: int,
        patch_bytes: float,
    ) -> Self:
        if strategy.align_border:
            raise ValueError("align_border drafts what the open patch leaves of a block: measure a run, give --stats")
        masked = block - strategy.draft_column
        passes = _unmasking(strategy, masked, unmasking)
        if isinstance(strategy, Diffusion):
            _refuse(strategy, accepted=accepted)
            open_latents = 1 - 1 / patch_bytes if strategy.latent == "open" else 0.0
            return cls(block, block, passes, 0.0, passes * block, block, open_latents)
        num_bytes = 1 + _share(strategy, accepted) * (block - 1)
        return cls(num_bytes, block, passes, 0.0, passes * block, block, accepted=accepted)

    def rates(self, patch_bytes: float, entropy: bool) -> PassRates:
        """Per byte of text."""
        closing = 1 - (1 - 1 / patch_bytes) ** self.ids
        return PassRates(
            entropy=entropy / self.num_bytes,
            encoder=(1 + self.encoding) / self.num_bytes,
            latent=(closing + self.open_latents) / self.num_bytes,
            decoder=(1 + self.drafting) / self.num_bytes,
            ids=self.ids / self.num_bytes,
            draft_ids=self.encoding / self.num_bytes,
            cells=self.cells / self.num_bytes,
            block=self.block,
            open_latents=self.open_latents / self.num_bytes,
        )

    def notes(self, patch_bytes: float) -> tuple[str, ...]:
        """What was assumed."""
        kept = "" if self.accepted is None else f", {self.accepted:.0%} of the drafted bytes kept"
        return (
            f"assumed: rounds of {self.num_bytes:.2f} bytes, {self.drafting:g} drafting passes and {self.ids} ids "
            f"read{kept}; each of these closes a patch with probability 1/{patch_bytes:g}",
        )


def _share(strategy: Strategy, accepted: float | None) -> float:
    if accepted is None:
        raise ValueError(f"strategy {strategy.kind!r}: say what share of its drafts is kept, such as --accepted 0.7")
    if not 0 <= accepted <= 1:
        raise ValueError(f"accepted = {accepted:g}: must be a share from 0 to 1")
    return accepted


def _unmasking(strategy: BlockStrategy, masked: int, given: float | None) -> float:
    """Passes that fill a block of `masked` cells to fill."""
    rule = strategy.unmasking
    certain = rule.alpha is None and rule.gamma is None
    known = min(rule.steps or 1, masked) if certain or rule.steps == 1 or masked < 2 else None
    if known is not None:
        _refuse(strategy, unmasking=given)
        return float(min(known, masked))
    if given is None:
        raise ValueError(
            f"strategy {strategy.kind!r} fills a block in as many passes as it is unsure: say how many on average, "
            "such as --unmasking 3.5"
        )
    most = min(rule.steps or masked, masked)
    if not 1 <= given <= most:
        raise ValueError(f"unmasking = {given:g}: a block of {masked} masked bytes takes 1 to {most} passes")
    return given


def _block(strategy: BlockStrategy, config: BltConfig) -> int:
    block = strategy.draft or config.diffusion_block
    if block is None:
        raise ValueError(
            f"strategy {strategy.kind!r}: the model is not trained for blocks; say how long they would be, "
            f"{strategy.kind}:draft=8"
        )
    return block


def _refuse(strategy: Strategy, **given: float | None) -> None:
    """What does not go with the strategy."""
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise ValueError(f"--{name} does not go with this strategy ({strategy.kind!r}): leave it out")
