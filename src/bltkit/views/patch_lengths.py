"""`blt patch --stats`: how long the patches of a text are, in figures; of a text of any length in bounded memory.

The text is read in pieces: the scorer carries its state from one to the next and the rule its stream, so the patches
are those of the whole text. Only the counts of lengths are kept.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from bltkit.model import Scorer
from bltkit.model.entropy import SCORING_CHUNK, stretches
from bltkit.patching import PatchingRule, extend, start_stream
from bltkit.vocab import BOS, OFFSET

EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 25, 33, 49, 65, 97, 129, 257, 513, 1025)
"""Lowest length of each row of the histogram; the last row is open."""
PERCENTILES = (10, 25, 50, 75, 90, 99)
_BAR = 30


@dataclass(frozen=True)
class PatchLengths:
    """How many patches of each length a text has."""

    rule: PatchingRule
    counts: Mapping[int, int]
    """Patches by their length in bytes."""

    @property
    def num_patches(self) -> int:
        """Patches of the text."""
        return sum(self.counts.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the text."""
        return sum(length * count for length, count in self.counts.items())

    @property
    def mean(self) -> float:
        """Bytes per patch; 0 for an empty text."""
        return self.num_bytes / self.num_patches if self.counts else 0.0

    @property
    def largest(self) -> int:
        """Bytes of the longest patch; 0 for an empty text."""
        return max(self.counts, default=0)

    def percentile(self, percent: float) -> int:
        """The length that so many per cent of the patches do not exceed (nearest rank); 0 for an empty text."""
        rank = max(1, math.ceil(percent / 100 * self.num_patches))
        lengths = sorted(self.counts)
        ranks = accumulate(self.counts[length] for length in lengths)
        return next((length for length, upto in zip(lengths, ranks, strict=True) if upto >= rank), 0)

    def rows(self) -> list[dict[str, Any]]:
        """The histogram: lengths from `least` to `most`, with their patches and their shares of patches and bytes."""
        found = []
        for least, after in pairwise((*EDGES, max(EDGES[-1], self.largest) + 1)):
            inside = {length: count for length, count in self.counts.items() if least <= length < after}
            patches = sum(inside.values())
            num_bytes = sum(length * count for length, count in inside.items())
            found.append(
                {
                    "least": least,
                    "most": after - 1,
                    "patches": patches,
                    "share_of_patches": patches / max(1, self.num_patches),
                    "share_of_bytes": num_bytes / max(1, self.num_bytes),
                }
            )
        while found and not found[-1]["patches"]:
            found.pop()
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values: the summary first, then the histogram."""
        return {
            "num_bytes": self.num_bytes,
            "rule": str(self.rule),
            "num_patches": self.num_patches,
            "mean_patch_bytes": self.mean,
            "median_patch_bytes": self.percentile(50),
            "percentiles": {str(percent): self.percentile(percent) for percent in PERCENTILES},
            "largest_patch_bytes": self.largest,
            "histogram": self.rows(),
        }

    def summary(self, *, unicode: bool = True) -> str:
        """The table and the histogram. unicode: draw the bars with blocks, else with `#`."""
        patches = f"{self.num_patches:,} patch" + ("" if self.num_patches == 1 else "es")
        lines = [f"{self.num_bytes:,} byte{'' if self.num_bytes == 1 else 's'} in {patches}, rule {self.rule}"]
        if not self.counts:
            return lines[0]
        names = ["mean", *(f"{percent}%" if percent != 50 else "median" for percent in PERCENTILES), "max"]
        values = [f"{self.mean:.2f}", *(str(self.percentile(percent)) for percent in PERCENTILES), str(self.largest)]
        widths = [max(len(name), len(value)) + 2 for name, value in zip(names, values, strict=True)]
        lines += [
            "",
            "bytes per patch" + "".join(name.rjust(width) for name, width in zip(names, widths, strict=True)),
            " " * 15 + "".join(value.rjust(width) for value, width in zip(values, widths, strict=True)),
            "",
            f"{'length':>11}{'patches':>13}{'share':>9}{'of bytes':>10}",
        ]
        rows = self.rows()
        top = max(row["share_of_patches"] for row in rows)
        for row in rows:
            least, most = row["least"], row["most"]
            name = str(least) if least == most else f"{least}-{most}"
            bar = ("█" if unicode else "#") * round(_BAR * row["share_of_patches"] / top)
            if row["patches"] and not bar:
                bar = "▏" if unicode else "."
            lines.append(
                f"{name:>11}{row['patches']:>13,}{row['share_of_patches']:>9.1%}{row['share_of_bytes']:>10.1%}  {bar}"
            )
        return "\n".join(line.rstrip() for line in lines)


def lengths_of(lengths: Sequence[int], rule: PatchingRule) -> PatchLengths:
    """Those of patches that are known."""
    return PatchLengths(rule, dict(sorted(Counter(lengths).items())))


@torch.no_grad()
def measure_lengths(
    pieces: Iterable[bytes],
    rule: PatchingRule,
    scorer: Scorer | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> PatchLengths:
    """Cut a text that comes in pieces, read as one document, and count the lengths of its patches.

    scorer: what the rule listens to; not run for a rule that reads no scores. progress: told the bytes done so far.

    Raises ValueError for a rule that cannot stream or lacks its scorer, and for scores that are not finite.
    """
    scorer = None if rule.scores is None else scorer
    device = torch.device("cpu") if scorer is None else _device(scorer)
    resets = frozenset[int]() if scorer is None else scorer.resets
    state = None if scorer is None else scorer.start()
    stream = start_stream(rule, device=device)
    counts: Counter[int] = Counter()
    open_bytes, done, opens_next = 0, -1, False
    for values in _chunks(pieces):
        for begin, end in stretches(values, resets, SCORING_CHUNK):
            ids = torch.tensor([values[begin:end]], device=device)
            scores = None
            if scorer is not None:
                state = state.forget([0]) if values[begin] in resets and state is not None else state
                scores, read = scorer.extend_scores(ids, state)
                state = read.keep([end - begin])
            opens, stream = extend(rule, stream, ids, scores)
            # The answer at an id is about the byte after it; BOS, a patch of its own, is no byte of the text.
            answers = np.concatenate(([opens_next], opens[0].numpy(force=True)))
            is_bos = values[begin] == BOS
            borders = np.flatnonzero(answers[is_bos:-1])
            opens_next = bool(answers[-1])
            if len(borders):
                lengths = np.diff(borders, prepend=-open_bytes)
                counts.update(lengths[lengths > 0].tolist())
                open_bytes = 0
            open_bytes += end - begin - is_bos - (int(borders[-1]) if len(borders) else 0)
        done += len(values)
        if progress is not None:
            progress(done)
    if open_bytes:
        counts[open_bytes] += 1
    return PatchLengths(rule, dict(sorted(counts.items())))


def _chunks(pieces: Iterable[bytes]) -> Iterable[list[int]]:
    yield [BOS]
    for piece in pieces:
        for begin in range(0, len(piece), SCORING_CHUNK):
            yield [value + OFFSET for value in piece[begin : begin + SCORING_CHUNK]]


def _device(scorer: Scorer) -> torch.device:
    return next(scorer.parameters()).device if isinstance(scorer, torch.nn.Module) else torch.device("cpu")
