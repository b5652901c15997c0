"""Borders of patches at the same rate as the model's own, and what each set of borders makes of a text's information.

A border set says of every byte whether it opens a patch; the first always does. Whether entropy puts borders in good
places shows only beside sets of as many borders: fixed and random ones for its own rate, and, since words and tokens
have rates of their own, the highest entropies in just that number beside those.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bltkit.patching import SpaceRule, patch
from bltkit.study.entropy_quality.characters import Characters, Flags, Integers, Numbers, quotient
from bltkit.tokens import ByteTokenizer
from bltkit.vocab import encode


def borders_at(num_bytes: int, places: Integers) -> Flags:
    """Borders at some places, and at the first byte."""
    borders = np.zeros(num_bytes, np.bool_)
    borders[0] = True
    borders[places] = True
    return borders


def fixed_borders(num_bytes: int, count: int) -> Flags:
    """`count` borders as far apart as possible: every num_bytes / count bytes, rounded down."""
    return borders_at(num_bytes, np.arange(count) * num_bytes // count)


def random_borders(num_bytes: int, count: int, seed: int) -> Flags:
    """`count` borders, each set of places equally likely."""
    return borders_at(num_bytes, 1 + np.random.default_rng(seed).choice(num_bytes - 1, count - 1, replace=False))


def highest_borders(entropies: Numbers, count: int) -> Flags:
    """`count` borders at the highest entropies, as a threshold places them. Of equal ones the first."""
    return borders_at(len(entropies), 1 + np.argsort(-entropies[1:], kind="stable")[: count - 1])


def word_borders(data: bytes) -> Flags:
    """Borders of the paper's space patching (`SpaceRule`), over the whole text as one document."""
    return patch(SpaceRule(), encode(data)[None]).starts[0, 1:-1].numpy().copy()


def token_borders(data: bytes, tokenizer: ByteTokenizer) -> Flags:
    """Borders at which tokens begin."""
    sizes = [len(tokenizer.pieces[token]) for token in tokenizer.encode(data)]
    return borders_at(len(data), np.cumsum([0, *sizes[:-1]]))


def after_spaces(borders: Flags, data: bytes) -> Flags:
    """Borders before a single space moved to after it: tokens begin with the space that words leave to the patch
    before, and entropy, like words, has its border at the letter.
    """
    spaces = np.frombuffer(data, np.uint8) == ord(" ")
    moved = np.flatnonzero(borders & spaces)
    moved = moved[(moved > 0) & (moved + 1 < len(data))]
    result = borders.copy()
    result[moved] = False
    result[moved + 1] = True
    return result


def agreement(borders: Flags, wanted: Flags) -> dict[str, float | None]:
    """Agreement of `borders` with those `wanted`. The first byte, which is in every set, does not count.

    precision: share of `borders` that are wanted. recall: share of the wanted ones that are in `borders`. f1: their
    harmonic mean. chance: approximate mean F1 of as many random borders. None where there is nothing to divide by.
    """
    count, others = int(borders[1:].sum()), int(wanted[1:].sum())
    both = int((borders & wanted)[1:].sum())
    if not count or not others:
        return dict.fromkeys(("precision", "recall", "f1", "chance"))
    # F1 is 2 both / (count + others), and of `count` random places count * others / n are expected among the others.
    by_chance = count * others / (len(borders) - 1)
    return {
        "precision": both / count,
        "recall": both / others,
        "f1": 2 * both / (count + others),
        "chance": 2 * by_chance / (count + others),
    }


def border_figures(borders: Flags, bits: Mapping[str, Numbers], text: Characters | None) -> dict[str, Any]:
    """Figures of a border set in a text.

    bits: of each byte by each judge. text: the text's characters; None where it is no UTF-8.
    `judges` has of each: mean bits of a patch's first byte and of the others, the share of all bits that first bytes
    carry, and mean, coefficient of variation and Gini's coefficient of the bits in a patch.
    """
    count = int(borders.sum())
    return {
        "borders": count,
        "bytes_per_patch": len(borders) / count,
        "cut_characters": None if text is None else quotient((text.cut(borders) & text.wide).sum(), text.wide.sum()),
        "judges": {name: _judged(borders, values) for name, values in bits.items()},
    }


def evenness(amounts: Numbers) -> dict[str, float | None]:
    """Evenness of amounts that are not negative: mean, cv and gini.

    cv: coefficient of variation (standard deviation / mean). gini: Gini's coefficient. Both are 0 where all are the
    same; Gini's reaches 1 - 1/n where one has everything. None where there is nothing.
    """
    total = float(amounts.sum())
    if not len(amounts) or total <= 0:
        return dict.fromkeys(("mean", "cv", "gini"))
    places = 2 * np.arange(1, len(amounts) + 1) - len(amounts) - 1
    gini = float((places * np.sort(amounts)).sum() / (len(amounts) * total))
    mean = total / len(amounts)
    return {"mean": mean, "cv": float(amounts.std() / mean), "gini": gini}


def per_patch(amounts: Numbers, borders: Flags) -> Numbers:
    """Sum of the bytes' amounts in each patch. The first byte opens one."""
    assert len(amounts) == len(borders) and borders[0]
    return np.add.reduceat(amounts, np.flatnonzero(borders))


def mean_figures(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, number by number, of figures of the same form; None where one of them is None."""
    means: dict[str, Any] = {}
    for name, value in several[0].items():
        values = [figures[name] for figures in several]
        if isinstance(value, Mapping):
            means[name] = mean_figures(values)
        else:
            means[name] = None if None in values else type(value)(sum(values) / len(values))
    return means


def _judged(borders: Flags, bits: Numbers) -> dict[str, float | None]:
    return {
        "first": float(bits[borders].mean()),
        "inside": float(bits[~borders].mean()) if not borders.all() else None,
        "first_share": quotient(bits[borders].sum(), bits.sum()),
        **{f"patch_{name}": value for name, value in evenness(per_patch(bits, borders)).items()},
    }
