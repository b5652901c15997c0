"""Memory of keys and values: what a request may come to take is set aside when it is admitted."""

from dataclasses import dataclass

import torch

from bltkit.compute import free_memory
from bltkit.generate.memory import SequenceMemory
from bltkit.model import Blt, Scorer

SHARE = 0.5
"""Of the memory that is free once the model is loaded. The rest is for what a pass computes, and for other programs."""


FALLBACK = 2 * 2**30
"""Bytes that count as free where the system does not say what is."""


@dataclass(frozen=True)
class Budget:
    """Bytes of keys and values that may be taken, and how many a sequence takes.

    The number of patches is not known in advance: a byte that is still to come counts as a patch.
    """

    memory: int
    sequence: SequenceMemory

    @classmethod
    def of(cls, model: Blt, scorer: Scorer | None, memory: int | None, device: torch.device) -> "Budget":
        """memory: None takes `SHARE` of what is free on the device."""
        if memory is None:
            free = free_memory(device)
            memory = int(SHARE * (FALLBACK if free is None else free))
        return cls(memory, SequenceMemory.of(model, scorer))

    def needed(self, ids: int, sequences: int, read: int = 0, patches: int = 0) -> int:
        """Bytes that sequences of up to `ids` ids may come to take, spare room included.

        read, patches: ids that were read, and the patches closed in them.
        """
        return sequences * self.sequence.reserved(ids, patches + ids - read)

    def lanes(self, sequences: int) -> int:
        """Sequences that storage is taken for at once: all of them, or as many as the memory holds."""
        return max(1, min(sequences, self.memory // max(1, self.sequence.reserved(1, 1))))
