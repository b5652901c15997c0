"""How much faster `bltkit.accelerate` generates than transformers: the rows of docs/accelerate.jsonl.

Run:  python -m scripts.accelerate [PRESET]
Both sides are `generate` of one `BltForCausalLM` in fp32 on one thread, held to a text by a logits processor, so that
they read the same patches; transformers runs with use_cache=False, since its cached path gives other ids. Rounds
alternate. A JSON row for each context has the medians and two ratios of the time per byte: of whole calls, and of the
bytes after the first, whose time is that of a call less that of a call for one byte. transformers makes fewer bytes a
call: each of them is a pass over everything.
"""

import json
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch

import bltkit
from bltkit.bench.bench_subject import preset_subject, row
from bltkit.bench.peer import compared, load_blt
from bltkit.bench.record import commit, machine
from bltkit.bench.timing import threads_of
from bltkit.checkpoint import Bundle, save_bundle

CONTEXTS = {256: 16, 1024: 8, 4096: 3}
"""Bytes of a prompt, and bytes of a call of transformers."""
NEW = 128
"""Bytes of a call of ours."""
ROUNDS = 3


class HeldTo:
    """A logits processor under which a text is written."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, self.ids[input_ids.shape[1]][None], 0.0)


def seconds(model: Any, ids: torch.Tensor, text: torch.Tensor, count: int, **options: Any) -> float:
    """Of a call for `count` bytes."""
    began = time.perf_counter()
    out = model.generate(ids, max_new_tokens=count, do_sample=False, logits_processor=[HeldTo(text)], **options)
    took = time.perf_counter() - began
    assert torch.equal(out[0], text[: ids.shape[1] + count])
    return took


def measured(preset: str, context: int, few: int) -> dict[str, Any]:
    """The row of one context."""
    text = row(context + NEW)[0]
    ids, subject = text[None, :context], preset_subject(preset, text[None])
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(f"{folder}/model", Bundle(subject.model, subject.scorer, subject.rule))
        model = load_blt(f"{folder}/model", preset)
    fast = bltkit.accelerate(model)
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "logits_processor": [HeldTo(text)]}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    sides = (fast.generate(ids, **options), model.generate(ids, **options, use_cache=False))
    difference = compared(*(torch.cat(side.logits) for side in sides))
    calls: dict[str, list[float]] = {"ours": [], "ours_first": [], "peer": [], "peer_first": []}
    for _ in range(ROUNDS):
        calls["ours"].append(seconds(fast, ids, text, NEW))
        calls["ours_first"].append(seconds(fast, ids, text, 1))
        calls["peer"].append(seconds(model, ids, text, few, use_cache=False))
        calls["peer_first"].append(seconds(model, ids, text, 1, use_cache=False))
    middle = {name: median(values) for name, values in calls.items()}
    ours = (middle["ours"] - middle["ours_first"]) / (NEW - 1)
    peer = (middle["peer"] - middle["peer_first"]) / (few - 1)
    starts = subject.patches(text[None]).starts[0, context : context + NEW]
    return {
        "what": "accelerate",
        "preset": preset,
        "context": context,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "new_bytes": NEW,
        "peer_new_bytes": few,
        "ratio_call": (middle["peer"] / few) / (middle["ours"] / NEW),
        "ratio_after_first": peer / ours,
        "ms_per_byte": {"ours": 1000 * ours, "peer": 1000 * peer},
        "seconds": calls,
        "max_difference": difference,
        "mean_patch_bytes": NEW / max(1, int(starts.sum())),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "command": f"python -m scripts.accelerate {preset}",
    }


if __name__ == "__main__":
    with threads_of(1):
        for length, count in CONTEXTS.items():
            print(json.dumps(measured(sys.argv[1] if len(sys.argv) > 1 else "69m", length, count)), flush=True)
