"""Patches that follow a BPE tokenizer: predicted borders (streams), or the tokenizer's own (docs/model.md 4.2).

Whether a byte opens a token depends on the byte itself and on those after it, so real token borders can be
drawn and counted but never generated from. `bpe` asks a small byte model instead, which predicts "a token
ends after this byte" from the bytes so far.
"""

from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from bltkit.patching.rule import PatchingRule, ScoreKind
from bltkit.tokens.tokenizer import ByteTokenizer
from bltkit.vocab import OFFSET


class BpeRule(PatchingRule):
    """Byte t+1 opens a patch where the boundary model's logit at t, "a token ends after byte t", is >
    threshold."""

    kind: Literal["bpe"] = "bpe"
    threshold: float = Field(default=0.0, examples=[0.0, 0.5])
    """Logit; 0 is even odds."""

    scores: ClassVar[ScoreKind | None] = "boundary"

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        assert scores is not None
        return scores > self.threshold


class BpeOracleRule(PatchingRule):
    """The real token borders of a byte-level BPE tokenizer, for pictures, cost figures and boundary-model
    targets.

    Every special id is a token of its own; the bytes between two of them are one text, whose end is a border.
    In `patch(...).starts[:, 1:]` column t therefore says "a token ends after byte t". Runs on the CPU, row by
    row.
    """

    kind: Literal["bpe-oracle"] = "bpe-oracle"
    tokenizer: str
    """Path of a tokenizer.json (byte-level BPE: GPT-2, Llama 3 or `train_bpe`)."""

    streams: ClassVar[bool] = False

    @cached_property
    def loaded(self) -> ByteTokenizer:
        """The tokenizer, read once. Raises ValueError where it cannot be used (see `ByteTokenizer.load`)."""
        return ByteTokenizer.load(self.tokenizer)

    def opens(
        self,
        ids: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"] | None,
        position: Int64[Tensor, "B S"],
    ) -> Bool[Tensor, "B S"]:
        rows = [self._token_ends(row) for row in ids.tolist()]
        return torch.tensor(rows, dtype=torch.bool, device=ids.device).reshape(ids.shape)

    def _token_ends(self, row: list[int]) -> list[bool]:
        ends = [False] * len(row)
        begin = 0
        for column in [*(t for t, value in enumerate(row) if value < OFFSET), len(row)]:
            text = bytes(value - OFFSET for value in row[begin:column])
            for token in self.loaded.encode(text):
                begin += len(self.loaded.pieces[token])
                ends[begin - 1] = True
            if column < len(row):
                ends[column] = True
            begin = column + 1
        return ends
