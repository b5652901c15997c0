"""Rows of tokens made from rows of bytes: what a token model sees of a batch, and nothing else.

Between the loader and a token model. Each piece of a document in a row is tokenised alone, BOS in front and EOS behind
where the row has it: the same bytes, in the same order and with the same others in front, as every byte model sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from bltkit.data.batch import IGNORE, Batch
from bltkit.data.order import Indices
from bltkit.tokens import Vocabulary
from bltkit.vocab import BOS, EOS, OFFSET


@dataclass(frozen=True, eq=False)
class TokenRows:
    """B rows of at most S tokens, padded on the right.

    ids           Int64 [B, S]
    documents     Int64 [B, S], the number of each token's document in its row; padding belongs to the last one
    targets       Int64 [B, S], targets[:, s] = ids[:, s + 1]; -100 where that is padding, BOS or beyond the row, and
                  where none of its bytes is to be learned
    target_bytes  Int64 [B, S], bytes of text that each target holds: 0 for EOS and where there is no target
    num_tokens    Int64 [B], tokens before the padding (BOS and EOS count)
    """

    ids: Int64[Tensor, "B S"]
    documents: Int64[Tensor, "B S"]
    targets: Int64[Tensor, "B S"]
    target_bytes: Int64[Tensor, "B S"]
    num_tokens: Int64[Tensor, " B"]

    @property
    def num_targets(self) -> int:
        """Tokens that are to be predicted, EOS among them."""
        return int((self.targets != IGNORE).sum())

    @property
    def text_bytes(self) -> int:
        """Bytes of text that these hold."""
        return int(self.target_bytes.sum())

    def to(self, device: torch.device | str) -> TokenRows:
        """The same rows on `device`."""
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


@dataclass(frozen=True, eq=False)
class TokenBatch(Batch):
    """A batch of bytes with its tokens. `num_targets` counts tokens, EOS among them; `text_bytes` the bytes they hold.

    text_tokens  tokens of text in the rows, also those that are no targets
    """

    tokens: TokenRows = field(kw_only=True)
    text_tokens: int = field(kw_only=True)

    @classmethod
    def of(cls, batch: Batch, vocabulary: Vocabulary) -> TokenBatch:
        """The tokens of a batch on the CPU. Raises ValueError where the tokenizer changes the text."""
        rows = [
            _TokenRow.of(ids, wanted, vocabulary)
            for ids, wanted in zip(batch.ids.numpy(), _wanted(batch).numpy(), strict=True)
        ]
        size = max(len(row.ids) for row in rows)
        targets = [np.where(row.wanted[1:], row.ids[1:], IGNORE) for row in rows]
        held = [vocabulary.lengths[row.ids[1:]] * row.wanted[1:] for row in rows]
        tokens = TokenRows(
            _padded([row.ids for row in rows], size, vocabulary.pad),
            _padded([row.documents for row in rows], size, None),
            _padded(targets, size, IGNORE),
            _padded(held, size, 0),
            torch.tensor([len(row.ids) for row in rows]),
        )
        text_tokens = sum(int((vocabulary.lengths[row.ids] > 0).sum()) for row in rows)
        return cls(
            ids=batch.ids,
            targets=batch.targets,
            num_bytes=batch.num_bytes,
            text_bytes=tokens.text_bytes,
            num_targets=tokens.num_targets,
            padding=batch.padding,
            opens=batch.opens,
            tokens=tokens,
            text_tokens=text_tokens,
        )

    @property
    def num_patches(self) -> Int64[Tensor, " B"]:
        """Tokens of each row: what takes a place in it."""
        return self.tokens.num_tokens

    def without_targets(self, first: int) -> TokenBatch:
        """See `Batch`."""
        targets, held = self.tokens.targets.clone(), self.tokens.target_bytes.clone()
        targets[first:], held[first:] = IGNORE, 0
        tokens = replace(self.tokens, targets=targets, target_bytes=held)
        found = super().without_targets(first)
        assert isinstance(found, TokenBatch)
        return replace(found, tokens=tokens, text_bytes=tokens.text_bytes, num_targets=tokens.num_targets)

    def to(self, device: torch.device | str) -> TokenBatch:
        """See `Batch`."""
        found = super().to(device)
        assert isinstance(found, TokenBatch)
        return replace(found, tokens=self.tokens.to(device))


@dataclass(frozen=True)
class _TokenRow:
    ids: Indices
    documents: Indices
    wanted: Indices
    """1 for a token that is to be predicted."""

    @classmethod
    def of(cls, ids: Indices, wanted: Indices, vocabulary: Vocabulary) -> _TokenRow:
        """ids: bytes [T]. wanted: which of them are to be learned [T]."""
        learned = np.concatenate([[0], np.cumsum(wanted)])
        begins = np.flatnonzero(ids == BOS).tolist()
        tokens, asked, lengths = list[int](), list[Indices](), list[int]()
        for begin, end in pairwise((*begins, len(ids))):
            text = ids[begin + 1 : end]
            text = text[text >= OFFSET]
            found = vocabulary.tokenizer.encode((text - OFFSET).astype(np.uint8).tobytes())
            borders = begin + 1 + np.concatenate([[0], np.cumsum(vocabulary.lengths[found])]).astype(np.int64)
            tokens += [vocabulary.bos, *found]
            asked += [np.zeros(1, np.int64), learned[borders[1:]] - learned[borders[:-1]]]
            stop = begin + 1 + len(text)
            if stop < end and ids[stop] == EOS:
                tokens.append(vocabulary.eos)
                asked.append(wanted[stop : stop + 1])
            lengths.append(len(tokens) - sum(lengths))
        numbers = np.repeat(np.arange(1, len(begins) + 1), lengths)
        return cls(np.array(tokens, np.int64), numbers, (np.concatenate(asked) > 0).astype(np.int64))


def _wanted(batch: Batch) -> Int64[Tensor, "B T"]:
    """1 for ids of a row that are targets."""
    asked = (batch.targets != IGNORE)[:, :-1].long()
    return torch.cat([torch.zeros_like(asked[:, :1]), asked], 1)


def _padded(rows: list[Indices], size: int, value: int | None) -> Int64[Tensor, "B S"]:
    """value: None for that of the row's end."""
    padded = [np.pad(row, (0, size - len(row)), constant_values=row[-1] if value is None else value) for row in rows]
    return torch.from_numpy(np.stack(padded).astype(np.int64))
