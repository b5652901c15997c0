"""Benchmarks side by side with a peer: same weights, same threads, runs in turn, and equal answers checked first.

Every function returns a `Row` that says what was measured, on which machine and commit.
"""

from bltkit.bench.decode import decode
from bltkit.bench.patch import patch
from bltkit.bench.peer import PEERS
from bltkit.bench.prefill import prefill
from bltkit.bench.subject import Subject, benchmark_text, preset_subject, subject_of
from bltkit.bench.timing import Limits, Row, Timing
from bltkit.bench.train import train

__all__ = [
    "PEERS",
    "Limits",
    "Row",
    "Subject",
    "Timing",
    "benchmark_text",
    "decode",
    "patch",
    "prefill",
    "preset_subject",
    "subject_of",
    "train",
]
