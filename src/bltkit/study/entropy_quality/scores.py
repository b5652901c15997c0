"""What models say of every byte of a text: entropies and surprisals, in bits, each byte in the window that scores it.

The windows are those of `blt score`, so the BLT's surprisals and borders, and the entropies that placed the borders,
come from the same bytes before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bltkit.checkpoint import Bundle
from bltkit.eval.score import byte_scores, windows
from bltkit.model import CnnEntropy, EntropyModel
from bltkit.model.entropy import entropy
from bltkit.patching.finite import check_finite
from bltkit.study.entropy_quality.entropy_metrics import Flags, Numbers
from bltkit.vocab import PAD, encode

BATCH_BYTES = 16384
LN2 = math.log(2)

Told = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ByteFigures:
    """Of each byte, in bits.

    entropies: of the entropy model's prediction. surprisals: its -log2 p of the byte. drawn: its -log2 p of a byte
        drawn from that prediction: what `surprisals` would be of a text that is just as the model says.
    blt: the BLT's -log2 p; None where the checkpoint holds none.
    opens: does the byte open a patch by the model's own rule.
    """

    entropies: Numbers
    surprisals: Numbers
    drawn: Numbers
    blt: Numbers | None
    opens: Flags


def entropy_model(bundle: Bundle) -> EntropyModel | CnnEntropy:
    """The bundle's. Raises ValueError for a checkpoint without one that predicts bytes, or without a rule to cut by."""
    scorer = bundle.scorer
    if not isinstance(scorer, EntropyModel | CnnEntropy):
        held = "no entropy model" if scorer is None else f"a {type(scorer).__name__}, which predicts no bytes"
        raise ValueError(f"this checkpoint holds {held}; entropies are studied with a model such as bltkit:tiny")
    if bundle.rule is None or not bundle.rule.streams or bundle.rule.scores not in (None, "entropy"):
        raise ValueError(f"rule {bundle.rule} cuts by no entropies of this model; run `blt calibrate` on it")
    return scorer


def byte_figures(
    bundle: Bundle, data: bytes, context: int, stride: int, *, seed: int = 0, progress: Told = lambda done, total: None
) -> ByteFigures:
    """Of every byte of `data`. progress: told (bytes read by any model, bytes to read)."""
    scorer = entropy_model(bundle)
    total = len(data) * (1 if bundle.model is None else 2)
    entropies, surprisals, drawn = _predictions(
        scorer, data, context, stride, seed, lambda done, _: progress(done, total)
    )
    scores = byte_scores(
        bundle, data, context, stride, progress=lambda done, _: progress(total - len(data) + done, total)
    )
    assert scores.opens is not None, "`entropy_model` saw to a rule that places patches"
    return ByteFigures(
        entropies,
        surprisals,
        drawn,
        None if bundle.model is None else scores.nats.numpy() / LN2,
        scores.opens.numpy(),
    )


@torch.no_grad()
def _predictions(
    scorer: EntropyModel | CnnEntropy, data: bytes, context: int, stride: int, seed: int, progress: Told
) -> tuple[Numbers, Numbers, Numbers]:
    device = next(scorer.parameters()).device
    found = np.zeros((3, len(data)))
    every = list(windows(len(data), context, stride))
    rows = max(1, BATCH_BYTES // max(1, min(context, len(data))))
    for first in range(0, len(every), rows):
        group = every[first : first + rows]
        ids = torch.nn.utils.rnn.pad_sequence(
            [encode(data[one.begin : one.stop]) for one in group], batch_first=True, padding_value=PAD
        )
        logits = scorer(ids[:, :-1].to(device)).float().cpu()
        uncertain = entropy(logits)
        lengths = torch.tensor([one.stop - one.begin for one in group])
        own = torch.arange(uncertain.shape[1]) < lengths[:, None]
        check_finite(uncertain.where(own, 0.0), "entropy", f"bytes from {group[0].begin} on")
        log_p = F.log_softmax(logits, -1)
        cost = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        for row, one in enumerate(group):
            part = slice(one.first - one.begin, one.stop - one.begin)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + one.begin)
            draws = torch.multinomial(log_p[row, part].exp(), 1, generator=generator)
            found[0, one.first : one.stop] = uncertain[row, part]
            found[1, one.first : one.stop] = cost[row, part]
            found[2, one.first : one.stop] = -log_p[row, part].gather(-1, draws)[:, 0]
        progress(group[-1].stop, len(data))
    entropies, surprisals, drawn = found / LN2
    return entropies, surprisals, drawn
