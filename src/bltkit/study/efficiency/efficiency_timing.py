"""Rows of the study `efficiency`: all systems of a group and the machine's own rates, timed in turn."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bltkit.bench import MachineRates, RepeatLimits, Timing, machine_rates
from bltkit.bench.timing import Progress, Side, in_turn, silent
from bltkit.study.efficiency.phases import Phase
from bltkit.study.efficiency.predicted_cost import ByteCost, System
from bltkit.study.efficiency.systems import Runner
from bltkit.study.study import Row

MACHINE = "machine"
"""Name of the side that measures the machine's rates."""


def timed_rows(
    runners: Sequence[Runner],
    phase: Phase,
    context: int,
    num_bytes: int,
    repeats: int,
    progress: Callable[[float], None],
) -> list[Row]:
    """A row for each system, without preset and circumstances. progress: is told the share that is done."""
    device = runners[0].learner.device
    timed = [runner.side(phase, context, num_bytes) for runner in runners]
    rates: list[MachineRates] = []
    machine = Side(MACHINE, 1.0, lambda: rates.append(machine_rates(device)))
    done = 0

    def tick(line: str) -> None:
        nonlocal done
        done += 1
        progress(done / (repeats * (len(runners) + 1)))

    # One run a round: a round's numbers belong together.
    limits = RepeatLimits(repeats=repeats, seconds=0.0)
    *timings, _ = measured_in_turn([*(side for side, _ in timed), machine], limits, device, tick)
    median = MachineRates(
        copy_gb_per_second=statistics.median(rate.copy_gb_per_second for rate in rates),
        product_gb_per_second={"fp32": statistics.median(rate.product_gb_per_second["fp32"] for rate in rates)},
        matmul_gflops=statistics.median(rate.matmul_gflops for rate in rates),
    )
    return [
        {"phase": phase, "context": context, **_row(runner.system, context, timing, cost, median)}
        for runner, timing, (_, cost) in zip(runners, timings, timed, strict=True)
    ]


def measured_in_turn(
    sides: Sequence[Side], limits: RepeatLimits, device: torch.device, progress: Progress = silent
) -> list[Timing]:
    """Run every side once without timing it, since first runs are slow; then time rounds in an order that rotates.

    The side after one that reads much memory finds the caches empty: that falls on each of them in turn.
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
    return [Timing(side.bytes_per_run, tuple(times)) for side, times in zip(sides, seconds, strict=True)]


def _row(system: System, context: int, timing: Timing, cost: ByteCost, rates: MachineRates) -> dict[str, Any]:
    per_byte = 1 / timing.bytes_per_second
    operations, reads, update = cost.seconds(rates)
    predicted = cost.predicted(rates)
    ledger = system.ledger(context)
    scorer = ledger.modules.get("entropy")
    return {
        "system": system.name,
        "kind": system.kind,
        "unit_bytes": system.unit_bytes,
        "shape": system.shape.model_dump(exclude_defaults=True),
        "params": ledger.params,
        "params_without_lookups": ledger.params_without_embeddings,
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
