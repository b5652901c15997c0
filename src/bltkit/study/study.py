"""Contract of a study: a frozen plan, its units, how one unit is measured, and what the rows say.

A study subclasses `Study` and is registered by one line in `STUDIES` (cli/study.py). `driver.run_study` is the loop
around it, `store.ResultStore` keeps its rows, `report.write_report` lays out its sections and figures, and
`blt study NAME` makes options of its fields. This module imports neither torch nor the extra `study`, and a study's
class should import them inside its methods: `blt study --help` imports every class.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from bltkit.config import Config

if TYPE_CHECKING:
    import pandas as pd

    from bltkit.study.report import Section
    from bltkit.train import Result
    from bltkit.views.figures import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """A part of a study that is measured in one go.

    name: unique in the plan; `--only` takes patterns of it. lock: units that share one are measured by one process at a
    time, others side by side; "" stands for the whole directory. settings: values that the stored rows of this unit
    must have; a dotted key reads a nested value.
    """

    name: str
    lock: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


class TimeLimit(Exception):
    """The time limit is reached; stored rows and saved trainings stay."""


def _train(*arguments: Any, **options: Any) -> "Result":
    from bltkit.train import train

    return train(*arguments, **options)


@dataclass(frozen=True)
class StudyRun:
    """What the driver hands to a study.

    units: those that `--only` selects. rows: all stored rows of the study, kept current. stamp: commit, machine,
    command and threads, which the driver adds to each row. progress: takes the share of the unit that is done.
    deadline: reading of `clock` after which nothing further begins. train: `bltkit.train.train`, in tests something
    quick.
    """

    out: Path
    units: Sequence[Unit]
    rows: Callable[[], Sequence[Row]]
    stamp: Mapping[str, Any]
    say: Callable[[str], None] = lambda line: None
    progress: Callable[[float], None] = lambda share: None
    clock: Callable[[], float] = time.monotonic
    deadline: float = math.inf
    train: "Callable[..., Result]" = _train

    def check_time(self) -> None:
        """Raise TimeLimit after the deadline, which ends the study; the driver checks before each unit."""
        if self.clock() >= self.deadline:
            raise TimeLimit


class CostEstimate(Protocol):
    """Cost of a study before it runs, which `--dry-run` shows."""

    def summary(self) -> str:
        """For people."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """Plain values."""
        ...


class Study(Config):
    """Base of a study. Its fields are the plan, and the options of `blt study NAME`.

    A field's description is the option's help. `json_schema_extra` may hold
        option    name of the option, where it is not the field's
        aliases   further names of the option
        metavar   form of the value in help and messages, such as NAME=MODEL
        positional  True: an argument without a name
        report    True: may stand beside --report, since sections or figures depend on it
        lists     rules, strategies, tasks or noises: the value `list` prints them
    Fields of type dict[str, str] read NAME=SOURCE, tuples are repeatable, and fields of other types have no option.
    """

    what: ClassVar[str]
    """Value of the key `what` in the rows."""
    title: ClassVar[str] = ""
    """Heading of the report; by default `what`."""
    presets: ClassVar[Mapping[str, Callable[[], Mapping[str, Any]]]] = {}
    """Named plans beside `smoke`: functions that return the plan's fields."""
    default_plan: ClassVar[str] = ""
    """Preset without --plan; "" stands for the fields' defaults."""
    option_fields: ClassVar[Collection[str] | None] = None
    """Fields that have options; None stands for all."""
    default_out: ClassVar[str] = ""
    """Directory without --out; "" makes --out required."""

    @classmethod
    def smoke(cls) -> Self:
        """A plan of less than three minutes that needs nothing beside an install; by default the default plan."""
        return cls()

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """Units in the order of measurement, a function of the plan alone. Raises ValueError for a bad plan."""

    def prepare(self, run: StudyRun) -> None:
        """Check and load what the units need, before any of them. Raises ValueError; nothing is written by then."""

    def unit_of(self, row: Row) -> str:
        """Name of the unit that a stored row belongs to.

        By default the row's key `unit`; then each row also holds the plan, and a directory holds rows of one plan.
        """
        return str(row["unit"])

    def is_done(self, unit: Unit, rows: Sequence[Row]) -> bool:
        """Is a unit measured. rows: the stored rows of this unit; by default one row is enough."""
        return bool(rows)

    @abstractmethod
    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        """Measure one unit: rows of plain JSON values without `what` and stamp, each stored when it is yielded.

        A row's own key replaces the stamp's of that name.
        """

    def estimate(self, units: Sequence[Unit]) -> CostEstimate | None:
        """Cost of units for --dry-run; by default None, and --dry-run lists the units."""
        return None

    @abstractmethod
    def sections(self, frame: "pd.DataFrame") -> "Sequence[Section]":
        """Sections of the report, from rows alone.

        frame: the stored rows, at least one. Where rows hold no plan, `self` has default fields and those that stand
        beside --report.
        """

    def figures(self, frame: "pd.DataFrame") -> "Mapping[str, Figure]":
        """Figures of the report by their files' stems; by default none."""
        return {}

    def summary(self, frame: "pd.DataFrame") -> Mapping[str, Any]:
        """Further keys of --json, such as fits; by default none."""
        return {}

    def facts(self, frame: "pd.DataFrame") -> Mapping[str, Any]:
        """Provenance on the page: by default commit and command of the last row."""
        last = frame.iloc[-1]
        return {key: last[key] for key in ("commit", "command") if isinstance(last.get(key), str)}
