"""Bytes of cached keys and values that a sequence needs, from the shapes of its model, before anything is read."""

from dataclasses import dataclass
from typing import Self

from bltkit.model import Blt, BltConfig, Scorer, StackConfig
from bltkit.model.cache import layout
from bltkit.model.entropy import ByteTransformer
from bltkit.model.layers import Transformer


@dataclass(frozen=True)
class StackMemory:
    """Of one stack."""

    position_bytes: int
    """Keys and values of a position, in all layers."""
    window: int | None
    of_patches: bool
    """Positions are patches, not ids."""

    @classmethod
    def of(cls, stack: Transformer, of_patches: bool = False) -> Self:
        """Of a stack with the weights' type."""
        element = next((weight.element_size() for weight in stack.parameters()), 4)
        return cls.planned(stack.config, element, of_patches)

    @classmethod
    def planned(cls, config: StackConfig, element_bytes: int, of_patches: bool = False) -> Self:
        """Of a stack that need not exist. element_bytes: of a cached number."""
        values = 2 * config.num_kv_heads * config.head_dim
        return cls(config.layers * values * element_bytes, config.window, of_patches)

    def held(self, ids: int, patches: int) -> int:
        """Bytes of the keys and values that the next position may see."""
        positions = patches if self.of_patches else ids
        return self.position_bytes * (positions if self.window is None else min(positions, self.window - 1))

    def reserved(self, ids: int, patches: int) -> int:
        """Bytes of the storage in which a row of a batch lies, spare columns included."""
        positions = patches if self.of_patches else ids
        longest = positions if self.window is None else min(positions, self.window - 1)
        # Global caches lie apart, and grow before the position that they have no room for.
        return self.position_bytes * layout(longest, 1, self.window, not self.of_patches)[1]


@dataclass(frozen=True)
class SequenceMemory:
    """Of everything that a `Session` caches for one row."""

    stacks: tuple[StackMemory, ...]

    @classmethod
    def of(cls, model: Blt, scorer: Scorer | None) -> Self:
        """Of a model, and of its scorer if the rule reads scores."""
        stacks = [StackMemory.of(model.encoder.stack), StackMemory.of(model.latent.stack, of_patches=True)]
        stacks.append(StackMemory.of(model.decoder.stack))
        if isinstance(scorer, ByteTransformer):
            stacks.append(StackMemory.of(scorer.stack))
        return cls(tuple(stacks))

    @classmethod
    def planned(cls, model: BltConfig, scorer: StackConfig | None, element_bytes: int) -> Self:
        """Of models that need not exist. scorer: that of the rule, unless it caches nothing."""
        stacks = [StackMemory.planned(model.encoder, element_bytes)]
        stacks.append(StackMemory.planned(model.latent, element_bytes, of_patches=True))
        stacks.append(StackMemory.planned(model.decoder, element_bytes))
        stacks += [] if scorer is None else [StackMemory.planned(scorer, element_bytes)]
        return cls(tuple(stacks))

    def held(self, ids: int, patches: int) -> int:
        """Bytes of keys and values cached for a sequence of `ids` ids, BOS included, and `patches` closed patches.

        A sequence that forgot something (a later BOS, a scorer's reset) holds less.
        """
        return sum(stack.held(ids, patches) for stack in self.stacks)

    def reserved(self, ids: int, patches: int) -> int:
        """Bytes that its row takes in a batch, at most: `held`, and spare room that makes growing cheap.

        Lanes without a row are not in it; on the CPU they take no memory until a row comes.
        """
        return sum(stack.reserved(ids, patches) for stack in self.stacks)
