"""Costs of continuous batching, as ratios: the rows of docs/batches.jsonl.

Run:  python -m scripts.batches moves [tiny|69m] [SEQUENCES] [ROUNDS]
      python -m scripts.batches mixed

`moves`: the cost of leaving and of entering a full batch, and the longest round, in which windows slide, in median
rounds. `69m` has random weights: what is measured does not depend on them.
`mixed`: bytes per second of 32 sequences of one strategy and of two, in turn.
Measured in CPU seconds of this process, on one thread, so that other work on the machine counts for little.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bltkit
from bltkit.bench.record import commit, machine
from bltkit.generate import Request, Sampling, SequenceBatch, Session, parse_strategy
from bltkit.model import Blt, EntropyModel
from bltkit.model.presets import BLT_PRESETS, ENTROPY_PRESETS
from bltkit.vocab import encode

PROMPT = 256
"""Ids, BOS included."""
WARM_UP = 12
EVERY = 10
"""Rounds from one sequence's leaving to the next."""
TURNS = 5


def prompts(count: int) -> list[list[int]]:
    """Stretches of the README."""
    text = Path("README.md").read_bytes()
    return [encode(text[97 * at : 97 * at + PROMPT - 1]).tolist() for at in range(count)]


def opened(name: str) -> Session:
    """An empty session of a model."""
    lm = bltkit.load("bltkit:tiny")
    assert lm.rule is not None
    if name == "tiny":
        assert lm.model is not None
        return Session.start(lm.model, lm.scorer, lm.rule)
    generator = torch.Generator().manual_seed(0)
    model, scorer = Blt(BLT_PRESETS[name]), EntropyModel(ENTROPY_PRESETS[name])
    model.reset_parameters(generator)
    return Session.start(model.eval(), scorer.reset_parameters(generator).eval(), lm.rule)


def clocked(call: Callable[[], SequenceBatch]) -> tuple[float, SequenceBatch]:
    """CPU seconds, and the batch."""
    began = time.process_time()
    batch = call()
    return time.process_time() - began, batch


def stepped(batch: SequenceBatch) -> SequenceBatch:
    """One round further."""
    return batch.step()[0]


def moves(name: str, sequences: int, rounds: int) -> dict[str, Any]:
    """The row of entering, leaving and sliding."""
    empty = opened(name)
    sessions = [empty.extend(ids) for ids in prompts(8)]
    request = Request(Sampling(temperature=1.0), max_bytes=10**6)
    batch, at = SequenceBatch(lanes=sequences), 0
    seconds: dict[str, list[float]] = {"round": [], "leave": [], "enter": []}
    for _ in range(sequences):
        batch, at = batch.admit(sessions[at % 8], [request]), at + 1
    for turn in range(WARM_UP + rounds):
        took, batch = clocked(partial(stepped, batch))
        if turn >= WARM_UP:
            seconds["round"].append(took)
        if turn >= WARM_UP and turn % EVERY == 0:
            key = batch.rows[at * 7 % len(batch.rows)].key
            took, batch = clocked(partial(batch.cancel, [key]))
            seconds["leave"].append(took)
        while len(batch.rows) < sequences:  # one that ended by itself has its place taken, too
            took, batch = clocked(partial(batch.admit, sessions[at % 8], [request]))
            seconds["enter"].append(took)
            batch, at = batch.step()[0], at + 1
    middle = median(seconds["round"])
    row: dict[str, Any] = {"benchmark": "batch-moves", "model": name, "sequences": sequences, "rounds": rounds}
    row |= {kind: median(values) / middle for kind, values in seconds.items() if kind != "round"}
    row |= {f"{kind}_max": max(values) / middle for kind, values in seconds.items()}
    return row | {"round_seconds": middle, "prompt": PROMPT}


def mixed() -> dict[str, Any]:
    """The row of strategies side by side."""
    base = opened("tiny")
    session = Session.join([base] * 32).extend(prompts(32))
    sides = {
        "32 ar": ["ar"] * 32,
        "16 ar, 16 speculative": ["ar", "speculative"] * 16,
        "32 speculative": ["speculative"] * 32,
        "16 ar": ["ar"] * 16,
        "16 speculative": ["speculative"] * 16,
    }

    def rate(strategies: Sequence[str]) -> float:
        requests = [
            Request(Sampling(temperature=0.8, seed=seed), max_bytes=64, strategy=parse_strategy(name))
            for seed, name in enumerate(strategies)
        ]
        batch, made = SequenceBatch().admit(session.select(range(len(requests))), requests), 0
        began = time.process_time()
        while batch.rows:
            batch, chunks = batch.step()
            made += sum(len(chunk.data) for _, chunk in chunks)
        return made / (time.process_time() - began)

    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):
        for name, strategies in sides.items():
            measured = rate(strategies)
            if turn:
                rates[name].append(measured)
    first = median(rates["32 ar"])
    ratios = {name: median(values) / first for name, values in rates.items()}
    return {"benchmark": "batch-strategies", "model": "tiny", "ratios": ratios, "rates": rates, "prompt": PROMPT}


def main(kind: str, *more: str) -> None:
    """Print a row."""
    torch.set_num_threads(1)
    # As the server does: else Python's collector looks through all that was imported, for as long as four rounds.
    gc.freeze()
    name, sequences, rounds = [*more, *("tiny", "64", "400")[len(more) :]]
    row = mixed() if kind == "mixed" else moves(name, int(sequences), int(rounds))
    stamp = {"threads": 1, "commit": commit(), "machine": machine(torch.device("cpu"))}
    print(json.dumps(row | stamp | {"command": "python -m scripts.batches " + " ".join((kind, *more))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
