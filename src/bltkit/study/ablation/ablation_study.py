"""The study `ablation`: small trainings that differ in one thing, at an equal rate of patches and with the same seeds.

A unit is one training of a variant: a seed and, where the ablation tries several learning rates with the first seed,
one of these. A training that was interrupted resumes from its checkpoint, in a directory named after its config, so
that nothing resumes from something else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from bltkit.study.ablation.ablation_plan import AblationPlan, best_rate
from bltkit.study.study import Row, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.study.ablation.trainings import AblationTrainings
    from bltkit.study.report import Section
    from bltkit.views.figures import Figure


class AblationStudy(AblationPlan):
    """Small trainings that differ in one thing, at an equal rate of patches and with the same seeds."""

    _trainings: "AblationTrainings | None" = PrivateAttr(None)

    def prepare(self, run: StudyRun) -> None:
        from bltkit.study.ablation.trainings import AblationTrainings

        self._trainings = AblationTrainings(self, run)
        self._trainings.check()

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        assert self._trainings is not None, "prepare comes first"
        variant, seed, rate = self.trainings()[unit.name]
        if rate is None:
            first = [row for row in run.rows() if self.unit_of(row).startswith(f"{variant.name}:seed 0:")]
            if len(first) < len(self.ablation.rates):
                run.say(f"{unit.name}: its learning rates are not all tried yet; skipping")
                return
            rate = best_rate(first)
        yield from self._trainings.rows(variant, seed, rate)

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        from bltkit.study.ablation.ablation_tables import section

        return [section(rows) for _, rows in self._by_ablation(frame)]

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        from bltkit.study.ablation.ablation_tables import figure

        return {name: figure(rows) for name, rows in self._by_ablation(frame)}

    def _by_ablation(self, frame: "pd.DataFrame") -> "list[tuple[str, pd.DataFrame]]":
        """Rows by ablation, in the order of measurement; of the named one alone where there is a name."""
        groups = [(str(name), rows) for name, rows in frame.groupby("ablation", sort=False)]
        return [(name, rows) for name, rows in groups if self.name in ("", name)]
