"""A BLT under evaluation: likelihoods and generations through the engine, shared prefixes read once.

What is computed is what a single text alone would give: sessions equal the uncached model, rows do not see each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bltkit.checkpoint import Bundle, resolve_model
from bltkit.checkpoint.fingerprint import fingerprint
from bltkit.eval.requests import Answer, Coded, Compression, Continuation, Likelihood, Request, Scored, Written
from bltkit.eval.score import byte_scores, predictive_rule, window_shape
from bltkit.eval.subjects.shared_prefixes import ROOT, WORTHWHILE, Tree, Visit, walk
from bltkit.eval.subjects.subject import ContextWindow
from bltkit.generate import Autoregressive, Chunk, Sampling, SequenceBatch, Session, Strategy
from bltkit.generate import Request as EngineRequest
from bltkit.generate.open_bundle import open_bundle
from bltkit.generate.scoring import all_logprobs
from bltkit.model.quantize import form_of
from bltkit.native import on_backend, parse_backend
from bltkit.vocab import BOS, NEVER_EMITTED, OFFSET

BATCH_BYTES = 8192
"""Positions of a pass: logits of that many take 8.5 MB in fp32."""
ROWS = 32
"""Generations side by side."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Target:
    """Bytes [first, last] of text `request` that the logits of a node, or its parent's last ones, predict."""

    request: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class ByteModel:
    """A BLT, its scorer and rule as a `Subject`.

    context: bytes of text that the model is shown at once, by default those of a training row, else 2048. A longer
        context is cut on its left; of a generation so that what is written fits too, but to no less than half.
    strategy: how it writes; only `diffusion` changes what.
    batch_bytes, rows: how much is computed at once; they bound memory and change nothing but rounding.
    backend: what runs the steps of sessions; whole texts are compressed in eager mode.
    worthwhile: bytes that sharing a stretch has to save; without bound, every text is read alone.
    """

    kind: ClassVar[str] = "bltkit"

    bundle: Bundle = field(repr=False)
    name: str
    fingerprint: str
    context: int
    strategy: Strategy = field(default_factory=Autoregressive)
    batch_bytes: int = BATCH_BYTES
    rows: int = ROWS
    worthwhile: float = WORTHWHILE
    backend: str = "eager"

    @classmethod
    def load(
        cls,
        name: str,
        *,
        context: int | None = None,
        strategy: Strategy | None = None,
        batch_bytes: int = BATCH_BYTES,
        device: str | torch.device = "cpu",
        weights: str | None = None,
        scorer_weights: str | None = None,
        backend: str = "eager",
    ) -> "ByteModel":
        """From a MODEL as users name it. Raises ValueError where it is none, or writes nothing."""
        directory = resolve_model(name)
        strategy = strategy or Autoregressive()
        bundle = open_bundle(directory, device=device, weights=weights, scorer_weights=scorer_weights)
        context, _ = window_shape(bundle.record, context, None)
        settings = [f"context={context}", f"strategy={strategy.model_dump_json()}"]
        settings += [f"weights={form}" for form in _forms(bundle) if form != "fp32"]
        settings += [] if parse_backend(backend) == "eager" else [f"backend={backend}"]
        mark = fingerprint(directory, more=settings)
        subject = cls(bundle, name, mark, context, strategy, batch_bytes, backend=backend)
        subject.start()
        return subject

    @property
    def window(self) -> ContextWindow:
        """`context`, as every subject says it."""
        return ContextWindow(self.context, "bytes")

    def start(self) -> Session:
        """A session behind BOS. Raises ValueError for a bundle or a strategy that cannot be evaluated."""
        if self.bundle.model is None:
            raise ValueError(f"{self.name} holds no BLT, only a model that places patches; evaluate a BLT's checkpoint")
        self.strategy.check(self.bundle.model)
        return Session.start(*self._stepping, predictive_rule(self.bundle)).extend([BOS])

    @cached_property
    def _stepping(self) -> tuple[Any, Any]:
        """Model and scorer as sessions run them."""
        return on_backend(self.backend, self.bundle.model, self.bundle.scorer)

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Subject.answers`."""
        yield from self._scored(_only(Likelihood, requests))
        yield from self._written(_only(Continuation, requests))
        for at, request in _only(Compression, requests):
            shape = window_shape({}, self.context, None)
            found = byte_scores(self.bundle, request.text, *shape, batch_bytes=self.batch_bytes)
            yield at, Coded(float(found.nats.sum()), len(request.text))

    def _scored(self, asked: Sequence[tuple[int, Likelihood]]) -> Iterator[tuple[int, Scored]]:
        if not asked:
            return
        kept = [max(0, self.context - len(request.continuation)) for _, request in asked]
        contexts = [_right(request.context, room) for (_, request), room in zip(asked, kept, strict=True)]
        texts = [context + request.continuation for context, (_, request) in zip(contexts, asked, strict=True)]
        # Nobody asks what follows the last byte, so it is not read.
        tree = Tree.of([text[:-1] for text in texts], self.worthwhile)
        targets, left = _targets(tree, [len(context) for context in contexts])
        logprobs, greedy = [0.0] * len(asked), [True] * len(asked)
        with torch.inference_mode():
            for visit in walk(tree, self.start(), self.batch_bytes):
                for target, each, best in _predictions(tree, targets, visit, texts):
                    logprobs[target.request] += each
                    greedy[target.request] &= best
                    left[target.request] -= 1
                    if not left[target.request]:
                        at, request = asked[target.request]
                        cut = len(request.context) - len(contexts[target.request])
                        yield at, Scored(logprobs[target.request], greedy[target.request], cut)

    def _written(self, asked: Sequence[tuple[int, Continuation]]) -> Iterator[tuple[int, Written]]:
        if not asked:
            return
        rooms = [max(self.context - request.max_bytes, self.context // 2) for _, request in asked]
        contexts = [_right(request.context, room) for (_, request), room in zip(asked, rooms, strict=True)]
        batch, owners, parts = SequenceBatch(), dict[int, int](), dict[int, list[Chunk]]()

        def step(batch: SequenceBatch) -> tuple[SequenceBatch, list[tuple[int, Written]]]:
            batch, chunks = batch.step()
            done = []
            for key, chunk in chunks:
                parts[key].append(chunk)
                if chunk.finish is not None:
                    at, request = asked[owners[key]]
                    cut = len(request.context) - len(contexts[owners[key]])
                    data = b"".join(part.data for part in parts.pop(key))
                    done.append((at, Written(data, chunk.finish, cut)))
            return batch, done

        for session, numbers in self._prompts(contexts):
            while batch.rows and len(batch.rows) + len(numbers) > self.rows:
                batch, done = step(batch)
                yield from done
            for key, number in enumerate(numbers, batch.next_key):
                owners[key], parts[key] = number, []
            batch = batch.admit(session, [self._request(asked[number][1]) for number in numbers])
        while batch.rows:
            batch, done = step(batch)
            yield from done

    def _request(self, asked: Continuation) -> EngineRequest:
        sampling = Sampling(temperature=asked.temperature, seed=asked.seed)
        return EngineRequest(sampling, asked.max_bytes, asked.stop, strategy=self.strategy)

    def _prompts(self, contexts: Sequence[bytes]) -> Iterator[tuple[Session, list[int]]]:
        """Sessions behind the contexts, at most `rows` at a time, and which contexts they are."""
        tree = Tree.of(contexts, self.worthwhile)
        with torch.inference_mode():
            for visit in walk(tree, self.start(), self.batch_bytes):
                ending = [(row, text) for row, node in enumerate(visit.nodes) for text in tree.nodes[node].ends]
                for begin in range(0, len(ending), self.rows):
                    group = ending[begin : begin + self.rows]
                    yield visit.session.select([row for row, _ in group]), [text for _, text in group]


def _forms(bundle: Bundle) -> list[str]:
    """Forms of the weights of model and scorer."""
    return ["fp32" if module is None else form_of(module) for module in (bundle.model, bundle.scorer)]


def _only(kind: type[_T], requests: Sequence[Request]) -> list[tuple[int, _T]]:
    return [(at, request) for at, request in enumerate(requests) if isinstance(request, kind)]


def _right(data: bytes, room: int) -> bytes:
    """The last `room` bytes."""
    return data if len(data) <= room else data[len(data) - room :]


def _targets(tree: Tree, scored_from: Sequence[int]) -> tuple[list[list[Target]], list[int]]:
    """For each node what its logits predict of the texts below it, and for each text in how many nodes.

    Byte i of a text is predicted behind its first i bytes: those at begin + 1 .. stop by the node [begin, stop), byte 0
    by the root. Text t is scored from byte scored_from[t] to the one behind its leaf.
    """
    targets: list[list[Target]] = [[] for _ in tree.nodes]
    counts = []
    for text, first in enumerate(scored_from):
        at, count = tree.leaves[text], 0
        while True:
            node = tree.nodes[at]
            if node.stop < first:
                break
            targets[at].append(Target(text, max(first, node.begin + (at != ROOT)), node.stop))
            count += 1
            if at == ROOT:
                break
            at = node.parent
        counts.append(count)
    return targets, counts


def _predictions(
    tree: Tree, targets: Sequence[Sequence[Target]], visit: Visit, texts: Sequence[bytes]
) -> Iterator[tuple[Target, float, bool]]:
    """For each target of the nodes: the log-probability of its bytes, and are they all the most probable ones."""
    rows: list[int] = []
    columns: list[int] = []
    ids: list[int] = []
    sizes: list[int] = []
    found: list[Target] = []
    for row, at in enumerate(visit.nodes):
        begin = tree.nodes[at].begin
        for target in targets[at]:
            size = target.last - target.first + 1
            rows += [row] * size
            # The root's only column is that of BOS.
            columns += range(target.first - begin - (at != ROOT), target.last - begin + (at == ROOT))
            ids += [byte + OFFSET for byte in texts[target.request][target.first : target.last + 1]]
            sizes.append(size)
            found.append(target)
    if not found:
        return
    logits = visit.session.logits[:, None] if visit.logits is None else visit.logits
    asked = logits[rows, columns]
    chosen = torch.tensor(ids, device=asked.device)
    each = all_logprobs(asked).gather(-1, chosen[:, None])[:, 0].cpu()
    best = (_emitted(asked).argmax(-1) == chosen).cpu()
    for target, own, right in zip(found, each.split(sizes), best.split(sizes), strict=True):
        yield target, float(own.sum()), bool(right.all())


def _emitted(logits: Tensor) -> Tensor:
    """Without the ids that are never emitted."""
    return logits.index_fill(-1, torch.tensor(NEVER_EMITTED, device=logits.device), float("-inf"))
