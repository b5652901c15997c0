"""How the entropies of a text and the patches cut from them look: the measurements behind the health check.

Windows of the scorer decide how far its sight reaches. Whether entropies depend on the position is measured on the same
bytes twice, near a row's start and far from it, so that the text itself cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bltkit.checkpoint import ScorerModule
from bltkit.eval.score import BATCH_BYTES
from bltkit.model import EntropyModel
from bltkit.patching import PatchingRule, patch
from bltkit.vocab import BOS, encode

_NO_WINDOW = ((32, 128, 512), 2048, 64)
"""Bytes before the near places, before the far one, and measured in each, for a model that sees the whole row."""
_NO_WINDOW_ROWS = 8
_MEASURED_BYTES = 2048


@dataclass(frozen=True)
class PatchSizes:
    """Mean patch sizes in bytes of text, BOS's own patch not counted.

    mean: as the rule cuts.
    natural: without the cuts of `max_patch_bytes`, which say nothing about the scores.
    """

    mean: float
    natural: float


@dataclass(frozen=True)
class Drift:
    """How sure and how right a model is about the same bytes with `far_bytes` of the row before them instead of
    `near_bytes`: what is added to its mean entropy and to its mean -ln p, in nats."""

    near_bytes: int
    far_bytes: int
    entropy: float
    surprise: float


@dataclass(frozen=True)
class ScoredPieces:
    """Texts as a rule cuts them, on the CPU.

    ids: of each piece [T], BOS in front. scores: of their predictions [T]; None where there is no scorer.
    """

    ids: Sequence[Tensor]
    scores: Sequence[Tensor] | None


def score_pieces(
    scorer: ScorerModule | None,
    documents: Sequence[bytes],
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> ScoredPieces:
    """Score `documents` in pieces of at most `context` bytes with BOS in front, as in training.

    progress: told (bytes done, bytes in all).
    """
    pieces = [text[begin : begin + context] for text in documents for begin in range(0, len(text), context)]
    ids, scores = [encode(piece) for piece in pieces], []
    if scorer is None:
        return ScoredPieces(ids, None)
    device, done, total = next(scorer.parameters()).device, 0, sum(map(len, pieces))
    for row in ids:
        scores.append(scorer.scores(row[None].to(device))[0].cpu())
        done += len(row) - 1
        if progress is not None:
            progress(done, total)
    return ScoredPieces(ids, scores)


def patch_sizes(rule: PatchingRule, pieces: ScoredPieces) -> PatchSizes:
    """Cut pieces by a rule."""
    natural_rule = rule.replace(max_patch_bytes=None)
    num_bytes, patches, natural = 0, 0, 0
    for number, row in enumerate(pieces.ids):
        ids = row[None]
        scores = None if rule.scores is None or pieces.scores is None else pieces.scores[number][None]
        num_bytes += ids.shape[1] - 1
        text = ids != BOS
        patches += int((patch(rule, ids, scores).own_starts & text).sum())
        natural += int((patch(natural_rule, ids, scores).own_starts & text).sum())
    return PatchSizes(num_bytes / patches, num_bytes / natural)


def bytes_for_drift(window: int | None) -> int:
    """The least text that `drift` can be measured on."""
    return _layout(window)[1] + _layout(window)[2]


@torch.no_grad()
def drift(scorer: EntropyModel, text: bytes) -> Drift:
    """Compare about 2,048 bytes of `text` (512 without a window) near and far from the row's start.

    With a window both places have a full one before them: one window, and four. Without, the far place has 2,048 bytes
    before it, and the near one is the most right of those with 32, 128 and 512: nobody knows which window the model may
    have been trained with, and too little context costs as too much does. `text` holds at least `bytes_for_drift`.
    """
    places, far, block = _layout(scorer.config.window)
    assert len(text) >= far + block
    count = _NO_WINDOW_ROWS if scorer.config.window is None else max(1, _MEASURED_BYTES // block)
    last = len(text) - far - block
    begins = sorted({last * i // max(1, count - 1) for i in range(count)})
    rows = [text[begin : begin + far + block] for begin in begins]
    early = ((*_block_means(scorer, [row[far - near :] for row in rows], near), near) for near in places)
    surprise, uncertainty, near = min(early)
    far_surprise, far_uncertainty = _block_means(scorer, rows, far)
    return Drift(near, far, far_uncertainty - uncertainty, far_surprise - surprise)


def _layout(window: int | None) -> tuple[tuple[int, ...], int, int]:
    """Bytes before the near places, before the far place, and measured in each."""
    return _NO_WINDOW if window is None else ((window,), 4 * window, window)


def _block_means(scorer: EntropyModel, rows: Sequence[bytes], before: int) -> tuple[float, float]:
    """Mean -ln p and mean entropy at each row's bytes from `before` on."""
    device = next(scorer.parameters()).device
    surprise, uncertainty, count = 0.0, 0.0, 0
    group = max(1, BATCH_BYTES // len(rows[0]))
    for i in range(0, len(rows), group):
        ids = torch.stack([encode(row) for row in rows[i : i + group]]).to(device)
        logits = scorer(ids)[:, :-1]
        uncertainty += float(scorer.score(logits)[:, before:].double().sum())
        targets = ids[:, before + 1 :].flatten()
        surprise += float(F.cross_entropy(logits[:, before:].flatten(0, 1).float(), targets, reduction="sum"))
        count += len(targets)
    return surprise / count, uncertainty / count
