"""Blocks that a cached decoder fills in (model/block_attention.py, strategies/blocks.py), against the slow, obvious
way: a forward pass over the clean prefix and the block under a dense mask, a cell at a time."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import vocab
from bltkit.generate import Diffusion, Request, Sampling, Session, generate
from bltkit.generate.sampling import Certainty, choose
from bltkit.generate.strategies import Pending, strategy_of
from bltkit.generate.strategies.blocks import Unmasking, fill_blocks
from bltkit.model.block_attention import BlockAttention
from bltkit.vocab import EOS, MASK, PAD
from tests import ours, reference, tiny
from tests.rows import GREEDY, NEWLINE, Uncached, blurred, by, example, start, storage_bytes, tempered
from tests.tiny import Case


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases that the reference can say: one window for both local stacks, none for the latents; EOS comes often."""
    case = draw(tiny.cases())
    config = case.config
    latent, decoder = config.latent.replace(window=None), config.decoder.replace(window=config.encoder.window)
    case = replace(case, config=config.replace(latent=latent, decoder=decoder))
    return blurred(tempered(case, 1.0, eos=draw(st.sampled_from([1.0, 2.0]))), draw(st.sampled_from([0.2, 1.0])))


class Slow:
    """Blocks behind a row of a case."""

    def __init__(self, case: Case, prefix: list[int], chosen: int) -> None:
        self.case, self.prefix = case, prefix
        self.ids = [*prefix, chosen]
        self.weights, self.config = ours.reference_layout(case.model)
        self.starts = case.run(self.ids)[1].tolist()
        last = len(prefix)
        while not self.starts[last]:
            last -= 1
        self.border = last
        """Where the patch of the chosen byte begins."""

    def logits(self, first: int, cells: list[int], open_patch: bool = False) -> Any:
        """[S, V]."""
        return reference.block_logits(
            self.weights,
            self.config,
            self.ids,
            self.starts,
            first,
            cells,
            documents=self.case.config.document_masks,
            read=len(self.prefix),
            open_patch=open_patch,
        )


def prompts_of(case: Case, data: st.DataObject) -> list[list[int]]:
    """Of several lengths, some longer than the window."""
    return [case.ids, *data.draw(st.lists(tiny.rows(14), max_size=2))]


@settings(max_examples=10, deadline=None)
@given(case=cases(), data=st.data())
def test_cached_blocks_are_the_uncached_ones(case: Case, data: st.DataObject) -> None:
    """Logits of cells, masked, known or absent; rows of unequal lengths, blocks at the border or anywhere."""
    prompts, size = prompts_of(case, data), data.draw(st.integers(1, 7))
    session = start(case, len(prompts)).extend(prompts)
    slow = [Slow(case, prompt, 50) for prompt in prompts]
    aligned = [data.draw(st.booleans()) for _ in prompts]
    firsts = [one.border if own else len(one.prefix) for one, own in zip(slow, aligned, strict=True)]
    sizes = [data.draw(st.integers(1, size)) for _ in prompts]
    cells = [
        [data.draw(st.sampled_from([MASK, 4, 98, 255])) for _ in range(own)] + [PAD] * (size - own) for own in sizes
    ]
    hidden = [len(prompt) - first for prompt, first in zip(prompts, firsts, strict=True)]
    model = case.model
    for turn in range(2):  # a second pass over the same block, written anew
        with torch.inference_mode():
            x = model.block_inputs(torch.tensor(cells))
            attend = BlockAttention(model.decoder.stack.config, session.decoder, size, x, hidden, sizes)
            logits = model.decoder.fill(x, session.patch_kv, attend)
            if turn:
                logits = model.decoder.fill(x, session.patch_kv, attend)
        for row, own in enumerate(slow):
            expected = own.logits(firsts[row], cells[row])
            found = logits[row].numpy()
            np.testing.assert_allclose(found[: sizes[row]], expected[: sizes[row]], rtol=0, atol=1e-8)
            assert np.isfinite(found).all()
        cells[0][0] = 77
    uncached = Uncached(case)
    uncached.assert_rows(session, prompts)
    uncached.assert_rows(session.extend([[60]] * len(prompts)), [[*prompt, 60] for prompt in prompts])


def test_windows_that_are_shorter_than_what_was_read() -> None:
    """Blocks that just fit into the window and those that just do not, at the border and with bytes in front."""
    case = tempered(example("stride:k=4", window=8), 1.0)
    model, ids = case.model, [vocab.BOS, *range(40, 60)]
    for length in range(1, 14):
        slow, session = Slow(case, ids[:length], ids[length]), start(case).extend(ids[:length])
        for first in {slow.border, length}:
            for size in (1, 2, 4, 8):
                cells = [*ids[first:], *[MASK] * size][:size]
                with torch.inference_mode():
                    x = model.block_inputs(torch.tensor([cells]))
                    attend = BlockAttention(model.decoder.stack.config, session.decoder, size, x, [length - first])
                    logits = model.decoder.fill(x, session.patch_kv, attend)[0]
                np.testing.assert_allclose(logits.numpy(), slow.logits(first, cells), rtol=0, atol=1e-8)


rules = st.sampled_from(
    [
        {},
        {"alpha": 0.05},
        {"alpha": 1.0},
        {"gamma": 1e-3},
        {"gamma": 4.0},
        {"gamma": 9.0},
        {"steps": 2},
        {"steps": 3},
        {"alpha": 0.05, "steps": 2},
        {"gamma": 5.0, "steps": 3},
    ]
)


@settings(max_examples=12, deadline=None)
@given(case=cases(), data=st.data(), rule=rules)
def test_drafts_are_those_of_the_slow_way(case: Case, data: st.DataObject, rule: dict[str, Any]) -> None:
    """By every rule, greedy and sampled, with known cells, ends and limits; and the passes are counted."""
    prompts = prompts_of(case, data)[:2]
    session = start(case, len(prompts)).extend(prompts)
    align, trusted = data.draw(st.booleans()), data.draw(st.booleans())
    masked_first = trusted and data.draw(st.booleans())
    open_patch = not align and data.draw(st.booleans())
    rows = [
        Pending(
            chosen=data.draw(st.sampled_from([60, 255, NEWLINE])),
            room=data.draw(st.sampled_from([1, 3, 40])),
            sampling=Sampling(temperature=data.draw(st.sampled_from([0, 1.5])), seed=data.draw(st.integers(0, 9))),
            constraint=None,
        )
        for _ in prompts
    ]
    sizes = [data.draw(st.integers(1, 6)) for _ in prompts]
    drafts, passes = fill_blocks(
        session,
        rows,
        sizes,
        Unmasking(**rule),
        align_border=align,
        trusted=trusted,
        masked_first=masked_first,
        open_latent=open_patch,
    )
    needed = 0
    for row, (pending, size) in enumerate(zip(rows, sizes, strict=True)):
        # What the row would have chosen does not matter to a block that does not show it.
        slow = Slow(case, prompts[row], pending.chosen)
        first = slow.border if align else len(slow.prefix)
        known = [*slow.prefix[first:], *([] if masked_first else [pending.chosen])]
        limit = pending.room - 1 + trusted + masked_first
        if len(known) >= size or limit <= 0:
            assert drafts[row] == ()
            continue
        cells = [*known, *[MASK] * (size - len(known))]
        filled, count = reference.unmask(
            lambda now, slow=slow, first=first: slow.logits(first, list(now), open_patch),  # type: ignore[misc]
            lambda logits, cell, own=pending, first=first: own.sampling.pick(torch.from_numpy(logits), first + cell),
            cells,
            ends=[EOS, *session.resets],
            **rule,
        )
        wanted: list[int] = []
        for value in filled[len(known) :][:limit]:
            if value == MASK or value in session.resets:
                break
            wanted.append(value)
            if value == EOS:
                break
        assert list(drafts[row]) == wanted
        needed = max(needed, count)
    assert passes.decoder == needed and passes.encoder == passes.entropy == 0
    assert passes.latent <= open_patch


@settings(max_examples=200)
@given(st.integers(0, 2**16), rules, st.integers(0, 3))
def test_a_pass_writes_one_cell_at_least(seed: int, rule: dict[str, Any], step: int) -> None:
    """And none that is not masked; the last pass writes all."""
    random = np.random.RandomState(seed)
    masked = random.rand(3, 5) < 0.6
    sure = Certainty(random.rand(3, 5), 5 * random.rand(3, 5))
    picked = Unmasking(**rule).picks(masked, sure, step)
    assert not (picked & ~masked).any()
    assert (picked.any(1) == masked.any(1)).all()
    if step >= rule.get("steps", 99) - 1:
        assert (picked == masked).all()


def test_of_equally_sure_cells_the_first_goes_first() -> None:
    """Rounding does not decide: cells beyond the window that see nothing but MASK are such."""
    noise = 1e-12 * np.random.RandomState(0).randn(1, 6)
    sure = Certainty(0.25 + noise, 2.0 + noise)
    for rule in (Unmasking(alpha=0.5), Unmasking(gamma=1.0), Unmasking(steps=6)):
        assert rule.picks(np.array([[False, False, True, True, True, True]]), sure, 0).nonzero()[1].tolist() == [2]
    assert Unmasking(gamma=4.5).picks(np.ones((1, 6), bool), sure, 0).nonzero()[1].tolist() == [0, 1]


def test_certainty_is_of_the_models_own_distribution() -> None:
    """Over what can be emitted and the constraint allows; sampling does not matter."""
    logits = torch.randn(2, 3, vocab.VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(2, 3, vocab.VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) < 0.5
    found = choose([GREEDY, Sampling(top_k=2)], logits, [5, 9], allowed=allowed, certainty=True)
    masked = logits.double().masked_fill(~allowed, -torch.inf)
    masked[..., list(vocab.NEVER_EMITTED)] = -torch.inf
    logp = masked.log_softmax(-1)
    entropy = -(logp.exp() * logp.where(logp > -torch.inf, 0)).sum(-1)
    assert found.certainty is not None and found.logprobs is None
    np.testing.assert_allclose(found.certainty.largest, logp.max(-1).values.exp().numpy(), atol=1e-12)
    np.testing.assert_allclose(found.certainty.entropy, entropy.numpy(), atol=1e-12)


def test_what_was_decided_is_not_chosen_again() -> None:
    logits = torch.randn(2, 4, vocab.VOCAB_SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = choose([GREEDY, Sampling(seed=3)], logits, [5, 9], logprobs=True)
    decided = [[7, 8], [9, 10, 11]]
    found = choose([GREEDY, Sampling(seed=3)], logits, [5, 9], logprobs=True, decided=decided)
    logits[..., list(vocab.NEVER_EMITTED)] = -torch.inf
    logp = logits.log_softmax(-1)
    for row, own in enumerate(decided):
        assert found.ids[row] == [*own, *free.ids[row][len(own) :]]
        assert found.logprobs is not None
        for column, value in enumerate(found.ids[row]):
            assert found.logprobs[row][column] == pytest.approx(float(logp[row, column, value]), abs=1e-12)


def test_the_penalty_knows_what_stands_in_front_of_a_cell() -> None:
    """Known cells and the text, also where the block begins in front of the text's end; not cells still masked."""
    case, generator = tempered(example("stride:k=4"), 0.0), torch.Generator().manual_seed(0)
    session = start(case).extend(vocab.encode(b"abcde"))
    (likely,), _ = fill_blocks(session, [Pending(50, 40, GREEDY, None)], [8], Unmasking())
    assert len(likely) == 7
    met = 0
    for length, align, window in itertools.product((5, 7, 8), (False, True), (1, 2, 3, 4, 64)):
        for _ in range(6):
            at = torch.randint(len(likely), (length,), generator=generator).tolist()
            text = [vocab.BOS, *(likely[n] for n in at)]
            session, row = start(case).extend(text), Pending(50, 40, GREEDY, None)
            (free,), _ = fill_blocks(session, [row], [8], Unmasking(), align_border=align)
            heavy = replace(row, sampling=GREEDY.replace(repetition_penalty=1e6, repetition_window=window))
            (drafts,), _ = fill_blocks(session, [heavy], [8], Unmasking(), align_border=align)
            for number, (value, plain) in enumerate(zip(drafts, free, strict=False)):
                in_sight = [*text, 50, *[MASK] * number][-window:]
                assert value not in in_sight
                assert (value == plain) == (plain not in in_sight)
                met += plain in in_sight
    assert met > 50


def test_ends_that_were_read_do_not_end_a_draft() -> None:
    """A chosen byte that resets the scorer, and an EOS in the open patch."""
    case = replace(
        example("stride:k=4"),
        scorer_config=tiny.EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, reset_at_newline=True),
        rule_fields={"kind": "threshold", "threshold": 1.0, "max_patch_bytes": 4},
        ids=vocab.encode(b"some text").tolist(),
    )
    for text in ([*case.ids, 60], [*case.ids, EOS], [*case.ids, 60, EOS, 60]):
        session = start(tempered(case, 1.0)).extend(text)
        assert NEWLINE in session.resets
        for align in (False, True):
            (drafts,), passes = fill_blocks(
                session, [Pending(NEWLINE, 40, GREEDY, None)], [8], Unmasking(alpha=1.0), align_border=align
            )
            known = 1 + (sum(part[0].shape[1] for part in session.open_patches[0]) if align else 0)
            assert len(drafts) == passes.decoder == 8 - known


@pytest.mark.parametrize("rule", ["byte", "stride:k=3"])
def test_drafting_leaves_nothing_behind(rule: str) -> None:
    """Neither in the session, nor memory: a cache does not grow by blocks."""
    case = tempered(example(rule), 1.0)
    ids = vocab.encode(b"some text of its own, longer than the window").tolist()
    session, uncached = start(case).extend(ids), Uncached(case)
    before = storage_bytes(session, without=())
    strategy = strategy_of("verified", draft=16)
    for _ in range(5):
        strategy.propose(session, [Pending(60, 40, GREEDY, None)])
        Diffusion(latent="open").propose(session, [Pending(60, 40, GREEDY, None)])
    assert storage_bytes(session, without=()) == before
    uncached.assert_row(session, ids)
    uncached.assert_row(session.rollback(2), ids[:-2])
    uncached.assert_row(session.extend([70, 71]), [*ids, 70, 71])


def test_one_pass_where_one_is_enough() -> None:
    """One step, alpha that everything exceeds, gamma that nothing does: a pass of the decoder a block; at alpha 1 one
    a byte. The full model reads each block once."""
    case = tempered(example("stride:k=3"), 1.0)
    session = start(case).extend(vocab.encode(b"abc"))
    for fields, passes in (({"steps": 1}, 1), ({"alpha": 1e-9}, 1), ({"gamma": 1e9}, 1), ({"alpha": 1.0}, 7)):
        strategy = Diffusion(draft=8, **fields)
        *_, last = generate(session, by(strategy, Request(GREEDY.replace(temperature=1.0), 25)))
        stats = last.stats
        assert stats is not None and stats.bytes == 25  # the first byte, and three blocks behind their first ones
        assert stats.entropy_passes == 0 and stats.encoder_passes == 3
        assert stats.decoder_passes == 3 + 3 * passes
        assert stats.drafted == stats.accepted == 21


def test_sessions_of_one_prefix_do_not_meet() -> None:
    """Two ways on from one session, in turns."""
    case = tempered(example("stride:k=3"), 1.0)
    ids = vocab.encode(b"abcdef").tolist()
    base: Session = start(case).extend(ids)
    strategy, row = strategy_of("verified", draft=8), [Pending(60, 40, GREEDY, None)]
    wanted = strategy.propose(start(case).extend([*ids, 61]), row).drafts
    one, other = base.extend([61]), base.extend([62])
    strategy.propose(other, row)
    assert strategy.propose(one, row).drafts == wanted
    strategy.propose(base, row)
    Uncached(case).assert_row(one, [*ids, 61])
    assert strategy.propose(one, row).drafts == wanted
