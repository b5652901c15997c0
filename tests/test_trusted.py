"""Strategies whose drafts are kept as they are (`Strategy.exact` is False): what the engine owes them all the same.

The slow, obvious way: a row alone, read anew from its beginning for every draft, one byte after another.
"""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.api import ByteLM
from bltkit.checkpoint import Bundle
from bltkit.generate import (
    STRATEGIES,
    Autoregressive,
    Chunk,
    Diffusion,
    Passes,
    Request,
    Sampling,
    SequenceBatch,
    Session,
    Strategy,
    Utf8,
    Verified,
    generate,
    generate_rows,
    strategy_of,
)
from bltkit.generate.sampling import choose
from bltkit.generate.strategies import Outcome, Pending, Proposal
from bltkit.generate.top_logprobs import Tops, most_probable
from bltkit.model import Blt
from bltkit.vocab import EOS, OFFSET
from tests import tiny
from tests.rows import (
    GREEDY,
    Decoded,
    Uncached,
    blurred,
    by,
    cut_at_stop,
    draw_request,
    example,
    start,
    stats_of,
    tempered,
)
from tests.test_strategies import drawn, examples_of, random_prompts, scored_case
from tests.tiny import Case

TRUSTED = [kind for kind in sorted(STRATEGIES) if not STRATEGIES[kind].exact]


class Slow:
    """A row that grows byte by byte. `finish` says when it is done."""

    def __init__(self, uncached: Uncached, prompt: list[int], request: Request) -> None:
        self.uncached, self.request, self.row = uncached, request, list(prompt)
        self.constraint = request.constraint
        self.data, self.logprobs, self.tops = b"", list[float](), list[Tops]()
        self.finish = "length" if request.max_bytes == 0 else ""

    @property
    def left(self) -> int:
        return self.request.max_bytes - len(self.data)

    def allowed(self) -> torch.Tensor:
        everything = torch.ones(vocab.VOCAB_SIZE, dtype=torch.bool)
        return everything if self.constraint is None else self.constraint.allowed(self.left)

    def logits(self) -> torch.Tensor:
        return self.uncached.run(tuple(self.row))[0][-1]

    def pick(self) -> int:
        """The model's own choice."""
        seen = torch.zeros(vocab.VOCAB_SIZE, dtype=torch.bool)
        seen[self.row[-self.request.sampling.repetition_window :]] = True
        found = choose(
            [self.request.sampling],
            self.logits()[None, None],
            [len(self.row)],
            allowed=self.allowed()[None, None],
            seen=seen[None, None],
        )
        return found.ids[0][0]

    def add(self, value: int) -> None:
        """One more byte, with the probability that the model gives it."""
        assert not self.finish
        if value == EOS:
            self.finish = "eos"
            return
        never = ~self.allowed()
        never[list(vocab.NEVER_EMITTED)] = True
        logp = self.logits().double().masked_fill(never, -torch.inf).log_softmax(-1)
        self.logprobs.append(float(logp[value]))
        self.tops += [most_probable(logp[None].numpy(), self.request.top_logprobs)[0]]
        if self.constraint is not None:
            self.constraint = self.constraint.after(value)
        self.row.append(value)
        self.data += bytes([value - OFFSET])
        if any(stop in self.data for stop in self.request.stop):
            self.finish, self.data = "stop", cut_at_stop(self.data, self.request.stop)
            self.logprobs, self.tops = self.logprobs[: len(self.data)], self.tops[: len(self.data)]
        elif self.left == 0:
            self.finish = "length"

    def decoded(self, strategy: Strategy) -> Decoded:
        """By what the strategy proposes for the row alone, read from its beginning."""
        case = self.uncached.case
        while not self.finish:
            before, constraint, chosen = list(self.row), self.constraint, self.pick()
            if strategy.draft_column:
                self.add(chosen)
                if self.finish:
                    break
                constraint = self.constraint
            room = self.left - 1 + strategy.draft_column
            pending = Pending(chosen, room, self.request.sampling, constraint, strategy.first_state)
            drafts = strategy.propose(start(case).extend(before), [pending]).drafts[0]
            added = False
            for value in drafts:
                # What is refused ends the draft.
                if self.finish or not self.allowed()[value]:
                    break
                self.add(value)
                added = True
            if strategy.draft_column == 0 and not added:
                self.add(chosen)
        return Decoded(self.data, self.finish, self.logprobs, self.tops if self.request.top_logprobs else [])


def decode_rows(session: Session, asked: list[Request], strategy: Strategy) -> list[Decoded]:
    chunks: list[list[Chunk]] = [[] for _ in asked]
    for row, chunk in generate_rows(session, [by(strategy, request) for request in asked]):
        chunks[row].append(chunk)
    return [Decoded.of(own) for own in chunks]


@pytest.mark.parametrize("kind", TRUSTED)
@settings(max_examples=8)
@given(case=tiny.cases(), data=st.data())
def test_rows_are_those_of_the_slow_way(kind: str, case: Case, data: st.DataObject) -> None:
    """In a batch with others as alone: bytes, how they end, and the model's own log-probabilities of them."""
    strategy = data.draw(st.sampled_from(examples_of(kind)))
    case = drawn(case, data, eos=data.draw(st.sampled_from([1.0, 2.0])))
    prompts = [case.ids[:9], *data.draw(st.lists(tiny.rows(9), max_size=2))]
    asked = [draw_request(data, prompt, longest=18) for prompt in prompts]
    found, uncached = decode_rows(start(case, len(prompts)).extend(prompts), asked, strategy), Uncached(case)
    for one, prompt, request in zip(found, prompts, asked, strict=True):
        one.assert_equals(Slow(uncached, prompt, request).decoded(strategy), request)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRUSTED)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_thousands_of_prompts(kind: str, temperature: float) -> None:
    """A row in a batch of 16 is the row alone, also where rows come in while others run."""
    generator, strategies, ends = torch.Generator().manual_seed(0), examples_of(kind), set()
    for turn in range(64):
        case = tempered(replace(scored_case(example("byte")), seed=turn), (0.1, 1.0)[turn % 2], eos=1.2)
        prompts, strategy = random_prompts(generator), strategies[turn % len(strategies)]
        asked = [
            Request(
                Sampling(temperature=temperature, seed=row, repetition_penalty=1.3 if row % 4 == 0 else 1.0),
                max_bytes=24,
                constraint=Utf8.behind(vocab.decode(prompt)) if row % 3 == 0 else None,
                logprobs=True,
            )
            for row, prompt in enumerate(prompts)
        ]
        sessions = [start(case).extend(prompt) for prompt in prompts]
        batch, chunks = SequenceBatch(), [list[Chunk]() for _ in prompts]
        waiting = list(zip(sessions, asked, strict=True))
        while batch.rows or waiting:
            for session, request in waiting[:5]:
                batch = batch.admit(session, [by(strategy, request)])
            del waiting[:5]
            batch, made = batch.step()
            for key, chunk in made:
                chunks[key].append(chunk)
        for own, session, request in zip(chunks, sessions, asked, strict=True):
            alone = Decoded.of(list(generate(session, by(strategy, request))))
            Decoded.of(own).assert_equals(alone, request)
            ends.add(alone.finish)
    assert ends == {"eos", "length"}


@pytest.mark.parametrize("kind", TRUSTED)
def test_a_budget_cuts_what_more_would_have_made(kind: str) -> None:
    """And is never exceeded, also by none or one byte."""
    case = tempered(scored_case(example("byte")), 1.0)
    session = start(case).extend(case.ids)
    for strategy, temperature in zip(examples_of(kind)[::5], itertools.cycle((0.0, 1.0)), strict=False):
        sampling = Sampling(temperature=temperature, seed=5)
        request = Request(sampling, 20, logprobs=True)
        whole = Decoded.of(list(generate(session, by(strategy, request))))
        for budget in (0, 1, 2, 9, 17):
            found = Decoded.of(list(generate(session, by(strategy, replace(request, max_bytes=budget)))))
            ended = whole.finish == "eos" and len(whole.data) < budget
            wanted = Decoded(whole.data[:budget], "eos" if ended else "length", whole.logprobs[:budget])
            found.assert_equals(wanted, request)


@pytest.mark.parametrize("kind", TRUSTED)
def test_what_ends_inside_a_block(kind: str) -> None:
    """EOS and stop strings anywhere in it; what comes behind them is nobody's, and counts for nobody."""
    ends = set()
    strategies = examples_of(kind)[::5]
    for seed, strategy in zip(range(max(8, len(strategies))), itertools.cycle(strategies), strict=False):
        case = tempered(replace(scored_case(example("byte")), seed=seed), 1.0, eos=2.0)
        session, sampling = start(case).extend(case.ids), Sampling(temperature=0 if seed % 2 else 1, seed=seed)
        free = Decoded.of(list(generate(session, by(strategy, Request(sampling, 24)))))
        ends.add(free.finish)
        for at in (1, 5, 12):
            stop = (free.data[at : at + 2],) if free.data[at : at + 2] else (b"never",)
            found = list(generate(session, by(strategy, Request(sampling, 24, stop))))
            cut, stats = cut_at_stop(free.data, stop), stats_of(found)
            assert b"".join(chunk.data for chunk in found) == cut
            assert found[-1].finish == ("stop" if stop[0] in free.data else free.finish)
            # The stop string's own bytes count, and those of a first byte are not drafted; EOS is one, too.
            assert stats.accepted <= min(stats.drafted, len(cut) + len(stop[0]))
            ends.add(found[-1].finish)
    assert ends == {"eos", "stop", "length"}


@pytest.mark.parametrize("kind", TRUSTED)
def test_only_valid_utf8(kind: str) -> None:
    case = tempered(scored_case(example("byte")), 1.0)
    prompt = "a€".encode()[:-1]
    session, lengths = start(case).extend(vocab.encode(prompt)), set()
    for seed, strategy in enumerate(examples_of(kind)[::5]):
        request = Request(Sampling(temperature=2, seed=seed), 12, constraint=Utf8.behind(prompt))
        found = Decoded.of(list(generate(session, by(strategy, request))))
        assert (prompt + found.data).decode() and len(found.data) <= 12
        lengths.add(len(found.data))
    assert max(lengths) > 8


class Parrot(Strategy):
    """Trusts what it is told to, whatever the model says: mistakes of a strategy must not get through."""

    exact = False
    kind: str = "parrot"
    says: bytes = b""
    instead: bool = False

    @property
    def draft_column(self) -> int:
        return 1 - self.instead

    def propose(self, session: Session, rows: Any) -> Proposal:
        drafts = (*(byte + OFFSET for byte in self.says), EOS)
        return Proposal((drafts,) * len(rows), Passes(), trusted=True, ways=("loud",) * len(rows))

    def check(self, model: Blt) -> None:
        if not model.config.document_masks:
            raise ValueError("parrots want documents")

    @property
    def first_state(self) -> tuple[str, ...]:
        return ()

    def next_state(self, state: tuple[str, ...], outcome: Outcome) -> tuple[str, ...]:
        HEARD.append((*state, f"{outcome.way} {outcome.drafted} {outcome.accepted}"))
        return HEARD[-1]


HEARD: list[tuple[str, ...]] = []


@pytest.mark.parametrize("instead", [False, True])
def test_the_engine_trims_what_a_strategy_says_too_much(instead: bool) -> None:
    session = start(example("byte")).extend(vocab.encode(b"abc"))
    for budget in range(1, 9):
        found, last = decoded_with_stats(session, Request(GREEDY, budget), Parrot(says=b"hello", instead=instead))
        own = 0 if instead else 1  # the first byte is the model's
        assert found.data[own:] == b"hello"[: budget - own]
        assert found.finish == ("eos" if budget > 5 + own else "length")
        assert last.accepted == last.drafted == min(6, budget - own)


def decoded_with_stats(session: Session, request: Request, strategy: Strategy) -> tuple[Decoded, Any]:
    chunks = list(generate(session, by(strategy, request)))
    return Decoded.of(chunks), stats_of(chunks)


@pytest.mark.parametrize("instead", [False, True])
def test_a_constraint_holds_whatever_is_trusted(instead: bool) -> None:
    """The draft ends where it refuses, the model's own choice goes on, and probabilities are over what it allows."""
    case = tempered(example("byte"), 1.0)
    session, uncached = start(case).extend(vocab.encode(b"abc")), Uncached(case)
    for says in (b"\xff", b"x\xc3\xff", "x€".encode() + b"\x80"):
        strategy = Parrot(says=says, instead=instead)
        request = Request(GREEDY, 14, constraint=Utf8(), logprobs=True)
        found, stats = decoded_with_stats(session, request, strategy)
        assert found.data.decode()
        found.assert_equals(Slow(uncached, vocab.encode(b"abc").tolist(), request).decoded(strategy), request)
        assert stats.drafted == stats.accepted


@pytest.mark.parametrize("instead", [False, True])
def test_where_nothing_trusted_is_left_the_model_decodes(instead: bool) -> None:
    """Every draft is refused: the bytes are the plain ones, the penalty's window counting each of them once."""
    case = blurred(tempered(example("byte"), 1.0), 0.0)  # has favourites, so that the penalty tells
    session = start(case).extend(vocab.encode(b"abc"))
    for window in (1, 2, 3, 64):
        sampling = GREEDY.replace(repetition_penalty=1e6, repetition_window=window)
        request = Request(sampling, 20, constraint=Utf8(), logprobs=True)
        found, stats = decoded_with_stats(session, request, Parrot(says=b"\xff", instead=instead))
        found.assert_equals(Uncached(case).decode(vocab.encode(b"abc").tolist(), request), request)
        assert stats.drafted == 0


def test_a_strategy_hears_what_became_of_its_proposals() -> None:
    HEARD.clear()
    session = start(example("byte")).extend(vocab.encode(b"abc"))
    found = Decoded.of(list(generate(session, by(Parrot(says=b"xy"), Request(GREEDY, 9)))))
    assert found.finish == "eos" and len(found.data) == 3
    assert HEARD == [("loud 3 3",)]
    HEARD.clear()
    Decoded.of(list(generate(session, by(Parrot(says=b"xyz"), Request(GREEDY, 9, (b"x",))))))
    assert HEARD == [("loud 4 1",)]


class Curious(Autoregressive):
    """Looks at the entropy behind each byte."""

    reads_entropy = True
    kind: Any = "curious"

    def propose(self, session: Session, rows: Any) -> Proposal:
        HEARD.append(tuple(f"{row.entropy:.9f}" for row in rows))
        return super().propose(session, rows)


def test_a_strategy_may_know_how_sure_the_model_is() -> None:
    """Entropy of the distribution that the chosen id is from, of every row."""
    HEARD.clear()
    case = example("byte")
    prompts = [vocab.encode(b"abc").tolist(), vocab.encode(b"b").tolist()]
    found = decode_rows(start(case, 2).extend(prompts), [Request(GREEDY, 4)] * 2, Curious())
    uncached, wanted = Uncached(case), []
    for turn in range(3):
        own = []
        for prompt, one in zip(prompts, found, strict=True):
            row = (*prompt, *(byte + OFFSET for byte in one.data[:turn]))
            logits = uncached.run(row)[0][-1].index_fill(0, torch.tensor(vocab.NEVER_EMITTED), -torch.inf)
            own.append(f"{float(torch.distributions.Categorical(logits=logits).entropy()):.9f}")
        wanted.append(tuple(own))
    assert wanted == HEARD


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("diffusion", {"alpha": 0.0}, "alpha = 0 is a probability above 0"),
        ("verified", {"alpha": 1.5}, "alpha = 1.5"),
        ("diffusion", {"gamma": 0.0}, "gamma = 0 is a sum of entropies.*above 0"),
        ("verified", {"gamma": -1.0}, "gamma = -1"),
        ("diffusion", {"alpha": 0.5, "gamma": 1.0}, "alpha = 0.5 and gamma = 1.*give one"),
        ("diffusion", {"steps": 0}, "steps = 0"),
        ("diffusion", {"draft": 0}, "draft = 0"),
        ("diffusion", {"align_border": True, "latent": "open"}, "latent = 'open' with align_border"),
        ("speculative", {"alpha": 0.5}, "has no field 'alpha'; known: draft"),
    ],
)
def test_wrong_fields_are_named(kind: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        strategy_of(kind, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["diffusion", "verified"])
def test_a_model_that_cannot_says_so_before_it_reads(kind: str) -> None:
    plain = example("stride:k=3")
    trained = replace(plain, config=plain.config.replace(diffusion_block=8))
    for case, options, named in (
        (plain, {}, f"strategy = '{kind}'.*no block-diffusion decoder.*bltkit:tiny-d.*objective.kind.*'speculative'"),
        (trained, {"draft": 9}, "draft = 9.*at most 8 bytes; use draft <= 8, or train with objective.block = 9"),
    ):
        lm = ByteLM(Bundle(case.model, None, case.rule))

        def never(*_: object) -> None:
            raise AssertionError("the prompt was read")

        handle = case.model.encoder.register_forward_pre_hook(never)
        inner = case.model.encoder.stack.layers[0].register_forward_pre_hook(never)
        for call in (lm.generate, lm.samples, lm.stream):
            with pytest.raises(ValueError, match=named):
                list(call(b"abc", strategy=kind, **options))  # type: ignore[call-overload]
        handle.remove()
        inner.remove()
        session = start(case).extend([vocab.BOS])
        with pytest.raises(ValueError, match=named):
            SequenceBatch().admit(session, [by(strategy_of(kind, **options), Request())])
        with pytest.raises(ValueError, match=named):
            list(generate_rows(session, [by(strategy_of(kind, **options), Request())]))
        assert lm.generate(b"abc", strategy="speculative", max_bytes=4).data


def test_options_reach_the_strategy() -> None:
    case = tempered(example("stride:k=3"), 1.0)
    lm, prompt = ByteLM(Bundle(case.model, None, case.rule)), b"some text"
    session = start(case).extend(vocab.encode(prompt))
    for options in (
        {"draft": 5, "alpha": 0.01, "steps": 2},
        {"draft": 6, "gamma": 7.0, "align_border": True},
    ):
        for kind, strategy in (("diffusion", Diffusion(**options)), ("verified", Verified(**options))):
            request = Request(Sampling(temperature=0.9, seed=3), 14)
            wanted, stats = decoded_with_stats(session, request, strategy)
            for fields in ({"strategy": kind, **options}, {"strategy": strategy}):
                found = lm.generate(prompt, max_bytes=14, temperature=0.9, seed=3, **fields)
                assert found.data == wanted.data
                assert (found.stats.decoder_passes, found.stats.drafted) == (stats.decoder_passes, stats.drafted)
    with pytest.raises(ValueError, match="draft = 4"):
        lm.generate(prompt, strategy=Diffusion(), draft=4)
