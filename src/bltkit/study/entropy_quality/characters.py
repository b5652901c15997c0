"""Characters and scripts of a text, as far as it is UTF-8: those that borders cut, and patches by script.

Spaces, digits and signs have no script of their own and count with the letter before them, so that a script's patches
hold its words and the spaces between.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bltkit.eval.scripts import NONE, script

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Characters:
    """The characters of a text in order; a byte that is part of none stands alone.

    starts, sizes: offset and bytes of each. stray: is it such a byte. codes: the code points.
    """

    starts: Integers
    sizes: Integers
    stray: Flags
    codes: Integers

    @property
    def stray_share(self) -> float:
        """Share of the bytes that are part of no character."""
        return float(self.stray.sum() / self.sizes.sum())

    @property
    def wide(self) -> Flags:
        """Has the character several bytes."""
        return self.sizes > 1

    def cut(self, borders: Flags) -> Flags:
        """For each character: does a patch begin inside it."""
        before = np.concatenate([[0], np.cumsum(borders)])
        return before[self.starts + self.sizes] - before[self.starts + 1] > 0


def characters(data: bytes) -> Characters:
    """Characters of any bytes."""
    text = data.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    stray = (codes >= 0xDC80) & (codes <= 0xDCFF)
    sizes = np.where(stray, 1, 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
    return Characters(np.cumsum(sizes) - sizes, sizes, stray, codes)


def scripts(text: Characters) -> tuple[str, ...]:
    """Script of each character; without one of its own, that of the last character before it that has one, else of the
    first character that has one.
    """
    names = [None if stray else script(chr(code)) for code, stray in zip(text.codes, text.stray, strict=True)]
    current = next((name for name in names if name is not None), NONE)
    return tuple(current := name or current for name in names)


def by_script(text: Characters, borders: Flags, bits: Mapping[str, Numbers], least: int) -> dict[str, dict[str, Any]]:
    """Figures of the patches in each script with at least `least` bytes in the text, the largest first.

    bits: of each byte by each judge. Each entry: `bytes`, `characters`, `borders` (patches that open in the script),
    `bytes_per_patch`, `characters_per_patch`, `bits_per_patch` by judge, `cut_share` of its characters of several
    bytes; None where there is nothing to divide by.
    """
    import pandas as pd

    names = np.array(scripts(text))
    by_byte = pd.DataFrame({"borders": borders, **bits}).groupby(np.repeat(names, text.sizes)).sum()
    columns = {"bytes": text.sizes, "characters": 1, "wide": text.wide, "cut": text.wide & text.cut(borders)}
    sums = pd.DataFrame(columns).groupby(names).sum().join(by_byte)
    sums = sums[sums["bytes"] >= least].sort_values("bytes", ascending=False, kind="stable")
    return {
        str(name): {
            "bytes": int(row["bytes"]),
            "characters": int(row["characters"]),
            "borders": int(row["borders"]),
            "bytes_per_patch": quotient(row["bytes"], row["borders"]),
            "characters_per_patch": quotient(row["characters"], row["borders"]),
            "bits_per_patch": {judge: quotient(row[judge], row["borders"]) for judge in bits},
            "cut_share": quotient(row["cut"], row["wide"]),
        }
        for name, row in sums.iterrows()
    }


def quotient(above: float, below: float) -> float | None:
    """above / below; None where `below` is 0."""
    return float(above / below) if below else None
