"""A plan for a large run: what is asked, what is answered, and the answer as a table. `planner.py` works it out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bltkit.model import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig


@dataclass(frozen=True)
class PlannedRun:
    """What of a training config a plan depends on; the fields are those of the config."""

    model: BltConfig | EntropyConfig | BoundaryConfig | CnnConfig
    max_steps: int
    row_bytes: int
    batch_rows: int
    accumulate: int = 1
    row_patches: int | None = None
    shard: int | None = None
    recompute: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    scorer: EntropyConfig | BoundaryConfig | CnnConfig | None = None
    """What every device runs to find the patches; None where they are stored or need no scores."""
    patch_bytes: float | None = None
    """Mean bytes per patch, where something is known of it."""
    patch_bytes_source: str | None = None
    """Where that is known from; see `Ledger.patch_bytes_source`."""


@dataclass(frozen=True)
class TrainingPlan:
    """What `blt flops --mesh` answers. Memory in bytes on the fullest device, times in seconds of one step."""

    mesh: str
    ranks: int
    shard: int
    device: str
    rate_tflops: float
    rows_per_rank: int
    accumulate: int
    params: Mapping[str, int]
    """total, dense, tables, largest_layer; scorer."""
    held: Mapping[str, float]
    """What stays on a device for the whole run."""
    passing: Mapping[str, Mapping[str, float]]
    """What is added to it at the moments that may be the fullest."""
    activations: Mapping[str, int]
    """Of a micro-batch: kept, and recomputed, which is what trainer.checkpoint_activations makes of it."""
    memory: float
    """held and the largest of `passing`."""
    memory_limit: float | None
    fits: bool | None
    host_memory: float
    """The copy that a checkpoint makes in the memory of the host, for each process."""
    flops: float
    """Operations of a step, all devices: forward, backward, and what is computed anew."""
    text_bytes: float
    """Bytes of text in a step."""
    traffic: Mapping[str, float]
    """Bytes that a process sends in a step."""
    seconds: Mapping[str, float]
    """compute; dense and tables: communication; step: what is expected."""
    bytes_per_second: float
    days: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """A table for people."""
        fullest = max(self.passing, key=lambda moment: sum(self.passing[moment].values()))
        lines = [f"{self.ranks} x {self.device} ({self.mesh}), dense weights sharded over {self.shard}"]
        row = "row" if self.rows_per_rank == 1 else "rows"
        times = "once" if self.accumulate == 1 else f"{self.accumulate} times"
        lines.append(f"{self.rows_per_rank} {row} on each at a time, {times} a step")
        counts = [f"{self.params['total']:,} parameters"]
        counts += [f"{self.params['tables']:,} of them n-gram tables"] if self.params["tables"] else []
        lines.append(", ".join(counts))
        lines += ["", f"{'on each device':<44}{'GB':>10}"]
        lines += [f"  {name:<42}{size / 1e9:>10.2f}" for name, size in self.held.items() if size]
        for moment, parts in self.passing.items():
            mark = "  <- fullest" if moment == fullest else ""
            lines.append(f"  {'+ ' + moment:<42}{sum(parts.values()) / 1e9:>10.2f}{mark}")
            if mark:
                lines += [f"      {name:<38}{size / 1e9:>10.2f}" for name, size in parts.items() if size]
        limit = "" if self.memory_limit is None else f" of {self.memory_limit / 1e9:.0f}"
        verdict = {None: "", True: ": fits", False: ": DOES NOT FIT"}[self.fits]
        lines.append(f"  {'in all':<42}{self.memory / 1e9:>10.2f}{limit}{verdict}")
        kept, anew = self.activations["kept"] / 1e9, self.activations["recomputed"] / 1e9
        lines.append(f"  activations: {kept:.2f} GB kept, {anew:.2f} with every layer recomputed")
        lines += [f"  a checkpoint's copy on the host: {self.host_memory / 1e9:.2f} GB a process", ""]
        lines.append(f"{'a step':<44}{'GB sent':>10}{'seconds':>10}")
        compute = f"compute ({self.flops / 1e12:,.0f} TFLOP at {self.rate_tflops:.4g} a second)"
        lines.append(f"  {compute:<42}{'':>10}{self.seconds['compute']:>10.3f}")
        dense = sum(size for name, size in self.traffic.items() if name != "tables")
        sent = {"dense": ("dense weights and gradients", dense), "tables": ("n-gram rows", self.traffic["tables"])}
        lines += [f"  {name:<42}{size / 1e9:>10.2f}{self.seconds[key]:>10.3f}" for key, (name, size) in sent.items()]
        lines.append(f"  {'expected':<42}{'':>10}{self.seconds['step']:>10.3f}")
        speed = f"{self.text_bytes / 1e6:.4g} MB of text a step, {self.bytes_per_second / 1e6:.3g} MB/s"
        lasting = f"{self.days:.1f} days" if self.days >= 2 else f"{24 * self.days:.3g} hours"
        lines += ["", f"{speed}; all steps take {lasting}"]
        lines += [f"assumed: {line}" for line in self.assumptions]
        return "\n".join(lines + [f"warning: {line}" for line in self.warnings])
