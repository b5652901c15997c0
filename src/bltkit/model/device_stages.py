"""A model whose parts lie on several devices: activations move at the borders between parts, and nowhere else.

Modules are exchanged where such a border is, so that the code of all others stays as it is and asks for no device:
`StagedTransformer` in place of a stack whose layers are apart, `TablesApart` in place of an embedding whose n-gram
tables are. What goes where is decided elsewhere (`bltkit.checkpoint.placement`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bltkit.model.blt import Blt
from bltkit.model.cache import Slot, StackCache
from bltkit.model.config import StackConfig
from bltkit.model.embed import NgramEmbedding
from bltkit.model.layers import Before, Layer, Transformer


@dataclass(frozen=True, eq=False)
class StagedCache:
    """The state of a `StagedTransformer`: the caches of its stages, each on the stage's device.

    Used as a `StackCache` of rows that lie apart, as global caches do: rows neither enter nor move in place.
    """

    parts: tuple[StackCache, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """RoPE position of each row's next key."""
        return self.parts[0].positions

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions kept of each row."""
        return self.parts[0].lengths

    @property
    def stale(self) -> bool:
        """Never: rows do not move in these caches."""
        return any(part.stale for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Memory that one step's attention reads, in bytes, on all devices."""
        return sum(part.num_bytes for part in self.parts)

    def select(self, rows: Sequence[int]) -> "StagedCache":
        """See `StackCache.select`."""
        return StagedCache(tuple(part.select(rows) for part in self.parts))

    def forget(self, rows: Sequence[int], skipped: int = 0) -> "StagedCache":
        """See `StackCache.forget`."""
        return StagedCache(tuple(part.forget(rows, skipped) for part in self.parts))

    @classmethod
    def grown_early(cls, caches: tuple["StagedCache", ...]) -> tuple["StagedCache", ...]:
        """See `StackCache.grown_early`."""
        stages = list(zip(*(cache.parts for cache in caches), strict=True))
        grown = [StackCache.grown_early(stage) for stage in stages]
        if all(new is old for new, old in zip(grown, stages, strict=True)):
            return caches
        return tuple(map(cls, zip(*grown, strict=True)))


class StagedSlot:
    """Room behind a `StagedCache` for one pass."""

    def __init__(self, parts: tuple[Slot, ...]) -> None:
        self.parts = parts

    def keep(self, counts: Sequence[int]) -> StagedCache:
        """See `Slot.keep`."""
        return StagedCache(tuple(part.keep(counts) for part in self.parts))


class StagedTransformer(nn.Module):
    """A stack whose layers lie on several devices: `Transformer`s of neighbouring layers, one after another.

    Takes and gives activations on the device on which they come. Its layers have the names that they have in a
    `Transformer`, which it replaces for good: each stage indexes its caches from 0.
    """

    def __init__(self, stack: Transformer, devices: Sequence[torch.device]) -> None:
        """devices: of each layer, where its weights are already."""
        super().__init__()
        self.config = stack.config
        self.layers = stack.layers
        pairs = zip(cast(Iterable[Layer], stack.layers), devices, strict=True)
        self.stages = _Stages(
            _Stage(_stack_of([layer for layer, _ in group], stack.config), device)
            for device, group in groupby(pairs, key=lambda pair: pair[1])
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        segments: Int64[Tensor, "B T"] | None = None,
        before: Before | None = None,
    ) -> list[Float[Tensor, "B T D"]]:
        """The stack's output, alone in a list: what the layers before it give stays where it is."""
        assert before is None, "nothing stands in front of single layers of this stack"
        home = x.device
        for stage in self.stages:
            own_segments = None if segments is None else segments.to(stage.device)
            x = stage.stack(x.to(stage.device), own_segments)[-1]
        return [x.to(home)]

    def extend(
        self, x: Float[Tensor, "R S D"], caches: Sequence[StagedCache], before: Before | None = None
    ) -> tuple[list[Float[Tensor, "R S D"]], tuple[StagedSlot, ...]]:
        """`forward` for S further positions; see `Transformer.extend`."""
        assert before is None, "nothing stands in front of single layers of this stack"
        home, slots = x.device, []
        for number, stage in enumerate(self.stages):
            outputs, stage_slots = stage.stack.extend(x.to(stage.device), [cache.parts[number] for cache in caches])
            x = outputs[-1]
            slots.append(stage_slots)
        return [x.to(home)], tuple(map(StagedSlot, zip(*slots, strict=True)))

    def empty_cache(self, rows: int = 1) -> StagedCache:
        """The state in front of the first position."""
        return StagedCache(tuple(stage.stack.empty_cache(rows) for stage in self.stages))


@dataclass(frozen=True, eq=False)
class _Stage:
    """Neighbouring layers on one device."""

    stack: Transformer
    device: torch.device


class _Stages(tuple[_Stage, ...]):
    """A tuple that `nn.Module` takes for no modules: the layers are listed once, in `StagedTransformer.layers`."""


def _stack_of(layers: Sequence[Layer], config: StackConfig) -> Transformer:
    """A stack of these very layers."""
    with torch.device("meta"):
        stack = Transformer(config.replace(layers=len(layers)))
    stack.layers = nn.ModuleList(layers)
    for index, layer in enumerate(layers):
        layer.attention.index = index
    return stack


class TablesApart(NgramEmbedding):
    """An embedding whose n-gram tables lie on another device: numbers of rows go there, their sums come back."""

    @classmethod
    def of(cls, embed: NgramEmbedding) -> Self:
        """The same tensors, shared."""
        with torch.device("meta"):
            apart = cls(embed.config, embed.bytes.weight.shape[1])
        apart.scale, apart.bytes, apart.ngrams, apart.rows = embed.scale, embed.bytes, embed.ngrams, embed.rows
        apart.hash_weights, apart.table_offsets = embed.hash_weights, embed.table_offsets
        return apart

    def _sums(self, rows: Int64[Tensor, "N tables"]) -> Float[Tensor, "N D"]:
        return super()._sums(rows.to(self.ngrams.device)).to(self.bytes.weight.device)


def put_seams(model: Blt, layers: Sequence[torch.device]) -> None:
    """Exchange the modules of a model at whose borders its weights change devices; in place.

    layers: device of each global layer, where its weights are already. A model on one device stays as it is.
    """
    home = model.embed.bytes.weight.device
    if any(device != home for device in layers):
        model.latent.stack = cast(Transformer, StagedTransformer(model.latent.stack, layers))
    if isinstance(model.embed, NgramEmbedding) and model.embed.ngrams.device != home:
        model.embed = TablesApart.of(model.embed)
