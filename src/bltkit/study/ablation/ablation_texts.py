"""Texts and common settings of an ablation's trainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from bltkit.config import parse
from bltkit.data import Corpus, DataConfig, Loader
from bltkit.study.ablation.ablation_plan import AblationPlan

_HELD_BACK = 0.05


@dataclass(frozen=True)
class AblationTexts:
    """The texts of an ablation, cached below `out`."""

    plan: AblationPlan
    out: Path

    def sections(self, model: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
        """Config of a whole training, without patching and objective."""
        plan = self.plan
        return {
            "model": dict(model),
            "data": self.data.model_dump(mode="json", exclude_none=True),
            "optim": {"lr": plan.lr, "warmup_steps": min(100, steps // 4), "min_lr_ratio": 0.05},
            "trainer": {
                "max_steps": steps,
                "seed": seed,
                "threads": plan.threads,
                "device": "cpu",
                "precision": "fp32",
                "log_every": 20,
                "validation_batches": plan.validation_batches,
            },
            "checkpoint": {"export": "end"},
        }

    @cached_property
    def data(self) -> DataConfig:
        """Section `[data]`; several texts have equal shares."""
        directory = self.out / "corpus"
        plain: DataConfig = parse(DataConfig, {"sources": list(self.plan.texts.values())}, "texts")
        sources = plain.sources
        if len(sources) > 1:
            corpora = [Corpus.from_sources([source], _HELD_BACK, directory=directory) for source in sources]
            sizes = [int(corpus.offsets[-1]) for corpus in corpora]
            sources = tuple(
                source.replace(weight=round(sum(sizes) / len(sizes) / max(1, size), 3))
                for source, size in zip(sources, sizes, strict=True)
            )
        return plain.replace(
            sources=sources,
            row_bytes=self.plan.row_bytes,
            batch_rows=self.plan.batch_rows,
            validation_fraction=_HELD_BACK,
            cache=str(directory),
        )

    @cached_property
    def corpus(self) -> Corpus:
        """The mixture. Raises ValueError for a text without a held-out document."""
        corpus = Corpus.from_sources(list(self.data.sources), _HELD_BACK, directory=self.out / "corpus")
        for number, (name, stats) in enumerate(zip(self.plan.texts, corpus.stats, strict=True)):
            if not len(corpus.held_out_of(number).validation):
                raise ValueError(
                    f"text {name!r}: none of its {stats.num_documents} documents is held back, so nothing could be "
                    "measured on it; cut it into more documents"
                )
        return corpus

    def rows(self, num_bytes: int) -> list[Int64[Tensor, " T"]]:
        """Rows of about `num_bytes` bytes in all: the first ones that a training of seed 0 reads, cut to their text."""
        data = self.data
        loader = Loader(self.corpus, data.row_bytes, data.batch_rows, 0)
        batches = [next(loader) for _ in range(-(-num_bytes // (data.row_bytes * data.batch_rows)))]
        return [
            row[: int(length)]
            for batch in batches
            for row, length in zip(batch.ids, batch.num_bytes, strict=True)
            if int(length)
        ]
