"""Padded batches as transformers has them, and the rows of ids that the engine reads."""

from dataclasses import dataclass

from jaxtyping import Bool, Int64
from torch import Tensor

from bltkit.vocab import VOCAB_SIZE


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of a batch without padding.

    ids: of each row. real: which columns hold them; None where no row is padded.
    """

    ids: tuple[tuple[int, ...], ...]
    real: Bool[Tensor, "B T"] | None

    @classmethod
    def of(cls, input_ids: Int64[Tensor, "B T"], attention_mask: Tensor | None) -> "PromptRows":
        """The prompts of a batch that is padded on the left, on the right or on both sides.

        Raises ValueError for ids outside the vocabulary, an empty row, and a mask with a gap.
        """
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < VOCAB_SIZE:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise ValueError(
                f"input_ids run from {low} to {high}; they must be in 0..{VOCAB_SIZE - 1}, a byte's value + 4"
            )
        real = None
        if attention_mask is not None:
            real = attention_mask.to(input_ids.device) != 0
            real = None if bool(real.all()) else real
        columns: list[list[int]] = input_ids.tolist()
        masks: list[list[bool]] = [] if real is None else real.tolist()
        for index, mask in enumerate(masks):
            count = sum(mask)
            first = mask.index(True) if count else 0
            if count and not all(mask[first : first + count]):
                raise ValueError(f"attention_mask: row {index} has a gap; the ids of a row must stand side by side")
            columns[index] = columns[index][first : first + count]
        for index, row in enumerate(columns):
            if not row:
                raise ValueError(f"input_ids: row {index} is empty; a row has at least one id, such as BOS (1)")
        return cls(tuple(map(tuple, columns)), real)
