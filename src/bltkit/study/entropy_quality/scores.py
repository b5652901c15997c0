"""Entropies and surprisals of every byte of a text by the studied models, in bits, and how well the two agree.

Each byte is scored in a window of `blt score`, so the BLT's surprisals and borders, and the entropies that placed the
borders, come from the same bytes before. Calibration here is that of a predicted *uncertainty*: among bytes whose
predictions have an entropy of 2 bits, a calibrated model is surprised by 2 bits on average, whichever bytes come.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bltkit.checkpoint import Bundle
from bltkit.eval.score import byte_scores, windows
from bltkit.model import CnnEntropy, EntropyModel
from bltkit.model.entropy import entropy
from bltkit.patching.finite import check_finite
from bltkit.study.entropy_quality.characters import Flags, Numbers
from bltkit.vocab import PAD, encode

BATCH_BYTES = 16384
LN2 = math.log(2)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ByteFigures:
    """Figures of each byte, in bits.

    entropies: of the entropy model's prediction. surprisals: its -log2 p of the byte. drawn: its -log2 p of a byte
        drawn from that prediction: `surprisals` of a text that is exactly as the model predicts.
    blt: the BLT's -log2 p; None where the checkpoint holds none.
    opens: does the byte open a patch by the model's own rule.
    """

    entropies: Numbers
    surprisals: Numbers
    drawn: Numbers
    blt: Numbers | None
    opens: Flags


def entropy_model(bundle: Bundle) -> EntropyModel | CnnEntropy:
    """The bundle's entropy model. Raises ValueError for a checkpoint without one, or without a rule to cut by."""
    scorer = bundle.scorer
    if not isinstance(scorer, EntropyModel | CnnEntropy):
        held = "no entropy model" if scorer is None else f"a {type(scorer).__name__}, which predicts no bytes"
        raise ValueError(f"this checkpoint holds {held}; entropies are studied with a model such as bltkit:tiny")
    if bundle.rule is None or not bundle.rule.streams or bundle.rule.scores not in (None, "entropy"):
        raise ValueError(f"rule {bundle.rule} cuts by no entropies of this model; run `blt calibrate` on it")
    return scorer


def byte_figures(
    bundle: Bundle,
    data: bytes,
    context: int,
    stride: int,
    *,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> ByteFigures:
    """Figures of every byte of `data`. progress: told (bytes read by any model, bytes to read)."""
    scorer = entropy_model(bundle)
    total = len(data) * (1 if bundle.model is None else 2)
    entropies, surprisals, drawn = _predictions(
        scorer, data, context, stride, seed, lambda done, _: progress(done, total)
    )
    scores = byte_scores(
        bundle, data, context, stride, progress=lambda done, _: progress(total - len(data) + done, total)
    )
    assert scores.opens is not None, "`entropy_model` saw to a rule that places patches"
    blt = None if bundle.model is None else scores.nats.numpy() / LN2
    return ByteFigures(entropies, surprisals, drawn, blt, scores.opens.numpy())


def calibration(entropies: Numbers, surprisals: Mapping[str, Numbers], own: str, bins: int) -> dict[str, Any]:
    """Entropies against surprisals, in up to `bins` bins of about as many bytes each; equal entropies stay together.

    surprisals: -log2 p by each model, by name; `own` is the model that the entropies belong to.

    ece: mean over bytes of |mean surprisal - mean entropy| of their bin (the expected calibration error). ece_noise:
    its approximate value by chance alone in a calibrated model: with few bytes it is not 0. gap: mean surprisal - mean
    entropy; above 0 the model is surer than it should be. slope: of the least-squares line of surprisal over entropy,
    1 for a calibrated model; None where all entropies are the same. bins: by rising entropy, with their number of bytes
    `n`, mean `entropy` and mean `surprisal` by each model.
    """
    import pandas as pd

    assert len(entropies) > 0 and bins > 0
    edges = np.unique(np.quantile(entropies, np.linspace(0, 1, bins + 1)[1:-1]))
    grouped = pd.DataFrame({"entropy": entropies, **surprisals}).groupby(np.searchsorted(edges, entropies, side="left"))
    means, count = grouped.mean(), grouped.size().to_numpy()
    own_bits = surprisals[own]
    spread = pd.Series(own_bits - entropies).groupby(grouped.ngroup().to_numpy()).var(ddof=0).to_numpy()
    away = entropies - entropies.mean()
    varies = float((away**2).sum())
    return {
        "ece": float(np.average(np.abs(means[own] - means["entropy"]), weights=count)),
        # Mean of |x| for a normal x with the standard error of a bin's mean.
        "ece_noise": float(np.average(np.sqrt(2 / np.pi * spread / count), weights=count)),
        "gap": float(own_bits.mean() - entropies.mean()),
        "slope": float((away * own_bits).sum() / varies) if varies > 1e-12 * len(away) else None,
        "bins": [
            {
                "n": int(size),
                "entropy": float(row["entropy"]),
                "surprisal": {name: float(row[name]) for name in surprisals},
            }
            for size, (_, row) in zip(count, means.iterrows(), strict=True)
        ],
    }


@torch.no_grad()
def _predictions(
    scorer: EntropyModel | CnnEntropy, data: bytes, context: int, stride: int, seed: int, progress: Progress
) -> tuple[Numbers, Numbers, Numbers]:
    device = next(scorer.parameters()).device
    bits = np.zeros((3, len(data)))
    every = list(windows(len(data), context, stride))
    rows = max(1, BATCH_BYTES // max(1, min(context, len(data))))
    for first in range(0, len(every), rows):
        group = every[first : first + rows]
        ids = torch.nn.utils.rnn.pad_sequence(
            [encode(data[window.begin : window.stop]) for window in group], batch_first=True, padding_value=PAD
        )
        logits = scorer(ids[:, :-1].to(device)).float().cpu()
        uncertain = entropy(logits)
        lengths = torch.tensor([window.stop - window.begin for window in group])
        inside = torch.arange(uncertain.shape[1]) < lengths[:, None]
        check_finite(uncertain.where(inside, 0.0), "entropy", f"bytes from {group[0].begin} on")
        log_p = F.log_softmax(logits, -1)
        cost = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
        for row, window in enumerate(group):
            part = slice(window.first - window.begin, window.stop - window.begin)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + window.begin)
            draws = torch.multinomial(log_p[row, part].exp(), 1, generator=generator)
            scored = slice(window.first, window.stop)
            bits[0, scored] = uncertain[row, part]
            bits[1, scored] = cost[row, part]
            bits[2, scored] = -log_p[row, part].gather(-1, draws)[:, 0]
        progress(group[-1].stop, len(data))
    entropies, surprisals, drawn = bits / LN2
    return entropies, surprisals, drawn
