"""The study `efficiency`: prefill, decoding and training of patches of several sizes and of tokens, timed in turn.

A group is one preset, phase and context: all systems take their turn in every round, and so does the machine itself,
whose rates are what a prediction is made of. A group's rows are kept once it is over, and not measured again.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from bltkit.bench import MachineRates, RepeatLimits, Timing, machine_rates
from bltkit.bench.timing import Progress, Side, in_turn, silent
from bltkit.config import Config
from bltkit.files.json_lines import append_lines, read_lines
from bltkit.model import blt_preset, entropy_preset
from bltkit.study.efficiency.predicted_cost import ELEMENT, PHASES, ByteCost, Phase, System, systems_of
from bltkit.study.efficiency.systems import Runner, learner_of, scorer_of
from bltkit.study.row_file import ROWS

MACHINE = "machine"
"""The side that measures the machine's rates."""

Row = dict[str, Any]


class EfficiencyPlan(Config):
    """What is measured."""

    presets: tuple[str, ...] = Field(default=("69m",), min_length=1)
    """Shapes of the BLT; each has a token model of its own size."""
    patch_bytes: tuple[PositiveFloat, ...] = Field(default=(4.0, 6.0, 8.0), min_length=1)
    entropy: str | None = None
    """Shape of an entropy model: every patch size is measured once more with it at work."""
    vocab_size: PositiveInt = 32_000
    bytes_per_token: PositiveFloat = 4.4
    contexts: tuple[PositiveInt, ...] = Field(default=(512, 2048), min_length=1)
    """Bytes of a row, and in front of what is decoded."""
    phases: tuple[Phase, ...] = Field(default=PHASES, min_length=1)
    num_bytes: PositiveInt = 48
    """Decoded in a run: a multiple of the patch sizes, so that whole patches close."""
    repeats: PositiveInt = 5
    """Rounds."""


def measured_in_turn(
    sides: Sequence[Side], limits: RepeatLimits, device: torch.device, progress: Progress = silent
) -> list[Timing]:
    """One run of every side that is not timed, since first runs are slow; then rounds in an order that rotates.

    Whoever follows a side that reads much memory finds the caches empty: that falls on each of them in turn.
    """
    for side in sides:
        if side.prepare is not None:
            side.prepare()
        side.run()
    once = RepeatLimits(repeats=1, seconds=limits.seconds / limits.repeats)
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(limits.repeats):
        order = [(turn + at) % len(sides) for at in range(len(sides))]
        for at, timing in zip(order, in_turn([sides[at] for at in order], once, device, progress), strict=True):
            seconds[at] += timing.seconds
    return [Timing(side.bytes_per_run, tuple(own)) for side, own in zip(sides, seconds, strict=True)]


@dataclass(frozen=True)
class EfficiencyTools:
    """What has a clock in it."""

    measure: Callable[[Sequence[Side], RepeatLimits, torch.device, Progress], list[Timing]] = measured_in_turn
    rates: Callable[[torch.device], MachineRates] = machine_rates


@dataclass(frozen=True)
class _Group:
    """What is measured side by side."""

    preset: str
    phase: Phase
    context: int

    def keys(self, systems: Sequence[System]) -> set[tuple[Any, ...]]:
        """Of its rows."""
        return {(self.preset, self.phase, self.context, system.name) for system in systems}


def run(
    plan: EfficiencyPlan,
    out: Path,
    circumstances: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    tools: EfficiencyTools | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure what `out` does not hold yet; returns all of its rows.

    circumstances: threads, commit, machine, command. device: the CPU by default.
    Raises ValueError for an unknown preset, sizes that do not fit, and where `out` holds rows of another machine or
    number of threads.
    """
    device, tools = device or torch.device("cpu"), tools or EfficiencyTools()
    systems = {preset: _systems(plan, preset) for preset in plan.presets}
    rows = read_lines(out / ROWS)
    conditions = _conditions(plan, circumstances)
    _check(rows, conditions, out / ROWS)
    known = {key_of(row) for row in rows}
    groups = [
        group
        for preset in plan.presets
        # Training last: a learner's moments are held from then on.
        for phase in PHASES
        for context in plan.contexts
        if phase in plan.phases and not (group := _Group(preset, phase, context)).keys(systems[preset]) <= known
    ]
    out.mkdir(parents=True, exist_ok=True)
    total = sum(plan.repeats * (len(systems[group.preset]) + 1) for group in groups)
    done = 0

    def tick(line: str) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(done, total)
    held: tuple[str, list[Runner]] = ("", [])
    for group in groups:
        if held[0] != group.preset:
            held = ("", [])  # one preset's weights are given back before the next one's are made
            held = (group.preset, runners_of(systems[group.preset], device))
        found = [
            row | {"conditions": conditions, **circumstances}
            for row in measure_group(group, held[1], plan, device, tools, tick)
        ]
        append_lines(out / ROWS, found)
        for row in found:
            say(summary(row))
    return read_lines(out / ROWS)


def runners_of(systems: Sequence[System], device: torch.device) -> list[Runner]:
    """Systems with their weights; all BLTs of a preset have the same ones, and one optimizer."""
    learners = {system.shape: learner_of(system, device) for system in dict.fromkeys(systems)}
    scorers = {system.scorer: scorer_of(system, device) for system in systems}
    return [Runner(system, learners[system.shape], scorers[system.scorer]) for system in systems]


def measure_group(
    group: _Group,
    runners: Sequence[Runner],
    plan: EfficiencyPlan,
    device: torch.device,
    tools: EfficiencyTools,
    progress: Progress,
) -> list[Row]:
    """A row for each system, without circumstances."""
    made = [runner.side(group.phase, group.context, plan.num_bytes) for runner in runners]
    rates: list[MachineRates] = []
    machine = Side(MACHINE, 1.0, lambda: rates.append(tools.rates(device)))
    limits = RepeatLimits(repeats=plan.repeats, seconds=0.0)  # one run a round: a round's numbers belong together
    *timings, _ = tools.measure([*(side for side, _ in made), machine], limits, device, progress)
    median = _median_rates(rates)
    return [
        _row(group, runner.system, timing, cost, median)
        for runner, timing, (_, cost) in zip(runners, timings, made, strict=True)
    ]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of; of two with the same key the later one counts."""
    return row["preset"], row["phase"], row["context"], row["system"]


def summary(row: Mapping[str, Any]) -> str:
    """One line for people."""
    return (
        f"{row['phase']} {row['preset']} at {row['context']}, {row['system']}: {row['bytes_per_second']:,.1f} bytes/s, "
        f"{row['measured_to_predicted']:.2f} times the predicted time"
    )


def _row(group: _Group, system: System, timing: Timing, cost: ByteCost, rates: MachineRates) -> Row:
    per_byte = 1 / timing.bytes_per_second
    operations, reads, update = cost.seconds(rates)
    predicted = cost.predicted(rates)
    found = system.ledger(group.context)
    scorer = found.modules.get("entropy")
    return {
        "what": "efficiency",
        "preset": group.preset,
        "phase": group.phase,
        "context": group.context,
        "system": system.name,
        "kind": system.kind,
        "unit_bytes": system.unit_bytes,
        "shape": system.shape.model_dump(exclude_defaults=True),
        "params": found.params,
        "params_without_lookups": found.params_without_embeddings,
        "entropy_params": None if scorer is None else scorer.params,
        "bytes_per_run": timing.bytes_per_run,
        "seconds": list(timing.seconds),
        "seconds_per_byte": per_byte,
        "bytes_per_second": timing.bytes_per_second,
        "flops_per_byte": cost.flops,
        "read_bytes_per_byte": cost.read_bytes,
        "update_bytes_per_byte": cost.update_bytes,
        "rates": {
            "matmul_gflops": rates.matmul_gflops,
            "product_gb_per_second": rates.product_gb_per_second["fp32"],
            "copy_gb_per_second": rates.copy_gb_per_second,
        },
        "predicted": {"operations": operations, "reads": reads, "update": update, "seconds_per_byte": predicted},
        "bound": "operations" if operations >= reads else "reads",
        "measured_to_predicted": per_byte / predicted,
        "share_of_operations": operations / per_byte,
    }


def _median_rates(found: Sequence[MachineRates]) -> MachineRates:
    return MachineRates(
        copy_gb_per_second=statistics.median(one.copy_gb_per_second for one in found),
        product_gb_per_second={"fp32": statistics.median(one.product_gb_per_second["fp32"] for one in found)},
        matmul_gflops=statistics.median(one.matmul_gflops for one in found),
    )


def _systems(plan: EfficiencyPlan, preset: str) -> tuple[System, ...]:
    sizes = tuple(dict.fromkeys(plan.patch_bytes))
    shape = blt_preset(preset)
    fault = next((size for size in sizes if not 1 <= size <= plan.num_bytes), None)
    if fault is not None:
        raise ValueError(
            f"patch_bytes = {fault:g} must lie between 1 and num_bytes = {plan.num_bytes}, so that patches close"
        )
    if not 1 <= plan.bytes_per_token <= min(plan.contexts):
        raise ValueError(f"bytes_per_token = {plan.bytes_per_token:g} must lie between 1 and the shortest context")
    if min(plan.contexts) < max(sizes):
        raise ValueError(f"contexts: {min(plan.contexts)} bytes hold no patch of {max(sizes):g}; give longer ones")
    scorer = None if plan.entropy is None else entropy_preset(plan.entropy)
    return systems_of(shape, sizes, plan.vocab_size, plan.bytes_per_token, scorer, plan.entropy or "")


def _conditions(plan: EfficiencyPlan, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all rows of a directory."""
    machine = circumstances["machine"]
    return {
        "num_bytes": plan.num_bytes,
        "threads": circumstances["threads"],
        "machine": machine.get("gpu", machine.get("cpu")),
        "element_bytes": ELEMENT,
    }


def _check(rows: Sequence[Row], conditions: Mapping[str, Any], path: Path) -> None:
    for row in rows:
        for field, value in conditions.items():
            if row["conditions"].get(field) != value:
                raise ValueError(
                    f"{path} has rows with {field} = {row['conditions'].get(field)}, now it is {value}; "
                    "choose another --out"
                )
