"""A Hugging Face causal language model under evaluation, asked the same questions in the same bytes as a BLT.

Scoring: context and continuation are tokenised together and split at the first token that holds a byte of the
continuation. In front stands BOS, or EOS where the tokenizer has no BOS (`hf` of lm-evaluation-harness puts EOS
in front of an empty context only). Bytes that are not UTF-8 are tokenised as U+FFFD, but count as the bytes they are.
Logits are computed for whole rows; nothing is shared between requests.
"""

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bltkit.checkpoint import resolve_model
from bltkit.checkpoint.fingerprint import CHECKPOINT, fingerprint
from bltkit.eval.requests import Answer, Coded, Compression, Continuation, Likelihood, Request, Scored, Written
from bltkit.eval.score import DEFAULT_CONTEXT
from bltkit.eval.subjects.subject import ContextWindow
from bltkit.eval.subjects.token_text import TextTokenizer, Tokens, spans
from bltkit.eval.subjects.token_writing import TokenPrompt, write

_T = TypeVar("_T")

PREFIX = "token:"
FILES = (*CHECKPOINT, "*.bin", "*.model", "vocab*", "merges*")
"""What decides the answers: weights, configuration, tokenizer."""
BATCH_TOKENS = 4096
"""Positions of a pass: logits of that many take 2 GB in fp32 for a vocabulary of 128,000."""


@dataclass(frozen=True)
class ScoredTokens:
    """A line of a batch. ids: BOS and tokens of one text, of which those from `first` on are scored."""

    request: int
    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True, eq=False)
class TokenModel:
    """A causal model of transformers with its tokenizer as a `Subject`.

    start_token: what stands in front of every text. ends: tokens that end one. positions: tokens that the model can be
    shown at once, None where its configuration names no limit; a longer context is cut on its left, for a generation so
    that `max_bytes` tokens fit too, but to no less than half.
    context: bytes of the windows of a `Compression`, where `positions` tokens hold as many.
    batch_tokens: how much is computed at once; it bounds memory and changes nothing but rounding.
    """

    kind: ClassVar[str] = "token"

    model: Any = field(repr=False)
    tokenizer: TextTokenizer = field(repr=False)
    name: str
    fingerprint: str
    start_token: int
    ends: frozenset[int]
    positions: int | None
    context: int = DEFAULT_CONTEXT
    batch_tokens: int = BATCH_TOKENS

    @classmethod
    def load(
        cls,
        name: str,
        *,
        context: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "TokenModel":
        """From `token:DIR` or `token:hf:OWNER/NAME`; of the hub's files JSON and safetensors only, no code.

        Raises ValueError where there is no causal model, or no fast tokenizer, and for a context below 2.
        """
        context = DEFAULT_CONTEXT if context is None else context
        if context < 2:
            raise ValueError(f"context = {context}: a window holds at least 2 bytes; say for example {DEFAULT_CONTEXT}")
        directory = resolve_model(name.removeprefix(PREFIX))
        model, tokenizer = _loaded(str(directory), dtype)
        return cls(
            model.eval().to(device),
            TextTokenizer(tokenizer),
            name,
            fingerprint(directory, FILES, (f"context={context}", f"dtype={dtype}")),
            _start_token(model, tokenizer, name),
            _ends(model, tokenizer),
            _positions(model.config),
            context,
            batch_tokens,
        )

    @property
    def window(self) -> ContextWindow | None:
        """`positions`, as every subject says it."""
        return None if self.positions is None else ContextWindow(self.positions, "tokens")

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Subject.answers`. Raises ValueError for a continuation that its tokenizer drops, and broken weights."""
        yield from self._scored(requests)
        yield from self._written(requests)

    def _scored(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        asked = [(at, one) for at, one in enumerate(requests) if not isinstance(one, Continuation)]
        rows, cuts = list[ScoredTokens](), dict[int, int]()
        for (at, request), tokens in zip(asked, self.tokenizer.encode([_text(one) for _, one in asked]), strict=True):
            own, cuts[at] = self._rows(at, request, tokens)
            rows += own
            if not own:
                yield at, Coded(0.0, len(_text(request)))
        left = Counter(row.request for row in rows)
        sums, greedy = dict.fromkeys(left, 0.0), dict.fromkeys(left, True)
        for batch in _batches(rows, [len(row.ids) for row in rows], self.batch_tokens):
            for row, (logprob, best) in zip(batch, self._score(batch), strict=True):
                at = row.request
                sums[at], greedy[at], left[at] = sums[at] + logprob, greedy[at] and best, left[at] - 1
                if not left[at]:
                    yield at, _answer(requests[at], sums[at], greedy[at], cuts[at])

    def _rows(self, at: int, request: Request, tokens: Tokens) -> tuple[list[ScoredTokens], int]:
        """The rows that score a request, and bytes of its context cut off."""
        first, window = 0, None
        if isinstance(request, Likelihood):
            if request.context:
                border = len(request.context)
                first = next((i for i, end in enumerate(tokens.ends) if end > border), len(tokens.ids))
            if first == len(tokens.ids):
                raise ValueError(f"{self.name}: the tokenizer has no token for the text {request.continuation!r}")
        else:
            # A byte may be a token.
            window = self.context if self.positions is None else min(self.context, self.positions)
        found = list(spans(tokens, first, self.positions, window))
        rows = [
            ScoredTokens(at, (self.start_token, *tokens.ids[one.begin : one.stop]), 1 + one.first - one.begin)
            for one in found
        ]
        cut = min(tokens.begins[found[0].begin], len(request.context)) if isinstance(request, Likelihood) else 0
        return rows, cut

    @torch.inference_mode()
    def _score(self, rows: Sequence[ScoredTokens]) -> list[tuple[float, bool]]:
        """Of each row the sum of the scored tokens' log-probabilities, and is each of them the most probable."""
        width = max(len(row.ids) for row in rows) - 1
        device = next(self.model.parameters()).device
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
        for line, marks, row in zip(ids, mask, rows, strict=True):
            line[: len(row.ids) - 1] = torch.tensor(row.ids[:-1])
            marks[: len(row.ids) - 1] = 1
        given: dict[str, Any] = {}
        skipped = 0
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            skipped = min(row.first for row in rows) - 1
            given["logits_to_keep"] = width - skipped
        # Padding stands behind, where a causal model does not see it.
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **given).logits
        return [
            _sum(one[row.first - 1 - skipped :], row.ids[row.first :]) for one, row in zip(logits, rows, strict=True)
        ]

    def _written(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        asked = [(at, one) for at, one in enumerate(requests) if isinstance(one, Continuation)]
        yield from ((at, Written(b"", "length")) for at, one in asked if not one.max_bytes)
        asked = [(at, one) for at, one in asked if one.max_bytes]
        prompts, sizes = list[TokenPrompt](), list[int]()
        for (at, request), tokens in zip(asked, self.tokenizer.encode([one.context for _, one in asked]), strict=True):
            begin = 0
            if self.positions is not None:
                room = max(self.positions - request.max_bytes, self.positions // 2)
                begin = max(0, len(tokens.ids) + 1 - max(room, 1))
            cut = ([*tokens.begins, len(request.context)])[begin]
            prompts.append(TokenPrompt(at, request, (self.start_token, *tokens.ids[begin:]), cut))
            # A token is several bytes of most texts.
            sizes.append(len(prompts[-1].ids) + request.max_bytes // 3)
        for batch in _batches(prompts, sizes, self.batch_tokens):
            yield from write(self.model, self.tokenizer, batch, self.ends, self.positions)


def _loaded(directory: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, and its tokenizer."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise ValueError("a token model needs transformers: pip install 'bltkit[peer]'") from None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True), tokenizer
    except Exception as error:  # OSError, ValueError, KeyError, what safetensors and tokenizers raise: no common base
        raise ValueError(
            f"model {PREFIX}{directory}: {' '.join(str(error).split())[:300]}; a directory is needed that holds a "
            "causal model of transformers with its tokenizer"
        ) from None
    finally:
        if shown:
            logging.enable_progress_bar()


def _start_token(model: Any, tokenizer: Any, name: str) -> int:
    for owner, role in ((tokenizer, "bos"), (tokenizer, "eos"), (model.config, "bos"), (model.config, "eos")):
        value = getattr(owner, f"{role}_token_id", None)
        if isinstance(value, int):
            return value
    raise ValueError(
        f"{name}: neither tokenizer nor configuration names a BOS or EOS token; set bos_token in its files"
    )


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: what the generation settings say, and the tokenizer's EOS."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = set(named) if isinstance(named, Iterable) else {named}
    return frozenset({*found, tokenizer.eos_token_id} - {None})


def _positions(config: Any) -> int | None:
    own = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return next((value for name in names if isinstance(value := getattr(own, name, None), int) and value > 0), None)


def _text(request: Request) -> bytes:
    """What is tokenised in one piece."""
    if isinstance(request, Likelihood):
        return request.context + request.continuation
    return request.text if isinstance(request, Compression) else request.context


def _answer(request: Request, logprob: float, greedy: bool, cut: int) -> Answer:
    if isinstance(request, Compression):
        return Coded(-logprob, len(request.text))
    return Scored(logprob, greedy, cut)


def _batches(items: Sequence[_T], sizes: Sequence[int], most: int) -> Iterator[list[_T]]:
    """The items, longest first, in groups of about one size whose sum, padded, is `most` at most (but at least one)."""
    order = sorted(range(len(items)), key=lambda at: -sizes[at])
    while order:
        count = max(1, most // max(1, sizes[order[0]]))
        yield [items[at] for at in order[:count]]
        order = order[count:]


def _sum(logits: Tensor, ids: Sequence[int]) -> tuple[float, bool]:
    """logits: [n or more, V], of which the first n predict the n ids."""
    wide = logits[: len(ids)].to(torch.promote_types(logits.dtype, torch.float32))
    targets = torch.tensor(ids, device=wide.device)
    total = float(wide.log_softmax(-1).gather(-1, targets[:, None]).double().sum())
    if total != total:
        raise ValueError(
            "the model gives no finite probabilities: its weights are broken, or too large for their dtype"
        )
    return total, bool((wide.argmax(-1) == targets).all())
