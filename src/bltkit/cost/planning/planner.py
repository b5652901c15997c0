"""Before a large run: what lies on each device, what a step costs and how long all steps take, without the devices.

Parameters are counted on the meta device, activations by `activations.py`, operations by `cost.formulas`; all else is
arithmetic written beside it here. Dense weights are sharded over `shard` processes (HSDP where that is not all), each
transformer layer a unit; n-gram tables by rows over all processes. Numbers are computed, none is measured: allocators,
kernels and networks have their own opinion, so a plan that fits narrowly should be tried on few devices first.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from bltkit.cost.formulas.operations import forward_flops, scorer_flops, stack_flops
from bltkit.cost.ledger import PATCH_BYTES
from bltkit.cost.planning.activations import Activations, activations, layers, meta_model
from bltkit.cost.planning.machine import LINK_SHARE, USABLE, UTILIZATION, Mesh, device_named
from bltkit.cost.planning.training_plan import PlannedRun, TrainingPlan
from bltkit.model import BltConfig, BoundaryConfig, CnnConfig, EntropyConfig, StackConfig
from bltkit.model.entropy import SCORING_CHUNK
from bltkit.vocab import VOCAB_SIZE

LEAST_RATE, MOST_RATE = 1e-9, 1e9
"""Of a rate (TFLOP/s, GB/s) or a memory (GB) that a user names."""

MAX_COUNT = 10**12
"""Most steps, rows, or bytes of a row that are planned."""

_TABLES = "embed.ngrams"


def plan(
    run: PlannedRun,
    mesh: str,
    *,
    device: str = "h100",
    rate: float | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    patch_bytes: float | None = None,
) -> TrainingPlan:
    """Plan a run.

    mesh: "NODESxDEVICES". rate: TFLOP/s that a device achieves; by default `UTILIZATION` of its peak. memory: GB of a
    device; by default the data sheet's. bandwidth: GB/s that a device achieves to other nodes; by default `LINK_SHARE`
    of its port. Raises ValueError with one line.
    """
    return _Planner(run, mesh, device, rate, memory, bandwidth, patch_bytes).plan()


class _Planner:
    def __init__(
        self,
        run: PlannedRun,
        mesh: str,
        device: str,
        rate: float | None,
        memory: float | None,
        bandwidth: float | None,
        patch_bytes: float | None,
    ) -> None:
        for option, value in (("rate", rate), ("memory", memory), ("bandwidth", bandwidth)):
            if value is not None and not LEAST_RATE <= value <= MOST_RATE:
                raise ValueError(f"--{option} {value} must lie between {LEAST_RATE:g} and {MOST_RATE:g}")
        self.run, self.mesh, self.name, self.device = run, Mesh.parse(mesh), device, device_named(device)
        candidates = (patch_bytes, "--patch-bytes"), (run.patch_bytes, run.patch_bytes_source or "")
        sizes = [(size, source) for size, source in candidates if size is not None]
        self.patch_bytes, self.patch_bytes_source = (*sizes, (PATCH_BYTES, "assumed"))[0]
        if not 1 <= self.patch_bytes <= run.row_bytes:
            raise ValueError(
                f"{self.patch_bytes:g} bytes per patch ({self.patch_bytes_source}) must lie between 1 and "
                f"data.row_bytes = {run.row_bytes}"
            )
        for name in ("max_steps", "row_bytes", "batch_rows", "accumulate"):
            if getattr(run, name) > MAX_COUNT:
                section = "data" if name in ("row_bytes", "batch_rows") else "trainer"
                raise ValueError(f"{section}.{name} = {getattr(run, name)} is too large to be planned")
        ranks = self.mesh.ranks
        self.shard = run.shard or ranks
        if self.shard > ranks or ranks % self.shard:
            raise ValueError(f"trainer.shard = {run.shard} does not divide the {ranks} processes of --mesh {mesh}")
        self.rate_given, self.rate = rate is not None, rate or UTILIZATION * self.device.peak_tflops
        self.memory = self.device.memory_gb if memory is None else memory
        self.bandwidth = bandwidth or LINK_SHARE * self.device.network_gb_per_s
        self.bf16 = run.precision == "bf16" or (run.precision == "auto" and device != "cpu")
        self.rows = -(-run.batch_rows // ranks)
        self.is_blt = isinstance(run.model, BltConfig)
        # A row is full when its bytes or its patches are used up; what is computed is the whole shape.
        self.patches = math.ceil(run.row_bytes / self.patch_bytes)
        if run.row_patches is not None:
            self.patches = min(self.patches, run.row_patches)
        self.row_text = min(run.row_bytes, self.patches * self.patch_bytes) if self.is_blt else run.row_bytes
        self.text = self.row_text * run.batch_rows * run.accumulate
        self._count(meta_model(run.model))

    def _count(self, model: nn.Module) -> None:
        sizes = {name: weight.shape for name, weight in model.named_parameters()}
        units = tuple(f"{name}." for name in layers(model))
        dense = {name: shape for name, shape in sizes.items() if name != _TABLES}
        inside = {unit: sum(shape.numel() for n, shape in dense.items() if n.startswith(unit)) for unit in units}
        self.dense, self.layered = sum(shape.numel() for shape in dense.values()), sum(inside.values())
        self.largest = max(inside.values(), default=0)
        # FSDP cuts the first dimension of each weight; the first process has the most.
        self.own = sum(-(-shape[0] // self.shard) * shape[1:].numel() for shape in dense.values())
        self.table_rows, self.width = sizes.get(_TABLES, (0, 0))
        self.own_table = -(-self.table_rows // self.mesh.ranks) * self.width
        self.products = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        tables = self.run.model.ngrams.num_tables if isinstance(self.run.model, BltConfig) else 0
        self.look_ups = tables * self.rows * self.run.row_bytes
        if self.mesh.ranks > 1:  # a process asks for distinct rows only
            self.look_ups = min(self.look_ups, self.table_rows)

    def plan(self) -> TrainingPlan:
        run = self.run
        dtype = torch.bfloat16 if self.bf16 else None
        saved = activations(run.model, self.rows, run.row_bytes, self.patches, dtype)
        held, passing = self._held(), self._passing(saved)
        memory = sum(held.values()) + max(sum(parts.values()) for parts in passing.values())
        fits = None if self.memory is None else memory <= USABLE * self.memory * 1e9
        flops = self._flops()
        traffic = self._traffic()
        seconds = self._seconds(sum(flops.values()), traffic)
        return TrainingPlan(
            mesh=f"{self.mesh.nodes}x{self.mesh.per_node}",
            ranks=self.mesh.ranks,
            shard=self.shard,
            device=self.name,
            rate_tflops=self.rate,
            rows_per_rank=self.rows,
            accumulate=run.accumulate,
            params=self._params(),
            held=held,
            passing=passing,
            activations={"kept": saved.kept, "recomputed": saved.recomputed},
            memory=memory,
            memory_limit=None if self.memory is None else self.memory * 1e9,
            fits=fits,
            host_memory=12.0 * (self.own + self.own_table),
            flops=sum(flops.values()),
            text_bytes=self.text,
            traffic=traffic,
            seconds=seconds,
            bytes_per_second=self.text / seconds["step"],
            days=run.max_steps * seconds["step"] / 86400,
            assumptions=self._assumptions(),
            warnings=self._warnings(fits, flops, seconds),
        )

    def _params(self) -> dict[str, int]:
        scorer = 0 if self.run.scorer is None else _size(self.run.scorer)
        tables = self.table_rows * self.width
        total = self.dense + tables
        return {
            "total": total, "dense": self.dense, "tables": tables, "largest_layer": self.largest, "scorer": scorer
        }  # fmt: skip

    def _held(self) -> dict[str, float]:
        """Everything fp32: a weight, its two moments, and of dense weights the gradient, 4 bytes each."""
        return {
            "dense weights": 4.0 * self.own,
            "AdamW moments": 8.0 * self.own,
            "dense gradients": 4.0 * self.own,
            "n-gram tables": 4.0 * self.own_table,
            "moments of the tables": 8.0 * self.own_table,
            "entropy model": 0.0 if self.run.scorer is None else 4.0 * _size(self.run.scorer),
        }

    def _passing(self, saved: Activations) -> dict[str, dict[str, float]]:
        row, element = 4.0 * self.width * self.look_ups, 2 if self.bf16 else 4
        rows = self.rows * self.run.row_bytes
        exchange = 2 * row if self.mesh.ranks > 1 else 0.0
        # Gradients of rows are added up after every micro-batch, so they never outgrow the rows that a process owns.
        earlier = min(row * (self.run.accumulate - 1), 4.0 * self.own_table)
        summed = min(row * self.run.accumulate, 4.0 * self.own_table)
        if self.mesh.ranks > 1:
            rest = self.dense - self.layered
            # The layer in use, the next one and the buffer that it is gathered into; all that is not in a layer.
            gathered = element * (3.0 * self.largest + rest)
            # Backward has two units' gradients in the dtype of the products, and one in fp32 to be summed.
            unsharded = (2 * element + 4.0) * max(self.largest, rest / 2)
        else:
            # Autocast keeps a copy of every matrix from its use in forward to backward's end.
            gathered, unsharded = 2.0 * self.products if self.bf16 else 0.0, 0.0
        # Outputs in the dtype of the products, in fp32, as log-probabilities, and the gradient of those.
        logits = (element + 12.0) * rows * VOCAB_SIZE
        moments = {
            "forward begins": {
                "rows looked up": exchange,
                "gathered weights": gathered,
                "gradients of table rows": earlier,
            },
            "backward begins": {
                "activations": float(saved.recomputed if self.run.recompute else saved.kept),
                "their gradients in a layer": float(saved.layer),
                "logits and loss": logits,
                "gathered weights": gathered,
                "gradients of a unit": unsharded,
                "gradients of table rows": earlier,
            },
            # The last micro-batch's are sorted and added to the others' and to one another.
            "the optimizer's step": {"gradients of table rows": earlier + row + summed},
        }
        if self.run.scorer is not None:
            moments["the entropy model"] = {"its activations": self._scoring()}
        return moments

    def _scoring(self) -> float:
        """Of the scorer without gradient: in a layer two vectors of its width and four of the feed-forward part."""
        scorer, length = self.run.scorer, self.run.row_bytes
        if not isinstance(scorer, StackConfig):
            return 0.0
        positions = self.rows * length if length <= SCORING_CHUNK else SCORING_CHUNK
        return 4.0 * positions * (2 * scorer.width + max(4 * scorer.ffn, 2 * VOCAB_SIZE))

    def _flops(self) -> dict[str, float]:
        """Of a step over all devices: `train` (three forward passes), `anew` (the layers once more), `scorer`."""
        run, length = self.run, self.run.row_bytes
        count = run.batch_rows * run.accumulate
        # Rows are computed whole: `patches` patches and `row_bytes` positions, filled or not.
        train = 3 * forward_flops(run.model, length / self.patches, length) * length
        anew = 0.0
        if run.recompute and isinstance(run.model, BltConfig):
            local = stack_flops(run.model.encoder, length) + stack_flops(run.model.decoder, length)
            anew = local * length + stack_flops(run.model.latent, self.patches) * self.patches
        elif run.recompute and isinstance(run.model, StackConfig):
            anew = stack_flops(run.model, length) * length
        scoring = 0.0 if run.scorer is None else scorer_flops(run.scorer, length) * length
        return {"train": count * train, "anew": count * anew, "scorer": count * scoring}

    def _traffic(self) -> dict[str, float]:
        """What one process sends in a step. A ring over n processes passes (n - 1) / n of the whole through each."""
        ranks, shard, times = self.mesh.ranks, self.shard, self.run.accumulate
        ring = (shard - 1) / shard
        element = 2 if self.bf16 else 4
        copies = ranks // shard
        return {
            # Layers once for forward and once for backward; the rest stays from one to the other.
            "all_gather": times * ring * element * (self.dense + self.layered),
            "reduce_scatter": times * ring * 4.0 * self.dense,
            "all_reduce": times * 2 * (copies - 1) / copies * 4.0 * self.dense / shard,
            # A number of 8 bytes for each row that is asked for, its vector back, and its gradient.
            "tables": times * (ranks - 1) / ranks * self.look_ups * (8.0 * self.width + 8.0),
        }

    def _seconds(self, flops: float, traffic: Mapping[str, float]) -> dict[str, float]:
        node = LINK_SHARE * self.device.node_gb_per_s * 1e9
        network = self.bandwidth * 1e9
        several = self.mesh.nodes > 1
        # Processes of a shard group follow one another, so a group that divides a node stays within it.
        inside = not several or self.mesh.per_node % self.shard == 0
        dense = (traffic["all_gather"] + traffic["reduce_scatter"]) / (node if inside else network)
        dense += traffic["all_reduce"] / (network if several else node)
        tables = traffic["tables"] / (network if several else node)
        compute = flops / (self.mesh.ranks * self.rate * 1e12)
        # FSDP gathers the next layer while one is computed; the look-up of rows is waited for.
        return {"compute": compute, "dense": dense, "tables": tables, "step": max(compute, dense) + tables}

    def _assumptions(self) -> tuple[str, ...]:
        source = "" if self.patch_bytes_source == "assumed" else f" ({self.patch_bytes_source})"
        found = [f"{self.patch_bytes:g} bytes per patch{source}"] if self.is_blt else []
        if not self.rate_given:
            found.append(f"{UTILIZATION:.0%} of the peak of {self.device.peak_tflops:g} TFLOP/s (--rate)")
        if self.mesh.ranks > 1:
            node = LINK_SHARE * self.device.node_gb_per_s
            found.append(f"{node:.3g} GB/s within a node, {self.bandwidth:.3g} between nodes (--bandwidth), per device")
            found.append("dense communication hidden behind computing; every row that is looked up a distinct one")
        return tuple(found)

    def _warnings(self, fits: bool | None, flops: Mapping[str, float], seconds: Mapping[str, float]) -> tuple[str, ...]:
        run, ranks, found = self.run, self.mesh.ranks, []
        if run.batch_rows % ranks:
            found.append(
                f"data.batch_rows = {run.batch_rows} is no multiple of the {ranks} processes: the loader will refuse it"
            )
        if fits is False:
            ways = ["a lower data.batch_rows with a higher trainer.accumulate"] if self.rows > 1 else []
            ways += [] if run.recompute else ["trainer.checkpoint_activations = true"]
            ways += ["a larger trainer.shard"] if self.shard < ranks else ["more devices"]
            found.append(f"too large for {USABLE:.0%} of the memory; what helps: {', '.join(ways)}")
        if self.row_text < 0.9 * run.row_bytes:
            found.append(
                f"rows of {run.row_bytes} bytes are full with {self.row_text:.0f} of text, when {self.patches} patches "
                "are used up; the local models compute the rest as padding"
            )
        if seconds["dense"] > seconds["compute"]:
            found.append("communication takes longer than computing: more rows on a device (less accumulation) or HSDP")
        if run.scorer is not None:
            share = flops["scorer"] / sum(flops.values())
            found.append(f"the entropy model is {share:.0%} of the operations; `blt annotate` runs it once for all")
        if not self.bf16 and self.name != "cpu":
            found.append("trainer.precision = fp32, but the rate is one of bf16 products")
        return tuple(found)


def _size(config: EntropyConfig | BoundaryConfig | CnnConfig) -> int:
    return sum(weight.numel() for weight in meta_model(config).parameters())
