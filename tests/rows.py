"""Growing rows of tiny models, and the slow, obvious way to decode one: the whole row anew for every byte.

What sessions, batches and strategies are compared with, and the counts that hooks on the modules make.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bltkit import vocab
from bltkit.generate import Chunk, Request, Sampling, Session, Stats, Strategy, Utf8
from bltkit.generate.sampling import choose
from bltkit.generate.top_logprobs import Tops
from bltkit.native.stack import NativeTransformer
from bltkit.patching import parse_rule
from tests import tiny
from tests.tiny import Case

TOLERANCE = 1e-10
LONGEST_BLOCK = 16
NEWLINE = vocab.OFFSET + ord("\n")
GREEDY = Sampling(temperature=0)


def start(case: Case, rows: int = 1) -> Session:
    """The session in front of the first id."""
    return Session.start(case.model, case.scorer, case.rule, rows)


def by(strategy: Strategy | None, request: Request) -> Request:
    """The request, decoded by this strategy, if there is one."""
    return request if strategy is None else replace(request, strategy=strategy)


def example(rule: str, window: int | None = 8, **fields: Any) -> Case:
    """A small model with a rule that needs no scorer."""
    stack = tiny.StackConfig(width=16, layers=1, heads=2, ffn_width=16, window=window)
    config = tiny.BltConfig(
        encoder=stack,
        latent=stack.replace(width=32, window=None),
        decoder=stack,
        ngrams=tiny.NgramConfig(buckets=31),
        **fields,
    )
    return Case(config, None, parse_rule(rule).model_dump(), [vocab.BOS])


def resets(case: Case) -> set[int]:
    """Ids in front of which something is forgotten; a pass may hold one as its first id only."""
    found = {vocab.BOS} if case.config.document_masks else set()
    config = case.scorer_config
    if isinstance(config, tiny.EntropyConfig | tiny.BoundaryConfig):
        found |= {vocab.BOS} if config.document_masks else set()
        found |= {NEWLINE} if config.reset_at_newline else set()
    return found


def one_pass(case: Case, ids: Sequence[int]) -> list[int]:
    """As many of the first ids as one pass may hold."""
    ends = (at for at, value in enumerate(ids) if at and value in resets(case))
    return list(ids[: next(ends, len(ids))])


class Uncached:
    """Whole rows by one forward pass each; what was computed is remembered."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.run = cache(lambda ids: case.run(ids))

    def assert_row(self, session: Session, ids: Sequence[int], row: int = 0) -> None:
        """A row of the session is the one that holds `ids`: logits, the answer for the byte behind it, and as many
        patches closed."""
        assert session.positions[row] == len(ids)
        assert session.texts[row].tail(len(ids)) == list(ids)
        if not ids:
            assert session.opens[row] and session.latents[row].positions == (0,)
            return
        logits, starts = self.run(tuple(ids))
        assert session.opens[row] == bool(starts[-1])
        # A BOS closes the patch in front of it, which the row up to there does not know.
        assert session.latents[row].positions == (int(starts[1:].sum()),)
        torch.testing.assert_close(session.logits[row], logits[-1], atol=TOLERANCE, rtol=0)

    def assert_rows(self, session: Session, rows: Sequence[Sequence[int]]) -> None:
        """All of them; where one is empty the session has no logits yet."""
        assert session.rows == len(rows)
        for row, ids in enumerate(rows):
            if all(rows) or not ids:
                self.assert_row(session, ids, row)

    def decode(self, ids: Sequence[int], request: Request) -> "Decoded":
        """The continuation of `ids`, a byte at a time."""
        row, data, constraint = list(ids) or [vocab.BOS], b"", request.constraint
        logprobs: list[float] = []
        tops: list[Tops] = []
        for _ in range(request.max_bytes):
            logits = self.run(tuple(row))[0][-1]
            seen = torch.zeros(len(logits), dtype=torch.bool)
            seen[row[-request.sampling.repetition_window :]] = True
            allowed = None if constraint is None else constraint.allowed(request.max_bytes - len(data))[None, None]
            found = choose(
                [request.sampling],
                logits[None, None],
                [len(row)],
                allowed=allowed,
                seen=seen[None, None],
                logprobs=True,
                tops=[request.top_logprobs],
            )
            value = found.ids[0][0]
            if value == vocab.EOS:
                return Decoded(data, "eos", logprobs, tops)
            row.append(value)
            data += bytes([value - vocab.OFFSET])
            assert found.logprobs is not None
            logprobs.append(found.logprobs[0][0])
            tops += [] if found.tops is None else found.tops[0]
            if any(stop in data for stop in request.stop):
                kept = cut_at_stop(data, request.stop)
                return Decoded(kept, "stop", logprobs[: len(kept)], tops[: len(kept)])
            constraint = None if constraint is None else constraint.after(value)
        return Decoded(data, "length", logprobs, tops)


@dataclass(frozen=True)
class Decoded:
    """What became of a request."""

    data: bytes
    finish: str
    logprobs: list[float]
    tops: Sequence[Tops] = ()

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> "Decoded":
        """All chunks of a generation together; only the last one says why it ended."""
        *before, last = chunks
        assert all(chunk.data and chunk.finish is None and chunk.stats is None for chunk in before)
        assert last.finish is not None and last.stats is not None
        data = b"".join(chunk.data for chunk in chunks)
        assert last.stats.bytes == len(data)
        logprobs = [value for chunk in chunks for value in chunk.logprobs]
        return cls(data, last.finish, logprobs, [value for chunk in chunks for value in chunk.top_logprobs])

    def assert_equals(self, other: "Decoded", request: Request) -> None:
        """The same bytes, the same end, the log-probabilities asked for."""
        assert (self.data, self.finish) == (other.data, other.finish)
        assert len(self.logprobs) == (len(self.data) if request.logprobs else 0)
        if request.logprobs:
            torch.testing.assert_close(
                torch.tensor(self.logprobs), torch.tensor(other.logprobs), atol=TOLERANCE, rtol=0
            )
        assert len(self.tops) == (len(self.data) if request.top_logprobs else 0)
        for mine, wanted in zip(self.tops, other.tops, strict=True):
            assert len(mine) == len(wanted) <= request.top_logprobs
            values = [torch.tensor([value for _, value in tops]) for tops in (mine, wanted)]
            torch.testing.assert_close(*values, atol=TOLERANCE, rtol=0)


def cut_at_stop(text: bytes, stop: Iterable[bytes]) -> bytes:
    """The text up to the stop string that is complete first, the longest if several are."""
    for end in range(len(text) + 1):
        complete = [len(s) for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(complete)]
    return text


def stats_of(chunks: Sequence[Chunk]) -> Stats:
    """The ledger of a finished generation."""
    stats = chunks[-1].stats
    assert stats is not None
    return stats


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """Consecutive stretches of a row of `length`."""
    steps: list[slice] = []
    at = 0
    largest = draw(st.sampled_from([1, 4, length]))
    while at < length:
        steps.append(slice(at, at + draw(st.integers(1, min(largest, length - at)))))
        at = steps[-1].stop
    return steps


def draw_request(data: st.DataObject, prompt: Sequence[int], longest: int = 12) -> Request:
    """What a row behind `prompt` may be asked to become: every option, alone and together."""
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0, 0, 0.5, 1.0, 2.0])),
        seed=data.draw(st.integers(0, 99)),
        top_p=data.draw(st.sampled_from([None, None, 0.9])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.0, 1.7])),
        repetition_window=data.draw(st.sampled_from([2, 64])),
        logit_bias=data.draw(st.sampled_from([{}, {}, {100: 4.0, 101: -3.5, vocab.EOS: -100.0}])),
    )
    # Many single bytes: models without training seldom make a string of two that somebody thought of.
    stop = data.draw(st.sampled_from([(), (), tuple(bytes([byte]) for byte in range(0, 256, 9)), (b"ab", b"\n")]))
    return Request(
        sampling=sampling,
        max_bytes=data.draw(st.integers(0, longest)),
        stop=stop,
        constraint=Utf8.behind(vocab.decode(prompt)) if data.draw(st.booleans()) else None,
        logprobs=data.draw(st.booleans()),
        top_logprobs=data.draw(st.sampled_from([0, 0, 3])),
    )


@torch.no_grad()
def tempered(case: Case, damping: float, eos: float = 1.0) -> Case:
    """The case with weights changed: latents count less by `damping`, so that drafts without them agree with the full
    model more often, and EOS comes more often by `eos`, the factor on its row of the head. Every strategy can run it:
    it counts as trained for blocks."""
    changed = replace(case, config=case.config.replace(diffusion_block=case.config.diffusion_block or LONGEST_BLOCK))
    if changed.config.decoder_cross_attn:
        for block in changed.model.decoder.cross:
            block.get_submodule("out").get_parameter("weight").mul_(damping)
    else:
        changed.model.decoder.patch_projection.weight.mul_(damping)
    changed.model.decoder.head.weight[vocab.EOS].mul_(eos)
    return changed


@torch.no_grad()
def blurred(case: Case, sharpness: float) -> Case:
    """The case with what tells bytes apart made less by `sharpness`, and the encoder's layers with it: at 0 all that
    the decoder reads is alike, so that what it says of a masked cell is what it says of the next byte."""
    blurry = replace(case)
    blurry.__dict__["model"] = model = copy.deepcopy(case.model)
    for table in [model.embed.bytes.weight, *([] if model.decoder.bytes is None else [model.decoder.bytes.weight])]:
        table.copy_(model.embed.bytes.weight[:1] + sharpness * (table - table[:1]))
    if model.config.ngrams.sizes:
        model.embed.get_parameter("ngrams").mul_(sharpness)
    for name, weight in model.encoder.stack.named_parameters():
        if name.endswith(("out.weight", "down.weight")):
            weight.mul_(sharpness)
    return blurry


@contextmanager
def counted(session: Session) -> Iterator[Counter[str]]:
    """Forward calls by what the ledger calls them, and of pooling, while the context is open."""
    model, found = session.model, Counter[str]()
    stages = {
        "latent": model.latent.stack.layers[0],
        "decoder": model.decoder.stack.layers[0],
        "pooling": model.encoder.patch_projection,
        "patch_kv": model.decoder.patch_projection,
    }
    encoder: Any = model.encoder.stack
    inside = encoder.through

    def through(*args: Any) -> Any:  # it may have no layers
        found["encoder"] += 1
        return inside(*args)

    encoder.through = through
    natives: dict[str, Any] = {"encoder": encoder, "latent": model.latent.stack, "decoder": model.decoder.stack}
    natives = {name: stack for name, stack in natives.items() if isinstance(stack, NativeTransformer)}
    kernels = {name: stack._extend for name, stack in natives.items()}
    for name, stack in natives.items():  # runs its layers in one call, through no module

        def native_call(*args: Any, name: str = name) -> None:
            found[name] += 1
            kernels[name](*args)

        stack._extend = native_call
    handles = []
    for name, module in stages.items():

        def count(*_: Any, name: str = name) -> None:
            found[name] += 1

        handles.append(module.register_forward_pre_hook(count))
    scorer: Any = session.scorer
    if scorer is not None:
        own = scorer.extend_scores

        def extend_scores(*args: Any) -> Any:
            found["entropy"] += 1
            return own(*args)

        scorer.extend_scores = extend_scores
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        del encoder.through
        for name, stack in natives.items():
            stack._extend = kernels[name]
        if scorer is not None:
            del scorer.extend_scores


def storage_bytes(value: Any, without: Sequence[str] = ("latents", "texts", "slots")) -> int:
    """Memory of all tensors that a session keeps alive, whoever they belong to; weights and `without` left out."""
    sizes: dict[int, int] = {}
    _collect(value, sizes, set(), {*without, "model", "scorer", "rule"})
    return sum(sizes.values())


def _collect(value: Any, sizes: dict[int, int], seen: set[int], without: set[str]) -> None:
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, sizes, seen, without)
    elif is_dataclass(value) or type(value).__module__.startswith("bltkit."):
        names = [f.name for f in fields(value)] if is_dataclass(value) else []
        for name in {*names, *vars(value)} - without:
            _collect(getattr(value, name), sizes, seen, without)
