"""Is an entropy as large as the surprise that follows, and is what patches carry even: figures of plain arrays.

Everything is in bits. Calibration here is that of a predicted *uncertainty*: among bytes whose predictions have an
entropy of 2 bits, a calibrated model is surprised by 2 bits on average, whichever bytes come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bin:
    """Bytes whose entropies are neighbours."""

    count: int
    entropy: float
    """Their mean."""
    surprisals: Mapping[str, float]
    """Mean of each model's -log2 p, by the model's name."""


@dataclass(frozen=True)
class EntropyCalibration:
    """Entropies against the same model's surprisals.

    error: mean over bytes of |mean surprisal - mean entropy| of their bin (the expected calibration error).
    noise: what `error` would come to, about, by chance alone in a calibrated model: with few bytes it is not 0.
    gap: mean surprisal - mean entropy; above 0 the model is surer than it should be.
    slope: of the least-squares line of surprisal over entropy, 1 for a calibrated model; None where entropies are all
        the same.
    """

    error: float
    noise: float
    gap: float
    slope: float | None
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        bins = [{"n": one.count, "entropy": one.entropy, "surprisal": dict(one.surprisals)} for one in self.bins]
        return {"ece": self.error, "ece_noise": self.noise, "gap": self.gap, "slope": self.slope, "bins": bins}


@dataclass(frozen=True)
class Evenness:
    """How alike some amounts are: coefficient of variation (standard deviation / mean) and Gini's coefficient.

    Both are 0 where all are the same; Gini's reaches 1 - 1/n where one has everything. None where there is nothing.
    """

    mean: float | None
    cv: float | None
    gini: float | None


def calibration(entropies: Numbers, surprisals: Mapping[str, Numbers], own: str, bins: int) -> EntropyCalibration:
    """In up to `bins` bins of about as many bytes each; bytes of the same entropy stay together.

    surprisals: of each model, by name; `own` is the one that the entropies belong to.
    """
    assert len(entropies) > 0 and bins > 0
    edges = np.unique(np.quantile(entropies, np.linspace(0, 1, bins + 1)[1:-1]))
    number = np.unique(np.searchsorted(edges, entropies, side="left"), return_inverse=True)[1]
    count = np.bincount(number)
    expected = np.bincount(number, entropies) / count
    means = {name: np.bincount(number, values) / count for name, values in surprisals.items()}
    found = surprisals[own]
    spread = np.bincount(number, (found - entropies - (means[own] - expected)[number]) ** 2) / count
    away = entropies - entropies.mean()
    varies = float((away**2).sum())
    return EntropyCalibration(
        error=float((count * np.abs(means[own] - expected)).sum() / count.sum()),
        # Mean of |x| for a normal x with the standard error of a bin's mean.
        noise=float((count * np.sqrt(2 / np.pi * spread / count)).sum() / count.sum()),
        gap=float(found.mean() - entropies.mean()),
        slope=float((away * found).sum() / varies) if varies > 1e-12 * len(away) else None,
        bins=tuple(
            Bin(int(count[at]), float(expected[at]), {name: float(mean[at]) for name, mean in means.items()})
            for at in range(len(count))
        ),
    )


def evenness(amounts: Numbers) -> Evenness:
    """Of amounts that are not negative."""
    total = float(amounts.sum())
    if not len(amounts) or total <= 0:
        return Evenness(None, None, None)
    mean = total / len(amounts)
    places = 2 * np.arange(1, len(amounts) + 1) - len(amounts) - 1
    gini = float((places * np.sort(amounts)).sum() / (len(amounts) * total))
    return Evenness(mean, float(amounts.std() / mean), gini)


def per_patch(amounts: Numbers, borders: Flags) -> Numbers:
    """Sum of the bytes' amounts in each patch. The first byte opens one."""
    assert len(amounts) == len(borders) and borders[0]
    return np.add.reduceat(amounts, np.flatnonzero(borders))
