"""The loop around a study: resumption, locks, time limit, progress and the rows' stamp."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bltkit.files.lock import writer_lock
from bltkit.study.store import ResultStore, refuse_other_settings
from bltkit.study.study import Row, Study, StudyRun, TimeLimit, Unit

_TICKS = 1000
"""Progress counts thousandths of a unit."""


def run_study(
    study: Study,
    out: Path,
    stamp: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> ResultStore:
    """Measure the selected units that `out` lacks; returns the store of all rows of the study.

    stamp: keys of every new row, such as commit and machine. only: patterns of units. minutes: nothing further begins
    after them. options: further fields of StudyRun, such as `train`.

    Raises ValueError for a plan, a pattern or rows that do not fit, and where another process holds the directory.
    """
    if minutes is not None and not 0 <= minutes < math.inf:
        raise ValueError(f"minutes = {minutes}: must be 0 or more and finite; leave it out for no limit")
    units, store = selected_units(study, only), ResultStore(out, study.what)
    done, total = 0, len(units) * _TICKS

    def report_share(share: float) -> None:
        progress(done * _TICKS + min(_TICKS, int(share * _TICKS)), total)

    deadline = math.inf if minutes is None else clock() + 60 * minutes
    run = StudyRun(out, units, store.rows, stamp, say, report_share, clock, deadline, **options)
    with ExitStack() as held:
        if any(not unit.lock for unit in units):
            held.enter_context(writer_lock(out, say))
        _refuse_other_plans(study, store, units)
        study.prepare(run)
        for done, unit in enumerate(units):  # noqa: B007  report_share reads `done`
            report_share(0)
            try:
                if not study.is_done(unit, rows_of(study, store, unit)):
                    run.check_time()
                    with _claim(out, unit):
                        _measure(study, unit, run, store)
            except Timeout:
                say(f"{unit.name}: already running in another process; skipping")
            except TimeLimit:
                say(f"time limit reached; rerun the command to resume at {unit.name}")
                return store
    progress(total, total)
    return store


def selected_units(study: Study, only: Sequence[str] = ()) -> list[Unit]:
    """Units whose name, or its beginning up to a colon, matches one of the patterns; all without patterns.

    Raises ValueError for a name that two units have, and for a pattern that matches nothing.
    """
    units = list(study.units())
    names = [unit.name for unit in units]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"study {study.what!r}: the unit {twice!r} is named twice; each needs its own name")
    for pattern in only:
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"--only {pattern!r} matches no unit of study {study.what!r}; it has {', '.join(names)}")
    return [unit for unit in units if not only or any(_matches(unit.name, pattern) for pattern in only)]


def rows_of(study: Study, store: ResultStore, unit: Unit) -> list[Row]:
    """The stored rows of a unit."""
    return [row for row in store.rows() if study.unit_of(row) == unit.name]


def measured_units(study: Study, out: Path, units: Sequence[Unit]) -> set[str]:
    """Names of the units that `out` holds. Raises ValueError for rows of other settings."""
    store = ResultStore(out, study.what)
    _refuse_other_plans(study, store, units)
    return {unit.name for unit in units if study.is_done(unit, rows_of(study, store, unit))}


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}:*")


def _holds_plan(study: Study) -> bool:
    """Do the rows hold `unit` and `plan`, since the study does not say otherwise."""
    return type(study).unit_of is Study.unit_of


def _refuse_other_plans(study: Study, store: ResultStore, units: Sequence[Unit]) -> None:
    if _holds_plan(study):
        plan = study.model_dump(mode="json")
        for row in store.rows():
            fields = {f"plan.{name}": plan.get(name) for name in row["plan"] | plan}
            refuse_other_settings([row], fields, store.out, f"study {study.what!r}")
    for unit in units:
        refuse_other_settings(rows_of(study, store, unit) if unit.settings else (), unit.settings, store.out, unit.name)


@contextmanager
def _claim(out: Path, unit: Unit) -> Iterator[None]:
    """Hold a unit's own lock; the lock of the directory is held already. Raises Timeout where another process does."""
    if not unit.lock:
        yield
        return
    path = out / f"{unit.lock}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=0):
        yield


def _measure(study: Study, unit: Unit, run: StudyRun, store: ResultStore) -> None:
    if study.is_done(unit, rows_of(study, store, unit)):  # by another process in the meantime
        return
    for row in study.run(unit, run):
        try:
            store.add(_stamped(study, unit, row, run.stamp))
        except TypeError as error:
            raise ValueError(f"study {study.what!r}, unit {unit.name!r}: its row is no JSON ({error})") from None


def _stamped(study: Study, unit: Unit, row: Row, stamp: Mapping[str, Any]) -> Row:
    head: Row = {"what": study.what}
    if _holds_plan(study):
        taken = [key for key in ("what", "unit", "plan") if key in row]
        if taken:
            raise ValueError(
                f"study {study.what!r}, unit {unit.name!r}: the key {taken[0]!r} is the row's own; rename it"
            )
        head |= {"unit": unit.name, "plan": study.model_dump(mode="json")}
    return head | row | {key: value for key, value in stamp.items() if key not in row}
