"""Entropies of many documents: batched by length, and the same bits whatever else is in the batch.

Documents (or what the scorer takes for one: lines, where it starts anew at each) lie in rows of their own, from the
first column on, in batches of a few fixed shapes; long ones go alone, a stretch at a time, with the scorer's state
carried over. Every batch is computed by one thread. So neither neighbours nor shard nor number of threads nor engine
come into a document's numbers; what may is the machine's kind of arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bltkit.model import Scorer
from bltkit.model.cache import StackCache
from bltkit.model.entropy import ScorerState, stretches
from bltkit.patching.finite import check_finite
from bltkit.vocab import BOS, OFFSET, PAD

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Of batches, in ids; a row is padded to the next one. What is longer than the last goes alone."""

BATCH_IDS = 4096
"""Ids in a batch computed by a CPU's core: more do not fit its cache, fewer are not worth the calls."""

DEVICE_BATCH_IDS = 16_384
"""Ids in a batch of any other device."""

Row = tuple[int, int, int]
"""Document, and which of its ids, from where to where."""


@dataclass(frozen=True)
class _Batch:
    """Rows of one width, or a single longer one."""

    rows: tuple[Row, ...]
    width: int
    height: int

    @property
    def num_ids(self) -> int:
        return sum(end - begin for _, begin, end in self.rows)


def entropies_of(
    scorer: Scorer,
    texts: Sequence[bytes],
    *,
    workers: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """For each text n + 1 entropies in nats: element i of the prediction of byte i, from BOS and the bytes before it.

    Raises ValueError where an entropy is not finite.

    scorer: an entropy model in float32, on `device`.
    workers: threads that compute batches side by side on a CPU; they change nothing but the time.
    progress: told the bytes scored since it was last told.
    """
    assert workers >= 1
    device = torch.device(device)
    ids = [_ids(text) for text in texts]
    found = [np.empty(len(row), dtype=np.float32) for row in ids]
    batches = list(_batches(ids, scorer.resets, BATCH_IDS if device.type == "cpu" else DEVICE_BATCH_IDS))
    batches.sort(key=lambda batch: -batch.num_ids)  # long documents first, so that none is left for one thread alone

    def score(batch: _Batch) -> int:
        if batch.height == 1 and batch.rows[0][2] - batch.rows[0][1] > batch.width:
            _score_long(scorer, ids, found, batch.rows[0], device)
        else:
            _score_batch(scorer, ids, found, batch, device)
        return batch.num_ids

    if device.type != "cpu":
        for batch in batches:
            _tell(progress, score(batch))
        return _checked(found)
    before = torch.get_num_threads()
    # torch's number of threads is a thread's own: each of these computes alone.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(score, batch) for batch in batches]):
            _tell(progress, future.result())
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted run waits for the batches at hand only
        torch.set_num_threads(before)
    return _checked(found)


def _checked(found: list[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    for number, values in enumerate(found):
        check_finite(values, "entropy", f"text {number + 1} of {len(found)}")
    return found


def _tell(progress: Callable[[int], None] | None, num_bytes: int) -> None:
    if progress is not None:
        progress(num_bytes)


def _ids(text: bytes) -> npt.NDArray[np.int64]:
    ids = np.empty(len(text) + 1, dtype=np.int64)
    ids[0] = BOS
    ids[1:] = np.frombuffer(text, dtype=np.uint8)
    ids[1:] += OFFSET
    return ids


def _batches(ids: Sequence[npt.NDArray[np.int64]], resets: frozenset[int], batch_ids: int) -> Iterator[_Batch]:
    """Full batches as they fill up, then those that did not. Their order is of no consequence."""
    waiting: dict[int, list[Row]] = {}
    for document, row in enumerate(ids):
        for begin, end in _rows(row, resets):
            width = next((width for width in WIDTHS if width >= end - begin), None)
            if width is None:
                yield _Batch(((document, begin, end),), WIDTHS[-1], 1)
                continue
            rows, height = waiting.setdefault(width, []), max(1, batch_ids // width)
            rows.append((document, begin, end))
            if len(rows) == height:
                yield _Batch(tuple(rows), width, height)
                del waiting[width]
    for width, rows in waiting.items():
        yield _Batch(tuple(rows), width, max(1, batch_ids // width))


def _rows(ids: npt.NDArray[np.int64], resets: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Stretches in front of which the scorer forgets everything."""
    if not resets - {BOS}:  # BOS is in front only
        yield 0, len(ids)
        return
    yield from stretches(ids.tolist(), resets, len(ids))


def _score_batch(
    scorer: Scorer,
    ids: Sequence[npt.NDArray[np.int64]],
    found: Sequence[npt.NDArray[np.float32]],
    batch: _Batch,
    device: torch.device,
) -> None:
    # Always of the full height: another shape might be computed by another kernel.
    rows = np.full((batch.height, batch.width), PAD, dtype=np.int64)
    for row, (document, begin, end) in zip(rows, batch.rows, strict=False):
        row[: end - begin] = ids[document][begin:end]
    # By way of a state and not `scores`: rows hold one document each, so no mask of segments is wanted.
    state = _started(scorer, [begin for _, begin, _ in batch.rows], batch.height)
    scores = scorer.extend_scores(torch.from_numpy(rows).to(device), state)[0].float().cpu().numpy()
    for row, (document, begin, end) in zip(scores, batch.rows, strict=False):
        found[document][begin:end] = row[: end - begin]


def _started(scorer: Scorer, positions: Sequence[int], height: int) -> ScorerState:
    """The state in front of rows that begin at these positions of their documents; 0 for further ones.

    A line in the middle of a document keeps its rotary positions: with others its entropies would be the same in exact
    arithmetic, but not to 1e-4 in float32.
    """
    state = scorer.start(height)
    for row, position in enumerate(positions):
        if position:
            assert isinstance(state, StackCache)  # only a transformer starts anew at lines
            state = state.forget([row], position)
    return state


def _score_long(
    scorer: Scorer,
    ids: Sequence[npt.NDArray[np.int64]],
    found: Sequence[npt.NDArray[np.float32]],
    row: Row,
    device: torch.device,
) -> None:
    document, first, last = row
    state = _started(scorer, [first], 1)
    for begin in range(first, last, WIDTHS[-1]):
        end = min(begin + WIDTHS[-1], last)
        width = next(width for width in WIDTHS if width >= end - begin)
        padded = np.full((1, width), PAD, dtype=np.int64)
        padded[0, : end - begin] = ids[document][begin:end]
        scores, read = scorer.extend_scores(torch.from_numpy(padded).to(device), state)
        found[document][begin:end] = scores[0, : end - begin].float().cpu().numpy()
        state = read.keep([end - begin])
