"""Benchmarks side by side with a peer: same weights, same threads, runs in turn, and equal answers checked first.

What is measured comes as a `BenchRow`, which says on which machine and commit; decoding makes several. A server under
load is measured over HTTP (`serving`).
"""

from bltkit.bench.bench_subject import BenchSubject, benchmark_text, preset_subject, row, subject_of
from bltkit.bench.decode import NUM_BYTES, decode, decoding_rows
from bltkit.bench.generate import generate, strategies_of
from bltkit.bench.machine_rates import MachineRates, machine_rates
from bltkit.bench.patch import patch
from bltkit.bench.peer import PEERS
from bltkit.bench.prefill import prefill
from bltkit.bench.prompt_texts import prompts_of, repeated_share
from bltkit.bench.record import BenchRow, DecodingFigures, Form, append_rows
from bltkit.bench.server_load import ServingRow, serving
from bltkit.bench.timing import RepeatLimits, Timing
from bltkit.bench.train import train
from bltkit.bench.weight_forms import weights

__all__ = [
    "NUM_BYTES",
    "PEERS",
    "BenchRow",
    "BenchSubject",
    "DecodingFigures",
    "Form",
    "MachineRates",
    "RepeatLimits",
    "ServingRow",
    "Timing",
    "append_rows",
    "benchmark_text",
    "decode",
    "decoding_rows",
    "generate",
    "machine_rates",
    "patch",
    "prefill",
    "preset_subject",
    "prompts_of",
    "repeated_share",
    "row",
    "serving",
    "strategies_of",
    "subject_of",
    "train",
    "weights",
]
