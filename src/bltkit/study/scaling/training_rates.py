"""How long a byte of training takes for each model of a plan, measured in turn: what "the same seconds" is counted by.

Runs of a study take days, side by side, on a machine that others use; their clocks do not compare. Here every model
trains a few steps, one after another, several times over, and the median counts.
"""

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bltkit.study.row_file import RowFile
from bltkit.study.scaling.plan import ScalingPlan
from bltkit.study.scaling.prepare import prepare
from bltkit.study.scaling.rows import RATE, Row
from bltkit.study.scaling.runs import ScalingTools, unit_config
from bltkit.train.run_directory import RunDirectory

_STEPS = 24
_PLACE = "rates"


def measure_rates(
    plan: ScalingPlan,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    rounds: int = 5,
    tools: ScalingTools | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """A row for each family and size of a plan; of several the last one counts.

    only: units, see `ScalingPlan.chosen`; seeds make no difference. Raises ValueError for what does not fit, and
    KeyboardInterrupt after a signal.
    """
    tools = tools or ScalingTools()
    units = list({unit.name[:2]: unit for unit in reversed(plan.chosen(only))}.values())[::-1]
    out.mkdir(parents=True, exist_ok=True)
    prepared = prepare(plan, units, out, tools.train, say)
    found: dict[str, list[float]] = {unit.key: [] for unit in units}
    for turn in range(rounds):
        for number, unit in enumerate(units):
            progress(turn * len(units) + number, rounds * len(units))
            place = out / _PLACE / unit.directory
            shutil.rmtree(place, ignore_errors=True)
            config = unit_config(plan, unit, prepared, out, _STEPS)
            if tools.train(config, place, resume=True, say=lambda line: None).interrupted:
                raise KeyboardInterrupt
            checkpoint = RunDirectory(place).latest()
            assert checkpoint is not None
            found[unit.key].append(tools.seconds(checkpoint) / tools.seen_by(checkpoint).num_bytes)
    shutil.rmtree(out / _PLACE, ignore_errors=True)
    progress(rounds * len(units), rounds * len(units))
    rows = RowFile(out, RATE)
    for unit in units:
        family, size, _ = unit.name
        fields = {"what": RATE, "family": family, "size": size, "seconds_per_byte": statistics.median(found[unit.key])}
        rows.add(fields | {"all": found[unit.key], "steps": _STEPS, "threads": plan.threads, **circumstances})
    return rows.read()
