"""A sample of a text of any size: stretches evenly spaced over its bytes, the same each time."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from bltkit.data.sources import read_texts

SAMPLE_BYTES = 400_000
"""Text that thresholds are calibrated on: the error of a mean patch size from it is well below one per cent."""

PIECE_BYTES = 4096
"""Longest stretch taken at one place, so that many places come into the sample."""

_SHORT_DOCUMENTS = 64
"""Most documents in place of one stretch: the model runs once for each."""


def sample_documents(files: Sequence[str], num_bytes: int = SAMPLE_BYTES) -> Iterator[bytes]:
    """Stretches of the sources' documents, the same each time. Weights of sources play no part."""
    documents = read_texts(files)
    for number, begin, end in stretches(documents.ends, num_bytes):
        yield documents[number][begin:end]


def stretches(ends: Sequence[int], num_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Document, begin and end of each stretch, of documents that end there in all text: evenly spaced over its bytes,
    so that many short documents count for no more than one of their size. All where there is no more than `num_bytes`.

    In place of a stretch come several documents where they are shorter than one.
    """

    def size(number: int) -> int:
        return ends[number] - (ends[number - 1] if number else 0)

    if ends[-1] <= num_bytes:
        yield from ((number, 0, size(number)) for number in range(len(ends)))
        return
    count = max(1, num_bytes // PIECE_BYTES)
    free = 0  # the first short document that was not taken yet
    for stretch in range(count):
        middle = (2 * stretch + 1) * ends[-1] // (2 * count)
        number = bisect_right(ends, middle)
        if size(number) >= PIECE_BYTES:
            within = middle - (ends[number] - size(number))
            begin = max(0, min(within - PIECE_BYTES // 2, size(number) - PIECE_BYTES))
            yield number, begin, begin + PIECE_BYTES
            continue
        first = max(number, free)
        before = ends[first] - size(first) if first < len(ends) else 0
        for number in range(first, min(first + _SHORT_DOCUMENTS, len(ends))):
            if ends[number] - before > PIECE_BYTES:
                break
            yield number, 0, size(number)
            free = number + 1
