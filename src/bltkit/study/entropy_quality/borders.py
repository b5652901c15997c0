"""Where patches could begin instead, at the same rate; and what a set of borders makes of the information in a text.

A border set says of every byte whether it opens a patch; the first always does. Whether entropy puts borders in good
places shows only beside sets with as many borders: fixed and random ones for its own rate, and, since words and tokens
have rates of their own, the highest entropies in just that number beside those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bltkit.patching import SpaceRule, patch
from bltkit.study.entropy_quality.characters import Characters
from bltkit.study.entropy_quality.entropy_metrics import Flags, Numbers, evenness, per_patch
from bltkit.tokens import ByteTokenizer
from bltkit.vocab import encode


def fixed_borders(num_bytes: int, count: int) -> Flags:
    """`count` borders as far apart as they go: every num_bytes / count bytes, rounded down."""
    found = np.zeros(num_bytes, np.bool_)
    found[np.arange(count) * num_bytes // count] = True
    return found


def random_borders(num_bytes: int, count: int, seed: int) -> Flags:
    """`count` borders, each set of places equally likely."""
    found = np.zeros(num_bytes, np.bool_)
    found[0] = True
    found[1 + np.random.default_rng(seed).choice(num_bytes - 1, count - 1, replace=False)] = True
    return found


def highest_borders(entropies: Numbers, count: int) -> Flags:
    """`count` borders where entropies are highest: what a threshold gives. Of equal ones the first."""
    found = np.zeros(len(entropies), np.bool_)
    found[0] = True
    found[1 + np.argsort(-entropies[1:], kind="stable")[: count - 1]] = True
    return found


def word_borders(data: bytes) -> Flags:
    """Of the paper's space patching (`SpaceRule`), over the whole text as one document."""
    return patch(SpaceRule(), encode(data)[None]).starts[0, 1:-1].numpy().copy()


def token_borders(data: bytes, tokenizer: ByteTokenizer) -> Flags:
    """Where tokens begin."""
    found = np.zeros(len(data), np.bool_)
    sizes = [len(tokenizer.pieces[token]) for token in tokenizer.encode(data)]
    found[np.cumsum([0, *sizes[:-1]])] = True
    return found


def behind_spaces(borders: Flags, data: bytes) -> Flags:
    """Borders in front of a single space moved behind it: tokens begin with the space that words leave to the patch
    before, and entropy, like words, has its border at the letter."""
    found = borders.copy()
    spaces = np.frombuffer(data, np.uint8) == ord(" ")
    moved = np.flatnonzero(borders & spaces)
    moved = moved[(moved > 0) & (moved + 1 < len(data))]
    found[moved] = False
    found[moved + 1] = True
    return found


@dataclass(frozen=True)
class Agreement:
    """How many borders of one set are in another. The first byte, which is in every set, does not count.

    precision: share of the first set's borders that are in the second. recall: of the second's that are in the first.
    f1: their harmonic mean. chance: the F1 that random borders as many as the first set's have on average, about.
    None where there is nothing to divide by.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    chance: float | None


def agreement(found: Flags, wanted: Flags) -> Agreement:
    """Of the borders `found` with those `wanted`."""
    own, others = int(found[1:].sum()), int(wanted[1:].sum())
    both = int((found & wanted)[1:].sum())
    if not own or not others:
        return Agreement(None, None, None, None)
    # F1 is 2 both / (own + others), and of `own` random places own * others / n are expected among the others.
    by_chance = own * others / (len(found) - 1)
    return Agreement(both / own, both / others, 2 * both / (own + others), 2 * by_chance / (own + others))


def border_figures(borders: Flags, bits: Mapping[str, Numbers], found: Characters | None) -> dict[str, Any]:
    """What a border set makes of a text.

    bits: of each byte by each judge. found: the text's characters; None where it is no UTF-8.
    `judges` has of each: mean bits of a patch's first byte and of the others, the share of all bits that first bytes
    carry, and mean, coefficient of variation and Gini's coefficient of the bits in a patch.
    """
    count = int(borders.sum())
    wide = None if found is None else found.wide
    cut = None
    if found is not None and wide is not None and wide.any():
        cut = float((found.cut(borders) & wide).sum() / wide.sum())
    return {
        "borders": count,
        "bytes_per_patch": len(borders) / count,
        "cut_characters": cut,
        "judges": {name: _judged(borders, values) for name, values in bits.items()},
    }


def _judged(borders: Flags, bits: Numbers) -> dict[str, float | None]:
    total = float(bits.sum())
    even = asdict(evenness(per_patch(bits, borders)))
    return {
        "first": float(bits[borders].mean()),
        "inside": float(bits[~borders].mean()) if not borders.all() else None,
        "first_share": float(bits[borders].sum()) / total if total > 0 else None,
        **{f"patch_{name}": value for name, value in even.items()},
    }


def mean_figures(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the same form, averaged: of random borders with several seeds."""
    found: dict[str, Any] = {}
    for name, value in several[0].items():
        values = [one[name] for one in several]
        if isinstance(value, Mapping):
            found[name] = mean_figures(values)
        else:
            found[name] = None if any(one is None for one in values) else type(value)(sum(values) / len(values))
    return found
