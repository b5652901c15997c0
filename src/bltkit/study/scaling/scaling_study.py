"""The study `scaling`: a unit is the decay branch of a trunk for one budget, or a round of measuring rates."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bltkit.config import parse
from bltkit.study.scaling.plan_presets import PLANS, SMOKE
from bltkit.study.scaling.scaling_plan import ScalingPlan, Trunk, entropy_patches
from bltkit.study.study import Row, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.study.report import Section
    from bltkit.study.scaling.plan_cost import PlanCost
    from bltkit.views.figures import Figure


def _preset(name: str) -> dict[str, Any]:
    return PLANS[name] | {"name": name}


class ScalingStudy(ScalingPlan):
    """Bits per byte over sizes and training FLOPs, of patches by several rules and of BPE tokens.

    A budget is met by the exact count of forward and backward operations. `--only` takes FAMILY:SIZE:SEED, of which
    each may be *, such as 'bpe-4096:s:*'.
    """

    what: ClassVar[str] = "scaling"
    title: ClassVar[str] = "Scaling"
    presets: ClassVar[Mapping[str, Callable[[], Mapping[str, Any]]]] = {name: partial(_preset, name) for name in PLANS}
    default_plan: ClassVar[str] = "cpu"
    option_fields: ClassVar[Collection[str] | None] = ("sources", "rates", "assumed_rate", "threads", "device")

    @classmethod
    def smoke(cls) -> Self:
        study: Self = parse(cls, SMOKE, "smoke")
        return study

    def units(self) -> Sequence[Unit]:
        return [unit for unit, *_ in self._parts.values()]

    @cached_property
    def _parts(self) -> dict[str, tuple[Unit, Trunk, float]]:
        """Unit, trunk, and budget or round, by the unit's name."""
        parts = {}
        if self.rates:
            models = [trunk for trunk in self.trunks() if trunk.seed == 0]
            for turn in range(1, self.rounds + 1):
                for trunk in models:
                    name = f"{trunk.key}:round {turn}"
                    parts[name] = Unit(name, lock="rates"), trunk, float(turn)
            return parts
        for trunk in self.trunks():
            settings = {"basis": self.basis(trunk)}
            for budget in self.budgets:
                name = _unit_name(trunk.key, budget)
                parts[name] = Unit(name, f"runs/{trunk.directory}/", settings), trunk, budget
        return parts

    def unit_of(self, row: Row) -> str:
        model = f"{row['family']}:{row['size']}"
        if "seconds_per_byte" in row:
            return f"{model}:0:round {len(row['all'])}"
        return _unit_name(f"{model}:{row['seed']}", row["budget"])

    def prepare(self, run: StudyRun) -> None:
        if self.assumed_rate is not None:
            raise ValueError("--rate is for --dry-run: a run takes the time that it takes")
        if self.processes > 1:
            raise ValueError(
                f"plan {self.name!r} trains on {self.processes} processes, which the study does not start: "
                "--dry-run tells its cost; say --set processes=1 to run it on one"
            )

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        from bltkit.study.scaling.entropy_thresholds import prepare
        from bltkit.study.scaling.scaling_runs import TrunkRun

        trunk, budget = self._parts[unit.name][1:]
        patches = entropy_patches(self._parts[other.name][1] for other in run.units)
        needed = patches if trunk.family.needs_scorer else []
        trainings = TrunkRun(self, trunk, prepare(self, needed, run), run)
        if self.rates:
            rounds = [row["all"] for row in run.rows() if self.unit_of(row) == f"{trunk.key}:round {budget - 1:g}"]
            yield trainings.rate_row(rounds[-1] if rounds else [])
            return
        yield trainings.row(budget)
        done = {self.unit_of(row) for row in run.rows()}
        trainings.tidy(budget, last=done.issuperset(_unit_name(trunk.key, budget) for budget in self.budgets))

    def estimate(self, units: Sequence[Unit]) -> "PlanCost":
        from bltkit.study.scaling.plan_cost import cost_of

        trunks = dict.fromkeys(self._parts[unit.name][1] for unit in units)
        return cost_of(self, tuple(trunks), None if self.assumed_rate is None else self.assumed_rate * 1e9)

    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        from bltkit.study.scaling.scaling_tables import sections

        return list(sections(frame))

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        from bltkit.study.scaling.scaling_figures import figures

        return figures(frame)

    def facts(self, frame: "pd.DataFrame") -> Mapping[str, Any]:
        from bltkit.study.scaling.scaling_analysis import points_of

        points = points_of(frame)
        last = points.iloc[-1]
        facts = {"plan": last["plan"], "rows": len(points), "threads": last["threads"], "precision": last["precision"]}
        return facts | dict(super().facts(points))


def _unit_name(trunk: str, budget: float) -> str:
    return f"{trunk}:{budget:.6g}".replace("e+", "e")
