"""Several prompts side by side: each one's bytes are those of the prompt alone, whatever stands beside it."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import ByteLM, Prompt
from bltkit.checkpoint import Bundle
from bltkit.generate.options import Options
from tests.tiny import Case, cases

prompts = st.one_of(
    st.sampled_from([b"", b"a", b"\xff", b"\xc3", "é☃".encode(), b"\x00\x1b"]),
    st.binary(max_size=8),
    st.binary(min_size=1, max_size=3).map(lambda piece: piece * 15),
)
asked = st.tuples(
    prompts,
    st.one_of(st.none(), st.integers(-(2**70), 2**70)),
    st.one_of(st.none(), st.integers(0, 12)),
    st.one_of(st.none(), st.binary(min_size=1, max_size=1)),
)
"""Fields of a `Prompt`."""


def lm_of(case: Case, block: int | None = None) -> ByteLM:
    model = case.model
    if block is not None:
        model.config = model.config.replace(diffusion_block=block)
    return ByteLM(Bundle(model, case.scorer, case.rule, {}))


def alone(lm: ByteLM, prompt: Prompt, **options: object) -> tuple[bytes, str, tuple[bool, ...]]:
    merged: Options = {**options, **prompt.options}  # type: ignore[typeddict-item]
    result = lm.generate(prompt.text, **merged)
    return result.data, result.finish, result.opens


@settings(max_examples=8)
@given(cases(), st.lists(asked, max_size=5), st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_many_prompts_are_each_as_alone(
    case: Case, asked_for: list[tuple[Any, ...]], batch_size: int, seed: int, valid: bool
) -> None:
    lm, several = lm_of(case), [Prompt(*fields) for fields in asked_for]
    options: Options = {"seed": seed, "max_bytes": 6, "temperature": 1.0, "valid_utf8": valid}
    results = lm.generate_many(several, batch_size=batch_size, **options)
    assert [(r.data, r.finish, r.opens) for r in results] == [alone(lm, prompt, **options) for prompt in several]


@settings(max_examples=5)
@given(
    cases(),
    st.lists(prompts, min_size=2, max_size=4),
    st.sampled_from(["speculative", "blt-s", "verified", "diffusion", "auto"]),
)
def test_strategies_work_side_by_side(case: Case, several: list[bytes], strategy: str) -> None:
    lm = lm_of(case, block=4)
    options: Options = {"strategy": strategy, "max_bytes": 8, "seed": 3, "draft": None}
    results = lm.generate_many(several, batch_size=3, **options)
    assert [result.data for result in results] == [lm.generate(prompt, **options).data for prompt in several]


@pytest.fixture(scope="module")
def lm() -> ByteLM:
    return ByteLM.load("bltkit:tiny")


def test_results_come_as_they_finish_and_prompts_are_read_as_rows_become_free(lm: ByteLM) -> None:
    """An endless iterator is fine: no more prompts are read than rows are free."""
    read = 0

    def endless() -> Iterator[Prompt]:
        nonlocal read
        for number in count():
            read += 1
            yield Prompt(f"{number}", max_bytes=9 if number == 0 else 2)

    results = lm.generate_iter(endless(), batch_size=3)
    first = [next(results)[0] for _ in range(4)]
    assert 0 not in first and len(set(first)) == 4
    assert read <= 3 + 4
    assert lm.generate_many([]) == []


def test_patches_of_a_generation_are_those_of_the_text(lm: ByteLM) -> None:
    for strategy in ("ar", "speculative", "auto"):
        made = lm.generate("The first ", max_bytes=24, seed=2, strategy=strategy, stop="zzz")
        starts = lm.patches(b"The first " + made.data).to_json()["starts"]
        assert [at for at, opens in enumerate(made.opens) if opens] == [at - 10 for at in starts if at >= 10]


def test_a_bad_prompt_is_found_before_anything_is_generated(lm: ByteLM) -> None:
    with pytest.raises(ValueError, match="type str"):
        lm.generate_many("abc")
    with pytest.raises(ValueError, match="batch_size = 0"):
        lm.generate_many(["a"], batch_size=0)
    with pytest.raises(ValueError, match="max_bytes = -1"):
        Prompt("a", max_bytes=-1)
