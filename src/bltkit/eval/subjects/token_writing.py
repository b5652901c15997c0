"""A token model writes: several prompts side by side, cached, each token following from its own prompt and seed alone.

Prompts are padded on their left, so that all rows grow at the same place; positions are counted from a row's own first
token. The noise of a draw is a function of (seed, number of the token), as for byte models (`generate/sampling.py`).
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bltkit.eval.requests import Continuation, Written
from bltkit.eval.subjects.token_text import TextTokenizer, TokenDecoder
from bltkit.generate.request import Finish
from bltkit.generate.stop import StopStrings


@dataclass(frozen=True)
class TokenPrompt:
    """ids: with BOS in front. cut: bytes of the context that are not in them."""

    key: int
    request: Continuation
    ids: tuple[int, ...]
    cut: int


class _PromptInProgress:
    """A prompt on its way; told the tokens chosen for it."""

    def __init__(self, prompt: TokenPrompt, tokenizer: TextTokenizer) -> None:
        self.prompt = prompt
        self.last = 0
        self.made = 0
        self.finish: Finish | None = None
        self._writer: TokenDecoder = tokenizer.writer(prompt.ids)
        self._stop = StopStrings(prompt.request.stop)
        self._data = b""
        self._bytes = 0

    def take(self, token: int, ends: frozenset[int], positions: int | None) -> None:
        """A token follows; sets `finish` where it is the last."""
        self.last, self.made = token, self.made + 1
        ended = token in ends
        self._feed(self._writer.end() if ended else self._writer.feed(token))
        limit = self.prompt.request.max_bytes
        full = positions is not None and len(self.prompt.ids) + self.made > positions
        if self._stop.found:
            self.finish = "stop"
        elif self._bytes >= limit:
            self.finish = "length"
        elif ended:
            self.finish = "eos"
        elif self.made >= limit or full:  # tokens without bytes must not go on for ever
            self.finish = "length"

    def _feed(self, data: bytes) -> None:
        data = data[: self.prompt.request.max_bytes - self._bytes]
        self._bytes += len(data)
        certain, self._stop = self._stop.feed(data)
        self._data += certain

    def written(self) -> Written:
        assert self.finish is not None
        return Written(self._data + (b"" if self._stop.found else self._stop.held), self.finish, self.prompt.cut)


def write(
    model: Any, tokenizer: TextTokenizer, prompts: Sequence[TokenPrompt], ends: frozenset[int], positions: int | None
) -> Iterator[tuple[int, Written]]:
    """Continues all prompts side by side; (key, what was written) as rows end.

    ends: tokens that end a text. positions: tokens that the model can be shown at once; None where it has no limit.
    """
    rows = [_PromptInProgress(prompt, tokenizer) for prompt in prompts]
    device = next(model.parameters()).device
    ids, mask = _left_padded([prompt.ids for prompt in prompts])
    ids, mask = ids.to(device), mask.to(device)
    takes = inspect.signature(model.forward).parameters
    cache = None
    while rows:
        given: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in takes:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            given["position_ids"] = places[:, -ids.shape[1] :]
        if "logits_to_keep" in takes:
            given["logits_to_keep"] = 1
        with torch.no_grad():
            out = model(input_ids=ids, **given)
        cache = out.past_key_values
        logits = out.logits[:, -1]
        running = [at for at, row in enumerate(rows) if row.finish is None]
        for at, token in zip(running, _choose([rows[at] for at in running], logits[running]), strict=True):
            rows[at].take(token, ends, positions)
            if rows[at].finish is not None:
                yield rows[at].prompt.key, rows[at].written()
        running = [at for at in running if rows[at].finish is None]
        # Ended rows are carried along until they are half of all: taking rows out copies the cache.
        if 2 * len(running) <= len(rows) and (not running or hasattr(cache, "batch_select_indices")):
            rows = [rows[at] for at in running]
            if rows:
                kept = torch.tensor(running, device=device)
                cache.batch_select_indices(kept)
                mask = mask[kept]
        ids = torch.tensor([[row.last] for row in rows], device=device)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)


def _choose(rows: Sequence[_PromptInProgress], logits: Float[Tensor, "R V"]) -> list[int]:
    wide = logits.double().cpu()
    if not bool(wide.amax(-1).isfinite().all()):
        raise ValueError("the logits are not finite: the model's weights are broken, or too large for their dtype")
    chosen = []
    for line, row in zip(wide, rows, strict=True):
        request = row.prompt.request
        if request.temperature > 0:
            line = (line - line.max()) / request.temperature + _gumbel(request.seed, row.made, len(line))
        chosen.append(int(line.argmax()))
    return chosen


def _gumbel(seed: int, place: int, size: int) -> Float[Tensor, " V"]:
    """Noise whose sum with log-weights has its maximum at an id drawn from them."""
    bits = np.random.Philox(key=np.array([seed % 2**64, place], dtype=np.uint64)).random_raw(size)
    # 52 bits: with one more, half a step below 1 would round to 1, whose noise is infinite.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(-np.log(-np.log(uniform)))


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "R T"], Int64[Tensor, "R T"]]:
    """Ids, and 1 where there are any."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
