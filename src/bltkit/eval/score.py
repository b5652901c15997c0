"""Bits per byte of any text under a model: sliding windows, every byte scored exactly once.

The end of a byte's way through a trained model. A window is what the model sees at once: BOS and its bytes. Scores,
patches and logits are computed from the window alone, so each byte's probability depends on the bytes before it and on
nothing else: a proper predictive code, which an entropy coder could turn into that many bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bltkit.checkpoint import Bundle
from bltkit.model import CnnEntropy, EntropyModel
from bltkit.model.entropy import entropy
from bltkit.patching import PatchingRule, patch
from bltkit.vocab import PAD, encode, to_bytes

DEFAULT_CONTEXT = 2048
"""Bytes of a window where the model's training record names no row length."""
BATCH_BYTES = 16384
"""Positions that go through the model at once; logits of that many take 17 MB in fp32."""

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Window:
    """Bytes [begin, stop) of a text, of which [first, stop) are scored in this window."""

    begin: int
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class ByteScores:
    """What each byte of a text costs and where patches begin.

    nats: -ln p of each byte, p taken over all 260 ids as the model gives them (the special ids' share is not
        redistributed).
    opens: does the byte open a patch in the window that scores it; None where no rule places patches.
    """

    nats: Float[Tensor, " n"]
    opens: Bool[Tensor, " n"] | None


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text. `bits_per_byte` is over the text's own bytes; BOS and EOS do not count.

    mean_patch_bytes: bytes of text / patches that open at a scored byte; BOS's own patch is not counted, and a patch
        that reaches into the next window counts once, where its first byte is scored. None where no rule places any.
    """

    bits_per_byte: float
    nll_nats: float
    num_bytes: int
    mean_patch_bytes: float | None
    context: int
    stride: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def score(
    bundle: Bundle,
    text: str | bytes,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_bytes: int = BATCH_BYTES,
    progress: Progress | None = None,
) -> Score:
    """Bits per byte of `text` under a BLT, or under an entropy model where the bundle holds no BLT.

    context: bytes of a window; by default those of a training row, else 2048.
    stride: bytes from one window to the next, 1..context; by default context // 2. Every byte has at least
        context - stride bytes before it where the text has them.

    Raises ValueError for an empty text, a context or stride out of range, and a model that predicts no bytes.
    """
    data = to_bytes(text)
    if not data:
        raise ValueError("text: empty, there is nothing to score; give at least one byte")
    context, stride = window_shape(bundle.record, context, stride)
    found = byte_scores(bundle, data, context, stride, batch_bytes=batch_bytes, progress=progress)
    nats = float(found.nats.sum())
    if not math.isfinite(nats):
        raise ValueError("the model gives no finite probabilities; `blt check` looks for the cause")
    return Score(
        bits_per_byte=nats / math.log(2) / len(data),
        nll_nats=nats,
        num_bytes=len(data),
        mean_patch_bytes=None if found.opens is None else len(data) / int(found.opens.sum()),
        context=context,
        stride=stride,
    )


def window_shape(record: Mapping[str, Any], context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride with their defaults filled in. Raises ValueError for those out of range.

    A training row holds BOS and row_bytes - 1 bytes of text.
    """
    if context is None:
        context = int(record.get("row_bytes", DEFAULT_CONTEXT + 1)) - 1
    if context < 1:
        raise ValueError(f"context = {context}: a window holds at least 1 byte; say for example {DEFAULT_CONTEXT}")
    if stride is None:
        stride = max(1, context // 2)
    if not 1 <= stride <= context:
        raise ValueError(f"stride = {stride} is not in 1..{context} (the context); by default it is half of that")
    return context, stride


def windows(num_bytes: int, context: int, stride: int) -> Iterator[Window]:
    """The windows over a text of `num_bytes` bytes: every byte is scored in exactly one, in order.

    The first window scores all of its bytes, each further one the (up to) `stride` bytes behind the one before it.
    """
    begin, first = 0, 0
    while first < num_bytes:
        stop = min(begin + context, num_bytes)
        yield Window(begin, first, stop)
        begin, first = begin + stride, stop


def byte_scores(
    bundle: Bundle,
    data: bytes,
    context: int,
    stride: int,
    *,
    batch_bytes: int = BATCH_BYTES,
    progress: Progress | None = None,
) -> ByteScores:
    """The cost of every byte of `data`, in windows of `context` bytes that advance by `stride`; on the CPU, float64.

    batch_bytes: positions computed at once (at least one window); it bounds memory and changes nothing else.
    """
    predict = _predictor(bundle)
    device = bundle.device
    nats = torch.zeros(len(data), dtype=torch.float64)
    opens: Tensor | None = torch.zeros(len(data), dtype=torch.bool)
    rows = max(1, batch_bytes // max(1, min(context, len(data))))
    remaining = windows(len(data), context, stride)
    while group := list(islice(remaining, rows)):
        full = _rows([data[window.begin : window.stop] for window in group])
        lengths = torch.tensor([window.stop - window.begin for window in group])
        logits, starts = predict(full[:, :-1].to(device), lengths.to(device))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(wide.flatten(0, 1), full[:, 1:].flatten().to(device), reduction="none")
        each = each.double().cpu().unflatten(0, (len(group), -1))
        if starts is None:
            opens = None
        for row, window in enumerate(group):
            scored = slice(window.first - window.begin, window.stop - window.begin)
            nats[window.first : window.stop] = each[row, scored]
            if opens is not None and starts is not None:
                opens[window.first : window.stop] = starts[row, scored].cpu()
        if progress is not None:
            progress(group[-1].stop, len(data))
    return ByteScores(nats, opens)


def _rows(pieces: Sequence[bytes]) -> Int64[Tensor, "B T1"]:
    """BOS and the bytes of each piece, padded behind."""
    return torch.nn.utils.rnn.pad_sequence([encode(piece) for piece in pieces], batch_first=True, padding_value=PAD)


_Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(ids [B, T], their counts [B]) -> logits [B, T, 260] and "does the id after this one open a patch" [B, T]."""


def _predictor(bundle: Bundle) -> _Predict:
    if bundle.model is not None:
        return _blt_predictor(bundle)
    scorer, rule = bundle.scorer, bundle.rule
    if not isinstance(scorer, EntropyModel | CnnEntropy):
        held = "no model" if scorer is None else f"only a {type(scorer).__name__}, which predicts no bytes"
        raise ValueError(f"this checkpoint holds {held}; score with a BLT or an entropy model")
    reads_entropy = rule is not None and rule.streams and rule.scores in (None, "entropy")

    @torch.no_grad()
    def predict(ids: Tensor, num_bytes: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = scorer(ids)
        if not reads_entropy:
            return logits, None
        assert rule is not None
        return logits, patch(rule, ids, entropy(logits), num_bytes).starts[:, 1:]

    return predict


def _blt_predictor(bundle: Bundle) -> _Predict:
    model, scorer, rule = bundle.model, bundle.scorer, predictive_rule(bundle)
    assert model is not None

    @torch.no_grad()
    def predict(ids: Tensor, num_bytes: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = None if rule.scores is None or scorer is None else scorer.scores(ids)
        patches = patch(rule, ids, scores, num_bytes, documents=model.config.document_masks)
        return model(ids, patches), patches.starts[:, 1:]

    return predict


def predictive_rule(bundle: Bundle) -> PatchingRule:
    """The bundle's rule. Raises ValueError where it is missing, lacks its scorer, or looks ahead."""
    rule = bundle.rule
    if rule is None:
        raise ValueError("this BLT has no patching rule; give one, such as 'stride:k=4.5'")
    if rule.scores is not None and bundle.scorer is None:
        raise ValueError(
            f"rule {rule.kind!r} reads the {rule.scores} score of every byte, but the checkpoint holds no model that "
            "gives one; use a rule that reads none, such as 'space' or 'stride:k=4.5'"
        )
    if not rule.streams:
        raise ValueError(
            f"rule {rule.kind!r} looks at bytes after the border, so the result would not be a prediction; "
            "score with rule 'bpe' and a boundary model"
        )
    return rule
