"""What a study is (seam 8): a frozen plan, the units that it measures, and a report of their rows.

`run_study` is the one loop around it: a row is on disk as soon as its unit is measured, so the same command resumes
after an interruption. `blt study NAME` gives every study the same options. The older studies of this folder have
commands and loops of their own.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bltkit.config import Config
from bltkit.files.lock import writer_lock

Row = dict[str, Any]
RESERVED = ("what", "unit", "plan")
"""Keys of every row: the study's name, the unit, and the plan as plain values."""


class Study(Config):
    """Base of a study; its fields are the plan, which `--plan F.toml` and `--set KEY=VALUE` fill."""

    @classmethod
    def example(cls) -> Self:
        """A plan of seconds, for the contract tests; by default the default plan."""
        return cls()

    @abstractmethod
    def units(self) -> Sequence[str]:
        """Names of what is measured, one row each, in order. A function of the plan alone."""

    @abstractmethod
    def run(self, unit: str) -> Mapping[str, Any]:
        """Measure one unit: plain JSON values by name."""

    @abstractmethod
    def report(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The result as Markdown text, of any rows that were measured under one plan, at least one."""

    def figures(self, rows: Sequence[Mapping[str, Any]], out: Path) -> Sequence[Path]:
        """Write pictures into `out` and return their paths; by default there are none."""
        return ()


def missing_units(study: Study, name: str, out: Path) -> list[str]:
    """The units that have no row in `out` yet, in order.

    Raises ValueError where a unit is named twice or `out` holds rows of this study under another plan.
    """
    from bltkit.study.row_file import RowFile  # imports torch, which a list of studies does not wait for

    units = list(study.units())
    if len(set(units)) < len(units):
        twice = next(unit for unit in units if units.count(unit) > 1)
        raise ValueError(f"study {name!r}: the unit {twice!r} is named twice; each needs its own name")
    rows = RowFile(out, name).read() if out.is_dir() else []
    plan = study.model_dump(mode="json")
    for row in rows:
        for field in row["plan"] | plan:
            then, now = row["plan"].get(field), plan.get(field)
            if then != now:
                raise ValueError(
                    f"{out} holds rows of study {name!r} with {field} = {then!r}, and the plan says {now!r}; "
                    "use a new --out, or restore the original plan"
                )
    return [unit for unit in units if unit not in {row["unit"] for row in rows}]


def run_study(
    study: Study,
    name: str,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Measure the units that `out` lacks; returns all rows of the study there, in the order of their measurement.

    circumstances: keys that every new row holds besides, such as commit and machine. Raises ValueError as
    `missing_units`, and for a row that is no JSON.
    """
    from bltkit.study.row_file import RowFile

    out.mkdir(parents=True, exist_ok=True)
    rows = RowFile(out, name)
    with writer_lock(out):
        missing, total = missing_units(study, name, out), len(study.units())
        for number, unit in enumerate(missing, total - len(missing)):
            progress(number, total)
            values = dict(study.run(unit))
            taken = [key for key in (*RESERVED, *circumstances) if key in values]
            if taken:
                raise ValueError(f"study {name!r}, unit {unit!r}: the key {taken[0]!r} is the row's own; rename it")
            plan = study.model_dump(mode="json")
            try:
                rows.add({"what": name, "unit": unit, "plan": plan, **values, **circumstances})
            except (TypeError, ValueError) as error:
                raise ValueError(f"study {name!r}, unit {unit!r}: its row is no JSON ({error})") from None
        progress(total, total)
    return rows.read()
