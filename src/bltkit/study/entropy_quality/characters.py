"""Characters and scripts of a text, as far as it is UTF-8: what borders cut, and how much of each script is in a patch.

Spaces, digits and signs have no script of their own and count with the letter before them, so that a script's patches
hold its words and the spaces between.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bltkit.eval.scripts import NONE, script
from bltkit.study.entropy_quality.entropy_metrics import Flags, Numbers

Integers = npt.NDArray[np.int64]


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
        """Of the bytes."""
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
    """Of any bytes."""
    text = data.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    stray = (codes >= 0xDC80) & (codes <= 0xDCFF)
    sizes = np.where(stray, 1, 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
    return Characters(np.cumsum(sizes) - sizes, sizes, stray, codes)


def scripts(found: Characters) -> tuple[str, ...]:
    """Of each character: its own, else that of the last one before that has any, else of the first that has."""
    own = [None if stray else script(chr(code)) for code, stray in zip(found.codes, found.stray, strict=True)]
    current = next((name for name in own if name is not None), NONE)
    names = []
    for name in own:
        current = name or current
        names.append(current)
    return tuple(names)


def by_script(found: Characters, borders: Flags, bits: Mapping[str, Numbers], least: int) -> dict[str, dict[str, Any]]:
    """What patches make of each script with at least `least` bytes in the text, the largest first.

    bits: of each byte by each judge. Each entry: `bytes`, `characters`, `borders` (patches that open in the script),
    `bytes_per_patch`, `characters_per_patch`, `bits_per_patch` by judge, `cut_share` of its characters of several
    bytes; None where there is nothing to divide by.
    """
    return dict(sorted(_by_script(found, borders, bits, least), key=lambda item: -int(item[1]["bytes"])))


def _by_script(
    found: Characters, borders: Flags, bits: Mapping[str, Numbers], least: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    names = np.array(scripts(found))
    of_byte = np.repeat(names, found.sizes)
    cut = found.cut(borders)
    for name in np.unique(names):
        own, own_bytes = names == name, of_byte == name
        size, opened = int(own_bytes.sum()), int((own_bytes & borders).sum())
        if size < least:
            continue
        wide = own & found.wide
        yield (
            str(name),
            {
                "bytes": size,
                "characters": int(own.sum()),
                "borders": opened,
                "bytes_per_patch": _quotient(size, opened),
                "characters_per_patch": _quotient(int(own.sum()), opened),
                "bits_per_patch": {
                    judge: _quotient(float(values[own_bytes].sum()), opened) for judge, values in bits.items()
                },
                "cut_share": _quotient(int((wide & cut).sum()), int(wide.sum())),
            },
        )


def _quotient(above: float, below: float) -> float | None:
    return above / below if below else None
