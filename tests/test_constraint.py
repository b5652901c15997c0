"""Valid UTF-8 as Python's own decoder sees it, within every budget; masks along drafts."""

from collections.abc import Sequence
from functools import cache, reduce
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bltkit.generate.constraint import Constraint, Utf8, masks_along
from bltkit.generate.sampling import Sampling, choose
from bltkit.vocab import EOS, NEVER_EMITTED, OFFSET, VOCAB_SIZE

BORDER = Utf8()


# Every byte at which a rule of RFC 3629 begins or ends to hold, and its neighbour on the other side.
EDGES = bytes.fromhex("00 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")


def decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False
    return True


@cache
def beginnings() -> dict[bytes, set[int]]:
    """Every beginning of a character (the empty one too), and the bytes that may come next, from all characters."""
    found: dict[bytes, set[int]] = {}
    for code in range(0x110000):
        if not 0xD800 <= code <= 0xDFFF:
            data = chr(code).encode()
            for cut, byte in enumerate(data):
                found.setdefault(data[:cut], set()).add(byte)
    return found


def bytes_in(mask: Tensor) -> list[int]:
    """The bytes (not the special ids) that a mask allows."""
    return (mask[OFFSET:].nonzero().flatten()).tolist()


def walk(data: bytes, state: Utf8 = BORDER) -> Utf8:
    return reduce(lambda before, byte: before.after(byte + OFFSET), data, state)


characters = st.one_of(
    st.sampled_from([chr(code) for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)]),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.text(characters, max_size=8)


def test_every_beginning_goes_on_as_its_characters_do() -> None:
    """All bytes behind every unfinished character: exhaustive for all sequences of up to four bytes."""
    for begun, following in beginnings().items():
        state = walk(begun)
        mask = state.allowed(4)
        assert bytes_in(mask) == sorted(following)
        assert bool(mask[EOS]) == (not begun) == (state == BORDER)
        assert not mask[list(NEVER_EMITTED)].any()


def test_the_strict_decoder_accepts_the_same() -> None:
    """All sequences of up to four bytes, four characters among them, of bytes around every border of the rules."""

    @cache
    def reached(data: bytes) -> Utf8 | None:
        before, chosen = reached(data[:-1]) if data[:-1] else BORDER, data[-1] + OFFSET
        return before.after(chosen) if before is not None and before.allowed(4)[chosen] else None

    for length in range(1, 5):
        for values in product(EDGES, repeat=length):
            assert (reached(bytes(values)) == BORDER) == decodes(bytes(values))


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 100])
def test_a_character_begins_only_where_it_fits(budget: int) -> None:
    mask = BORDER.allowed(budget)
    # The longer a character, the larger its first byte.
    last = "\x7f\u07ff\uffff\U0010ffff"[min(budget, 4) - 1].encode()[0]
    assert bytes_in(mask) == sorted(byte for byte in beginnings()[b""] if byte <= last)
    assert mask[EOS]


@given(texts, st.integers(0, 3))
def test_all_valid_text_is_allowed(text: str, spare: int) -> None:
    data, state = text.encode(), BORDER
    for at, byte in enumerate(data):
        assert state.allowed(len(data) - at + spare)[byte + OFFSET]
        state = state.after(byte + OFFSET)
    assert state == BORDER and state.allowed(1)[EOS] and state.after(EOS) == BORDER


@given(
    st.one_of(
        st.binary(max_size=6),
        st.lists(st.sampled_from(EDGES), max_size=6).map(bytes),
        st.builds(lambda text, last, cut: text.encode() + last.encode()[:cut], texts, characters, st.integers(1, 3)),
    )
)
def test_a_prompt_that_ends_within_a_character_is_continued(prompt: bytes) -> None:
    ends = [prompt[at:] for at in range(len(prompt)) if prompt[at:] in beginnings()]
    assert len(ends) <= 1
    assert Utf8.behind(prompt) == (walk(ends[0]) if ends else BORDER)


def test_a_prompt_within_a_character_with_too_small_a_budget() -> None:
    """The right bytes are made, as many as may be; only a longer budget would finish the character."""
    state = Utf8.behind("ok 😀".encode()[:-3])
    for remaining in (1, 2):
        assert bytes_in(state.allowed(remaining)) == list(range(0x90, 0xC0))
        assert not state.allowed(remaining)[EOS]


def sample(seed: int, prompt: bytes, budget: int, logits: Tensor) -> tuple[bytes, bool]:
    """Bytes drawn from the same logits at every position, and whether EOS ended them."""
    state, made = Utf8.behind(prompt), b""
    while len(made) < budget:
        allowed = state.allowed(budget - len(made))
        [[chosen]] = choose(
            [Sampling(temperature=1, seed=seed)], logits[None, None], [len(made)], allowed=allowed[None, None]
        ).ids
        if chosen == EOS:
            return made, True
        state = state.after(chosen)
        made += bytes([chosen - OFFSET])
    return made, False


@given(st.integers(0, 2**32), texts, st.integers(0, 3), st.integers(3, 40), st.sampled_from([-torch.inf, 0.0, 3.0]))
def test_what_is_sampled_is_valid(seed: int, text: str, cut: int, budget: int, eos: float) -> None:
    """Uniform logits make broken text without a constraint; here never, wherever the prompt and the budget end."""
    prompt = text.encode()
    prompt = prompt[: len(prompt) - cut]
    logits = torch.zeros(VOCAB_SIZE)
    logits[EOS] = eos
    made, ended = sample(seed, prompt, budget, logits)
    (prompt + made).decode()
    assert ended or len(made) == budget


def test_long_characters_are_sampled_too() -> None:
    """Logits that like long characters fill any budget with them, and with what still fits at its end."""
    logits = torch.zeros(VOCAB_SIZE)
    logits[OFFSET + 0xF0 : OFFSET + 0xF5] = 8.0
    logits[EOS] = -torch.inf
    lengths = {len(char.encode()) for seed in range(40) for char in sample(seed, b"", 10 + seed, logits)[0].decode()}
    assert lengths == {1, 2, 3, 4}


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6), texts, st.integers(1, 12), st.integers(0, 3))
def test_masks_along_drafts(noise: Sequence[int], text: str, remaining: int, cut: int) -> None:
    """Column i is the mask behind i drafts, as far as one can get there; behind that nothing is chosen."""
    start = Utf8.behind("€".encode()[:cut])
    for drafts in (noise, [byte + OFFSET for byte in "€".encode()[cut:] + text.encode()] + [EOS, *noise]):
        masks, state = masks_along(start, drafts, remaining), start
        assert masks.shape == (len(drafts) + 1, VOCAB_SIZE)
        for at, mask in enumerate(masks):
            assert torch.equal(mask, state.allowed(remaining - at))
            if at == len(drafts) or not mask[drafts[at]] or drafts[at] == EOS or at + 1 == remaining:
                break
            state = state.after(drafts[at])
        assert (masks[at:] == masks[at]).all()


def test_nothing_is_drafted_or_chosen_without_a_budget() -> None:
    with pytest.raises(AssertionError):
        BORDER.allowed(0)
    with pytest.raises(AssertionError):
        BORDER.after(0x80 + OFFSET)


def test_utf8_is_a_constraint() -> None:
    assert isinstance(BORDER, Constraint)
    assert hash(Utf8.behind(b"\xe2")) == hash(walk(b"\xe2"))
