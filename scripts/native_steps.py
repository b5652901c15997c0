"""Decoding by the native backend against another commit's eager decoding, in turn: rows for docs/native.jsonl.

    python -m scripts.native_steps OLD_CHECKOUT docs/native.jsonl [CASE ...]

A process for each side, on one thread, CPU seconds; both read the same bytes with the same weights. One side
after the other runs a case, `TURNS` times; the row has the medians and their quotient.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TURNS = 5
PROMPT, PLACE = 256, 4000
"""Ids of the sampled cases' prompt, and where in the benchmark's text it begins."""

# name: (model, form, sequences, context, bytes, strategy of the new side)
CASES: dict[str, tuple[str, str, int, int, int, str]] = {
    "69m fp32": ("69m", "fp32", 1, 1024, 96, "ar"),
    "69m int8": ("69m", "int8", 1, 1024, 96, "ar"),
    "tiny ar": ("bltkit:tiny", "fp32", 1, PROMPT, 256, "ar"),
    "tiny BLT-S": ("bltkit:tiny", "fp32", 1, PROMPT, 256, "speculative"),
    "69m fp32 x 16, 128": ("69m", "fp32", 16, 128, 24, "ar"),
    "69m fp32 x 16, 1024": ("69m", "fp32", 16, 1024, 24, "ar"),
    "69m int8 x 16, 128": ("69m", "int8", 16, 128, 24, "ar"),
    "69m int8 x 16, 1024": ("69m", "int8", 16, 1024, 24, "ar"),
}


def work() -> None:
    """One side: reads cases as JSON lines, answers with CPU seconds and what was made."""
    import torch

    from bltkit.bench.decode import HeldTo, decoding_rows
    from bltkit.checkpoint import load_bundle, resolve_model
    from bltkit.generate import Batch, Request, Sampling, Session, parse_strategy
    from bltkit.vocab import encode

    name = "bench_subject" if find_spec("bltkit.bench.bench_subject") else "subject"  # as older commits call it
    bench_subject = import_module(f"bltkit.bench.{name}")

    torch.set_num_threads(1)
    subjects: dict[Any, Any] = {}
    sessions: dict[Any, Any] = {}

    def subject_for(name: str, form: str, backend: str) -> Any:
        if (name, form, backend) not in subjects:
            if backend == "native":
                from bltkit.native import on_backend

                eager = subject_for(name, form, "eager")
                model, scorer = on_backend("native", eager.model, eager.scorer)
                made = type(eager)(eager.name, model, scorer, eager.rule)
            elif form != "fp32":
                made = subject_for(name, "fp32", "eager").reformed(form)
            elif name.startswith("bltkit:"):
                made = bench_subject.subject_of(name, load_bundle(resolve_model(name)))
            else:
                made = bench_subject.preset_subject(name, decoding_rows(2048, 128))
            subjects[name, form, backend] = made
        return subjects[name, form, backend]

    for line in sys.stdin:
        name, form, rows, context, count, strategy, backend = json.loads(line)
        key = (name, form, rows, context, backend)
        sampled = name.startswith("bltkit:")
        if key not in sessions:
            subject = subject_for(name, form, backend)
            text = bench_subject.benchmark_text(PLACE + context)[PLACE:]
            ids = encode(text)[None, :context] if sampled else decoding_rows(context, count, rows)[:, :context]
            sessions[key] = Session.start(subject.model, subject.scorer, subject.rule, rows).extend(ids)
        if sampled:
            named = (
                {} if strategy == "ar" else {"strategy": parse_strategy(strategy)}
            )  # older requests have no such field
            requests = [Request(Sampling(temperature=0.8, seed=1), count, **named)]
        else:
            fed = decoding_rows(context, count, rows)[:, context:].tolist()
            greedy = Sampling(temperature=0.0)
            requests = [Request(greedy, count, constraint=HeldTo(tuple(own))) for own in fed]
        batch = Batch().admit(sessions[key].fork(), requests)
        batch, _ = batch.step()
        data, began = b"", time.process_time()
        while batch.rows:
            batch, chunks = batch.step()
            data += b"".join(chunk.data for _, chunk in chunks)
        seconds = time.process_time() - began
        sys.stdout.write(json.dumps([seconds, data.hex()]) + "\n")
        sys.stdout.flush()


class Side:
    """A process with one checkout's package."""

    def __init__(self, checkout: Path, backend: str) -> None:
        self.backend = backend
        self.commit = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], text=True)
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, case: tuple[Any, ...], strategy: str) -> tuple[float, str]:
        """CPU seconds of a run, and the bytes made."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([*case[:5], strategy, self.backend]) + "\n")
        self.process.stdin.flush()
        seconds, data = json.loads(self.process.stdout.readline())
        return seconds, data


def main() -> None:
    """Runs the cases and appends a row for each."""
    if sys.argv[1:] == ["--work"]:
        work()
        return
    old_checkout, out, *names = sys.argv[1:]
    old, new = Side(Path(old_checkout), "eager"), Side(Path(__file__).resolve().parents[1], "native")
    for name in names or CASES:
        case = CASES[name]
        seconds: dict[str, list[float]] = {"old": [], "new": []}
        texts: dict[str, str] = {}
        for turn in range(TURNS + 1):
            for label, side, strategy in (("old", old, "ar"), ("new", new, case[5])):
                taken, texts[label] = side.run(case, strategy)
                if turn:  # the first one prepares
                    seconds[label].append(taken)
        total = case[2] * case[4]
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        row = {
            "case": name,
            "model": case[0],
            "form": case[1],
            "sequences": case[2],
            "context": case[3],
            "bytes": total,
            "strategy": case[5],
            "against": "ar",
            "ratio": round(medians["old"] / medians["new"], 3),
            "bytes_per_cpu_second": {label: round(total / value, 1) for label, value in medians.items()},
            "cpu_seconds": seconds,
            "same_bytes": texts["old"] == texts["new"],
            "old_commit": old.commit.strip(),
            "commit": new.commit.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, other work on both",
        }
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, row["ratio"], row["bytes_per_cpu_second"], row["same_bytes"])


if __name__ == "__main__":
    main()
