"""What `blt annotate` says at its end."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bltkit.annotate.annotation_plan import AnnotationPlan, ShardPlan
from bltkit.annotate.shard_work import NEAR
from bltkit.data.sources.shards import ShardManifest


@dataclass(frozen=True)
class Annotation:
    """What `blt annotate` says at its end. Counts are of all shards, also those that were there."""

    out: str
    documents: int
    bytes: int
    patches: int | None
    mean_patch_bytes: float | None
    near_threshold: int
    shards: int
    new_shards: int
    bytes_per_second: float | None
    """Of the new shards, reading and writing included; None where there is none."""
    rule: str | None
    dtype: str
    sources: tuple[dict[str, Any], ...]
    """As `data.sources` of a training config names them."""
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `blt annotate --json` prints it."""
        return asdict(self)

    def summary(self) -> str:
        """A few lines for people."""
        speed = "nothing was left to do" if self.bytes_per_second is None else f"{self.bytes_per_second:,.0f} bytes/s"
        lines = [f"{self.out}: {self.documents} documents, {self.bytes} bytes in {self.shards} shards; {speed}"]
        if self.patches is None:
            lines.append("no rule: entropies only; `blt calibrate --annotated` finds a threshold")
        else:
            lines.append(
                f"{self.rule}: {self.patches} patches of {self.mean_patch_bytes:.3f} bytes, "
                f"{self.near_threshold} entropies within {NEAR:g} of the threshold"
            )
        lines += [f"passed over: {line}" for line in self.faults]
        tables = (", ".join(f"{name} = {_toml(value)}" for name, value in table.items()) for table in self.sources)
        lines.append("data.sources = [" + ", ".join(f"{{ {table} }}" for table in tables) + "]")
        return "\n".join(lines)


def report_of(
    manifest: ShardManifest, plan: AnnotationPlan, out: str, missing: Sequence[ShardPlan], seconds: float
) -> Annotation:
    shards = manifest.shards
    num_bytes = sum(shard.bytes for shard in shards)
    patches = None if manifest.rule is None else sum(shard.patches or 0 for shard in shards)
    weights = [source.weight for source in plan.sources]
    table = {"kind": "annotated", "path": out}
    return Annotation(
        out=out,
        documents=sum(shard.documents for shard in shards),
        bytes=num_bytes,
        patches=patches,
        mean_patch_bytes=None if patches is None else num_bytes / patches,
        near_threshold=sum(shard.near_threshold for shard in shards),
        shards=len(shards),
        new_shards=len(missing),
        bytes_per_second=sum(shard.bytes for shard in missing) / seconds if missing else None,
        rule=manifest.rule,
        dtype=manifest.dtype,
        sources=tuple(table | {"source": index, "weight": weight} for index, weight in enumerate(weights))
        if len(set(weights)) > 1
        else (table,),
        faults=plan.faults,
    )


def _toml(value: object) -> str:
    return json.dumps(value)
