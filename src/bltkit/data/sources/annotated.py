"""Annotated shards as a source: documents that bring their patches along, so that training runs no entropy model.

Written by `blt annotate` (see `bltkit.data.sources.shards`). Another rule than the stored one is applied to the stored
entropies; where the stored ones are fp16, only one that their rounding cannot change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator

from bltkit.data.sources.shards import (
    MANIFEST,
    AnnotatedDocument,
    Cut,
    ShardEntry,
    ShardFile,
    ShardManifest,
    cut,
    opens_of,
    read_manifest,
)
from bltkit.data.sources.source import Document, Faults, Input, SourceConfig, stat_inputs
from bltkit.patching import PatchingRule, Rule, ThresholdRule, parse_rule
from bltkit.patching.calibrate import snapped


class AnnotatedSource(SourceConfig):
    """A directory of annotated shards.

    rule    by which `opens` is made; by default the stored one, and without one `opens` is None
    source  only the documents of this one of the annotated sources, an index from 0: so that a mixture that was
            annotated together can be given weights
    """

    kind: Literal["annotated"] = "annotated"
    path: str
    """Directory of `blt annotate`."""
    rule: Annotated[Rule, BeforeValidator(lambda rule: parse_rule(rule) if isinstance(rule, str) else rule)] | None = (
        None
    )
    """Rule that patches follow; the stored one when absent."""
    source: int | None = None
    """Index from 0: only the documents of this one of the annotated sources."""

    is_text: ClassVar[bool] = False  # judged when it was annotated

    @property
    def label(self) -> str:
        return self.path if self.source is None else f"{self.path}[{self.source}]"

    @property
    def directory(self) -> Path:
        """Where the shards lie."""
        return Path(self.path).expanduser()

    @property
    def manifest(self) -> ShardManifest:
        """What the directory says of itself. Raises ValueError where it is none or not complete."""
        manifest = read_manifest(self.directory)
        if not manifest.complete:
            raise ValueError(f"{self.path} is not complete: `blt annotate` was broken off; run the same command again")
        return manifest

    @property
    def scorer_sha256(self) -> str:
        """`scorer_hash` of the entropy model whose entropies these are."""
        return self.manifest.scorer.sha256

    @property
    def used_rule(self) -> PatchingRule | None:
        """The rule that `opens` follows. Raises ValueError for one that the stored entropies cannot decide."""
        manifest = self.manifest
        stored = None if manifest.rule is None else parse_rule(manifest.rule, f"{self.path}/{MANIFEST}")
        if self.rule is None or self.rule == stored:
            return stored
        check_rule(self.rule, manifest, self.path)
        return self.rule

    def for_model(self, scorer_sha256: str | None, rule: PatchingRule | None) -> Self:
        """This source for a run with that entropy model and rule: the rule is taken over where none is named.

        Raises ValueError where the entropies are another model's, or where the source names another rule: a model
        would be trained on other patches than it is used with.
        """
        manifest = self.manifest
        if scorer_sha256 is not None and manifest.scorer.sha256 != scorer_sha256:
            raise ValueError(
                f"data source {self.label}: its entropies are of {manifest.scorer.name} "
                f"({manifest.scorer.sha256[:12]}), but patching.model is another model ({scorer_sha256[:12]}); "
                "annotate anew with that one, or name the model that annotated as patching.model"
            )
        if self.rule is not None and rule is not None and self.rule != rule:
            raise ValueError(
                f"data source {self.label}: rule '{self.rule}', but the run's is '{rule}'; name the same in both"
            )
        if rule is None or self.rule == rule:
            return self
        changed = self.replace(rule=rule)
        assert changed.used_rule == rule
        return changed

    def entries(self) -> list[ShardEntry]:
        """The shards that this source reads, in order."""
        manifest = self.manifest
        if self.source is not None and not 0 <= self.source < len(manifest.sources):
            raise ValueError(
                f"data source {self.path}: source = {self.source}, but it holds {len(manifest.sources)} sources, "
                "counted from 0"
            )
        return [entry for entry in manifest.shards if self.source in (None, entry.source)]

    def inputs(self) -> tuple[Input, ...] | None:
        names = [MANIFEST, *(entry.file for entry in self.entries())]
        return stat_inputs(self.directory / name for name in names)

    def documents(self, faults: Faults | None = None) -> Iterator[Document]:
        rule = self.used_rule
        recut = rule if self.rule is not None and str(rule) != self.manifest.rule else None
        for entry in self.entries():
            try:
                yield from _shard(self.directory / entry.file, entry, recut)
            except ValueError as error:
                self.pass_over(error, faults)


def check_rule(rule: PatchingRule, manifest: ShardManifest, where: str) -> None:
    """Raises ValueError where stored entropies of this type cannot decide what `rule` asks."""
    if not rule.streams or rule.scores == "boundary":
        raise ValueError(
            f"{where}: rule '{rule}' is not decided by entropies; take a rule that streams and reads entropies, "
            "such as 'threshold', or none"
        )
    check_dtype(rule, manifest.dtype, where)


def check_dtype(rule: PatchingRule, dtype: str, where: str) -> None:
    """Raises ValueError where rounding entropies to `dtype` could move patches of `rule`."""
    if dtype == "fp32" or rule.scores is None:
        return
    if not isinstance(rule, ThresholdRule):
        raise ValueError(
            f"{where}: rule '{rule}' compares differences of entropies, which are not exact in fp16; "
            "annotate with --dtype fp32"
        )
    if not snapped(rule.threshold):
        raise ValueError(
            f"{where}: threshold = {rule.threshold} is not midway between two neighbouring fp16 numbers, so rounding "
            "the entropies to fp16 would move patches; `blt calibrate` finds one that is, or annotate with --dtype fp32"
        )


def _shard(path: Path, entry: ShardEntry, recut: PatchingRule | None) -> Iterator[Document]:
    shard = ShardFile(path, entry)
    if shard.num_documents != entry.documents:
        raise ValueError(f"{path} holds {shard.num_documents} documents, but {MANIFEST} says {entry.documents}")
    try:
        for number in range(shard.num_groups):
            rows = list(shard.group(number))
            for row, patches in zip(rows, _cuts(rows, recut), strict=True):
                opens = None if patches is None else opens_of(patches, len(row.document.data))
                yield row.document._replace(opens=opens)
    finally:
        shard.close()


def _cuts(rows: list[AnnotatedDocument], recut: PatchingRule | None) -> list[Cut] | list[Cut | None]:
    if recut is not None:
        return cut(recut, [row.document.data for row in rows], [row.entropies for row in rows])
    return [None if row.starts is None or row.next_opens is None else Cut(row.starts, row.next_opens) for row in rows]
