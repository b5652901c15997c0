"""Small corpora for the tests of packing and loader, and the executable specification of cutting."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from bltkit.data import Batch, Corpus, Document, Loader
from bltkit.data.packing import Pieces
from bltkit.data.parts import PartSize
from bltkit.vocab import BOS, EOS, OFFSET, PAD

documents = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=25)
row_sizes = st.integers(8, 40)
patch_budgets = st.integers(3, 20)
seeds = st.integers(0, 3)
part_sizes = st.builds(PartSize, st.integers(1, 12), st.integers(1, 400))


@st.composite
def marked_documents(draw: st.DrawFn) -> list[Document]:
    """Documents with stored patch starts, from none to every byte, some with bytes that are not learned."""
    found = []
    for number, text in enumerate(draw(documents)):
        marks = np.frombuffer(draw(st.binary(min_size=2 * len(text), max_size=2 * len(text))), dtype=np.uint8)
        share = draw(st.sampled_from([0, 50, 128, 256]))
        learned = marks[len(text) :] < 128 if draw(st.booleans()) else None
        found.append(Document(str(number), text, learned=learned, opens=marks[: len(text)] < share))
    return found


def everything(texts: list[bytes] | list[Document]) -> Corpus:
    """A corpus that trains on all of its documents."""
    return Corpus.from_documents(texts, validation_fraction=0.0)


def epoch_rows(loader: Loader, epoch: int = 0) -> list[list[int]]:
    """The ids of every row of one epoch."""
    assert loader.batch_rows == 1
    parts = [loader.plan.part(epoch, number) for number in range(loader.plan.num_parts(epoch))]
    loader.restore(loader.state | {"epoch": epoch, "part": 0, "row": 0})
    rows = [next(loader).ids[0].tolist() for part in parts if part is not None for _ in range(len(part))]
    assert loader.epoch == epoch or not rows
    return rows


def pieces_of(row: list[int]) -> list[list[int]]:
    """A row cut in front of each BOS, padding removed."""
    pieces: list[list[int]] = []
    for value in row:
        if value == BOS:
            pieces.append([])
        if value != PAD:
            pieces[-1].append(value)
    return pieces


def obvious_pieces(
    text: bytes, row_bytes: int, opens: np.ndarray | None = None, row_patches: int | None = None
) -> list[list[int]]:
    """Cutting, id by id: fill a row until a budget is used up, go on in the next one, and never leave EOS alone."""
    ids = [byte + OFFSET for byte in text] + [EOS]
    result = []
    at = 0
    while at < len(ids):
        piece, patches, begin = [BOS], 1, at
        while at < len(ids):
            patches += at == begin or (opens is not None and bool(opens[at - 1]))
            if len(piece) == row_bytes or (row_patches is not None and patches > row_patches):
                break
            piece.append(ids[at])
            at += 1
        if at == len(ids) - 1:
            at -= 1
            piece.pop()
        result.append(piece)
    return result


def same(left: Batch, right: Batch) -> bool:
    """Are two batches equal in everything."""
    assert (left.opens is None) == (right.opens is None)
    return (
        torch.equal(left.ids, right.ids)
        and torch.equal(left.targets, right.targets)
        and torch.equal(left.num_bytes, right.num_bytes)
        and (left.opens is None or right.opens is None or torch.equal(left.opens, right.opens))
        and (left.text_bytes, left.num_targets, left.padding) == (right.text_bytes, right.num_targets, right.padding)
    )


def text_of(corpus: Corpus, pieces: Pieces, index: int) -> bytes:
    """The bytes of one piece."""
    return corpus.data[pieces.start[index] :][: pieces.length[index]].tobytes()
