"""What the rows of the study `scaling` come to, as values and in sentences: tables and drawings are made of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bltkit.study.scaling.analysis import Crossover, SeedNoise, crossover, noise_of
from bltkit.study.scaling.fits import TooFew
from bltkit.study.scaling.rows import ScalingPoint, points_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Findings:
    """What rows come to; where there is too little for something, the reason stands in its place."""

    points: tuple[ScalingPoint, ...]
    families: tuple[str, ...]
    sizes: tuple[str, ...]
    budgets: tuple[float, ...]
    noise: SeedNoise | str
    crossovers: tuple[Crossover | str, ...]

    def place(self, size: str, family: str) -> tuple[int, int]:
        """In a table: by size, then by family; models that grew with their patch stand behind."""
        sizes, families = (*self.sizes, size), (*self.families, family)
        return sizes.index(size), families.index(family)


def findings(rows: Sequence[Row]) -> Findings:
    """Of rows. Raises ValueError where there are none."""
    points = points_of(rows)
    families = tuple(sorted({point.family for point in points if point.main})) or (points[0].family,)
    sizes = tuple(dict.fromkeys(one.size for one in sorted(points, key=lambda one: one.params) if one.main))
    noise: SeedNoise | str
    try:
        noise = noise_of(points)
    except TooFew as why:
        noise = str(why)
    found: list[Crossover | str] = []
    main = [point for point in points if point.main]
    for first, second in pairs(families):
        try:
            if isinstance(noise, SeedNoise):
                found.append(crossover(main, first, second, noise))
        except TooFew as why:
            found.append(str(why))
    budgets = tuple(sorted({point.budget for point in points}))
    return Findings(tuple(points), families, sizes, budgets, noise, tuple(dict.fromkeys(found)))


def pairs(families: Sequence[str]) -> list[tuple[str, str]]:
    """Who is held against whom: every family of patches against every one of tokens, and the first against the rest."""
    tokens = [name for name in families if name.startswith("bpe")]
    patched = [name for name in families if name not in tokens]
    found = [(one, other) for one in patched for other in tokens]
    return found + [(patched[0], other) for other in patched[1:]]


def paragraphs(rows: Sequence[Row], found: Findings) -> list[str]:
    """What holds, in sentences."""
    said = [
        "Budgets are training FLOPs by the exact count of useful operations, forward and backward, the entropy model's "
        "forward pass over every byte included where the plan says so. What is not counted: the entropy model's own "
        "training, that a tokenizer has read the training text, and what is computed for padding. Bits per byte are of "
        "held-out documents, the same rows for all. A run is a trunk at the full rate and a decay of its own for each "
        "budget."
    ]
    if isinstance(found.noise, SeedNoise):
        seen = f"{100 * found.noise.relative:.2f} % of bits per byte ({found.noise.freedom} degrees of freedom)"
        said.append(f"Seeds differ by {seen}, standard deviation. Intervals are of 95 % and know of no other noise.")
    else:
        said.append(f"No intervals: {found.noise}.")
    if training := next((row["flops_of_scorer_training"] for row in rows if row.get("flops_of_scorer_training")), None):
        said.append(
            f"The entropy model's own training took {in_flops(training)} FLOPs, once for all runs: "
            f"{100 * training / found.budgets[0]:.0f} % of the smallest budget, "
            f"{100 * training / found.budgets[-1]:.0f} % of the largest."
        )
    said += [
        one if isinstance(one, str) else f"{one.first} and {one.second}: {one.verdict()}." for one in found.crossovers
    ]
    return said


def base_family(found: Findings) -> str:
    """That the models grown with their patch are compared with: the shortest patches of the same rule."""
    rules = {point.family.rpartition("-")[0] for point in found.points if not point.main}
    own = [name for name in found.families if name.rpartition("-")[0] in rules]
    return min(own, key=lambda name: float(name.rpartition("-")[2]), default=found.families[0])


def in_flops(value: float) -> str:
    """Short."""
    return f"{value:.3g}".replace("e+", "e")
