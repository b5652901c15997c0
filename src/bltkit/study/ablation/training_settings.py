"""What all runs of an ablation share: how far they train, on what, and the sections of a config that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from bltkit.config import Config, parse
from bltkit.data import Corpus, DataConfig, Loader

_HELD_BACK = 0.05


class AblationSettings(Config):
    """As the command line gives them."""

    steps: PositiveInt = 300
    """Of every run; where all of a group train on the same operations, of its first variant."""
    scorer_steps: PositiveInt = 300
    seeds: tuple[NonNegativeInt, ...] = (0,)
    patch_bytes: PositiveFloat | None = None
    """Mean patch that all variants cut at; by default 4.5, or that of words where the ablation says so."""
    texts: Mapping[str, str] = {"stdlib": "stdlib"}
    """Name -> data source; each is about as much of the training as any other."""
    rule: str | None = None
    """In place of the calibrated entropy rule of variants that have it."""
    row_bytes: PositiveInt = 1024
    batch_rows: PositiveInt = 4
    lr: PositiveFloat = 3e-3
    threads: PositiveInt = 1
    validation_batches: PositiveInt = 32
    keep_models: bool = False
    changes: tuple[str, ...] = ()
    """`section.key=value` on top of every variant's training, such as `model.encoder.window=16`."""


@dataclass(frozen=True)
class AblationTexts:
    """The texts of an ablation, kept below `out`."""

    settings: AblationSettings
    out: Path

    def sections(self, model: Mapping[str, Any], steps: int, seed: int) -> dict[str, Any]:
        """A whole training's config, but for patching and objective."""
        own = self.settings
        return {
            "model": dict(model),
            "data": self.data.model_dump(mode="json", exclude_none=True),
            "optim": {"lr": own.lr, "warmup_steps": min(100, steps // 4), "min_lr_ratio": 0.05},
            "trainer": {
                "max_steps": steps,
                "seed": seed,
                "threads": own.threads,
                "device": "cpu",
                "precision": "fp32",
                "log_every": 20,
                "validation_batches": own.validation_batches,
            },
            "checkpoint": {"export": "end"},
        }

    @cached_property
    def data(self) -> DataConfig:
        """Section `[data]`; of several texts, each weighs as much as any other."""
        own, directory = self.settings, self.out / "corpus"
        plain: DataConfig = parse(DataConfig, {"sources": list(own.texts.values())}, "texts")
        sources = plain.sources
        if len(sources) > 1:
            alone = [Corpus.from_sources([source], _HELD_BACK, directory=directory) for source in sources]
            sizes = [int(corpus.offsets[-1]) for corpus in alone]
            sources = tuple(
                source.replace(weight=round(sum(sizes) / len(sizes) / max(1, size), 3))
                for source, size in zip(sources, sizes, strict=True)
            )
        return plain.replace(
            sources=sources,
            row_bytes=own.row_bytes,
            batch_rows=own.batch_rows,
            validation_fraction=_HELD_BACK,
            cache=str(directory),
        )

    @cached_property
    def corpus(self) -> Corpus:
        """All of them. Raises ValueError for a text of which nothing is held back."""
        found = Corpus.from_sources(list(self.data.sources), _HELD_BACK, directory=self.out / "corpus")
        for number, (name, stats) in enumerate(zip(self.settings.texts, found.stats, strict=True)):
            if not len(found.held_out_of(number).validation):
                raise ValueError(
                    f"text {name!r}: none of its {stats.num_documents} documents is held back, so nothing could be "
                    "measured on it; cut it into more documents"
                )
        return found

    def rows(self, num_bytes: int) -> list[Int64[Tensor, " T"]]:
        """The first rows that a training of seed 0 reads, as long as they hold text: about so many bytes."""
        data = self.data
        loader = Loader(self.corpus, data.row_bytes, data.batch_rows, 0)
        batches = [next(loader) for _ in range(-(-num_bytes // (data.row_bytes * data.batch_rows)))]
        return [
            row[: int(length)]
            for batch in batches
            for row, length in zip(batch.ids, batch.num_bytes, strict=True)
            if int(length)
        ]
