"""How much reading shared prefixes once saves in evaluation: the rows of docs/evaluation.jsonl.

Run:  python -m scripts.shared_prefixes DATA [MODEL]
Each task's items, which have four choices, are asked in turn with prefixes shared and with every text alone, by the
same model in batches of the same size on one thread; a JSON row for each task has the medians of both, their ratio, and
the ratio of bytes read. Answers of both ways are held against one another.
"""

import json
import math
import sys
import time
from dataclasses import replace
from statistics import median

import torch

from bltkit.bench.record import commit, machine
from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Likelihood, Scored
from bltkit.eval.subjects import ByteModel, open_subject
from bltkit.eval.subjects.shared_prefixes import Tree
from bltkit.eval.tasks import parse_task

TASKS = (("hellaswag", 100, 8192), ("mmlu:astronomy", 8, 8192), ("mmlu:astronomy", 8, 2047))
"""Their items, and the context in bytes: five solved examples fit into the larger one. In the other one contexts lose
their beginnings, each at another byte, and only an item's choices still share theirs."""
ROUNDS = 5


def asked(name: str, count: int, data: str) -> list[Likelihood]:
    """What a task asks about its first items."""
    task = parse_task(name)
    items = list(task.items(Place.of([data])))[:count]
    found = [request for item in items for request in task.requests(item)]
    return [request for request in found if isinstance(request, Likelihood)]


def timed(subject: ByteModel, requests: list[Likelihood], calls: int) -> tuple[float, list[float]]:
    """Seconds, and the log-probabilities. calls: over which the requests are spread, an item's choices apart."""
    logprobs = [0.0] * len(requests)
    began = time.perf_counter()
    for first in range(calls):
        for at, answer in subject.answers(requests[first::calls]):
            assert isinstance(answer, Scored)
            logprobs[first + at * calls] = answer.logprob
    return time.perf_counter() - began, logprobs


def row(name: str, count: int, context: int, data: str, model: str) -> dict[str, object]:
    """The measurement of one task."""
    requests = asked(name, count, data)
    shared = open_subject(model, context=context)
    assert isinstance(shared, ByteModel)
    alone = replace(shared, worthwhile=math.inf)
    texts = [(request.context + request.continuation)[-context:-1] for request in requests]
    timed(shared, requests[:8], 1)
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    furthest = 0.0
    for _ in range(ROUNDS):
        # Texts of choices of one byte are equal, and would be read once even so.
        found = {"alone": timed(alone, requests, 4), "shared": timed(shared, requests, 1)}
        for way, (took, _) in found.items():
            seconds[way].append(round(took, 3))
        both = zip(found["alone"][1], found["shared"][1], strict=True)
        furthest = max(furthest, *(abs(one - other) for one, other in both))
    return {
        "benchmark": "shared-prefixes",
        "task": name,
        "items": count,
        "texts": len(texts),
        "ratio": median(seconds["alone"]) / median(seconds["shared"]),
        "bytes_ratio": sum(map(len, texts)) / Tree.of(texts).num_bytes,
        "seconds": seconds,
        "furthest_logprob": furthest,
        "model": model,
        "context": context,
        "batch_bytes": shared.batch_bytes,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
    }


def main(data: str, model: str = "bltkit:tiny") -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    for name, count, context in TASKS:
        print(json.dumps(row(name, count, context, data, model)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
