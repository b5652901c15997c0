"""The executable specification itself: against worked examples, `transformers`, and its own laws.

That it reproduces golden files is in test_golden.py (ours) and test_golden_shared.py.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import hf, recipe, reference

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


def deviation(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


# ------------------------------------------------------------ worked examples


EXAMPLE_ENTROPY = np.array([3.0, 0.5, 2.0, 2.0, 0.1, 1.6, 1.7, 1.0, 1.5, 2.6])


@pytest.mark.parametrize(
    ("threshold", "longest", "expected"),
    [(1.5, None, [0, 1, 3, 4, 6, 7, 10]), (9.0, None, [0, 1]), (1.5, 2, [0, 1, 3, 4, 6, 7, 9, 10])],
)
def test_starts_of_the_worked_example(threshold: float, longest: int | None, expected: list[int]) -> None:
    ids = [1, *range(10, 19)]
    starts = reference.starts_of(ids, EXAMPLE_ENTROPY, threshold, max_patch_bytes=longest)
    assert [q for q, opens in enumerate(starts) if opens] == expected


def test_patches_of_the_worked_example() -> None:
    starts = [q in (0, 1, 3, 4, 6) for q in range(9)]
    patch = reference.patch_of(starts)
    assert patch[:8] == [0, 1, 1, 2, 3, 3, 4, 4]
    assert [patch[t + 1] - 1 for t in range(8)] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert reference.patch_of([*starts[:8], True])[8] - 1 == 4


def test_an_entry_beyond_the_end_says_that_the_next_byte_opens_a_patch() -> None:
    closed = [True, True, False, True, False, False]
    assert reference.starts_from_lengths([1, 2, 2], 5) == closed
    for extra in (-1, 0, 1):
        assert reference.starts_from_lengths([1, 2, 2, extra], 5) == [*closed[:5], True]


@pytest.mark.parametrize(
    ("text", "size", "raw"),
    [
        ("The cat sat", 3, -9127206734966854606),
        ("The cat sat", 4, -42015270164797054),
        ("The cat sat", 5, -6925931237496293626),
        ("The cat sat", 8, 6173463698966349140),
    ],
)
def test_hashes_wrap_in_int64_and_floor(text: str, size: int, raw: int) -> None:
    window = hf.text_ids(text)[-size:]
    assert reference.hash_bucket(window, reference.PRIMES[0], 500002) == raw % 500002
    assert reference.hash_bucket(window, reference.PRIMES[0], 2**64) == raw % 2**64


def test_the_second_hash_function_has_its_own_prime() -> None:
    config = {
        "encoder_hash_byte_group_nb_functions": 2,
        "encoder_hash_byte_group_size": [3],
        "encoder_hash_byte_group_vocab": 500002,
    }
    first, second = reference.hash_ids(config, hf.text_ids("hello"))
    assert first == [443987, 25397, 266194, 386177, 358223, 190185]
    assert second == [45033, 365687, 37366, 65361, 10661, 145767]


# ------------------------------------------------------------ transformers


@needs_transformers
@settings(max_examples=15, deadline=None)
@given(case=hf.cases())
def test_equals_transformers(case: hf.Case) -> None:
    model = hf.build(case)
    # The oracle's fp32 alone costs up to 1.4e-5 in 400 draws; a wrong formula costs 1e-2 and more.
    assert hf.rounding_error(model, case.ids) < 5e-5


@needs_transformers
@settings(max_examples=15, deadline=None)
@given(case=hf.cases(), coins=st.integers(0, 2**16))
def test_equals_transformers_on_any_given_patches(case: hf.Case, coins: int) -> None:
    size = len(case.ids)
    starts = [True, True, *(np.random.RandomState(coins).random(size - 1) < 0.4).tolist()]
    edges = [q for q, opens in enumerate(starts) if opens]
    lengths = np.diff([*edges, size] if not starts[size] else edges).tolist()
    model = hf.build(case)
    import torch

    given_lengths = torch.tensor([[*lengths, 1] if starts[size] else lengths])
    want = hf.logits(model, case.ids, patch_lengths=given_lengths)
    got = reference.forward(hf.weights_of(model), model.config.to_dict(), case.ids, starts)["logits"]
    assert deviation(got, want) < 5e-5


@needs_transformers
def test_equals_transformers_on_the_published_spelling(tmp_path: Path) -> None:
    model = hf.build(hf.Case(hf.Shape(k=3, window=None, patcher_window=None), 3, LONG_ROW))
    weights, before = hf.weights_of(model), hf.logits(model, LONG_ROW)
    hf.save(model, tmp_path)
    config = hf.spell_as_published(tmp_path)
    back = hf.load(tmp_path)
    assert deviation(reference.entropies(weights, config, LONG_ROW), hf.entropies(back, LONG_ROW)) < 1e-5
    assert deviation(reference.run(weights, config, LONG_ROW), hf.logits(back, LONG_ROW)) < 1e-5
    assert deviation(before, hf.logits(back, LONG_ROW)) > 0.1


LONG_ROW = hf.text_ids("Some words, some more words, und längere Wörter.")


@needs_transformers
def test_every_tensor_counts_in_the_oracle() -> None:
    """A parity test sees a mistake in a tensor only if the tensor moves the output: each does, by far more
    than 1e-5.
    """
    shape = hf.Shape(k=3, encoder=hf.Stack(layers=2), decoder=hf.Stack(layers=2), hash_functions=2)
    model = hf.build(hf.Case(shape, 5, LONG_ROW))
    entropy, logits = hf.entropies(model, LONG_ROW), hf.logits(model, LONG_ROW)
    import torch

    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(kept.roll(1, 0) * 1.25)
        if "patcher" in name:
            moved = deviation(hf.entropies(model, LONG_ROW), entropy)
        else:
            moved = deviation(hf.logits(model, LONG_ROW), logits)
        assert moved > 1e-2, name
        with torch.no_grad():
            parameter.copy_(kept)


@needs_transformers
def test_encoder_cross_attention_in_every_layer() -> None:
    """With one layer it is the released model; with two, the first must count (in the oracle it is dead
    weight).
    """
    one = hf.build(hf.Case(hf.Shape(encoder_every_layer=True), 7, LONG_ROW))
    assert hf.rounding_error(one, LONG_ROW) < 1e-5

    two = hf.build(hf.Case(hf.Shape(encoder=hf.Stack(layers=2), encoder_every_layer=True), 7, LONG_ROW))
    weights, config = hf.weights_of(two), two.config.to_dict()
    name = "model.local_encoder.cross_attn_layers.0.v_proj.weight"
    changed = {**weights, name: -weights[name]}
    exact = reference.run(weights, config, LONG_ROW)
    assert deviation(exact, reference.run(changed, config, LONG_ROW)) > 0.1
    assert deviation(exact, hf.logits(two, LONG_ROW)) > 0.1


# ------------------------------------------------------------ its own laws


def small() -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """A model with two decoder layers, without `transformers`."""
    local = {"num_attention_heads": 2, "cross_attn_k": 2}
    config = {
        "cross_attn_k": 2,
        "local_attention_window_len": 8,
        "encoder_hash_byte_group_vocab": 31,
        "patching_threshold": 0.0,
        "patcher_config": {"num_hidden_layers": 2, "num_attention_heads": 2, "sliding_window": 6},
        "encoder_config": {**local, "num_hidden_layers": 1},
        "decoder_config": {**local, "num_hidden_layers": 2},
        "global_config": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16},
    }

    def layers(prefix: str, width: int, count: int) -> dict[str, tuple[int, ...]]:
        square = {f"self_attn.{x}_proj": (width, width) for x in "qkvo"}
        norms = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        mlp = {"mlp.gate_proj": (12, width), "mlp.up_proj": (12, width), "mlp.down_proj": (width, 12)}
        one = {**square, **norms, **mlp}
        return {f"{prefix}.layers.{i}.{name}.weight": shape for i in range(count) for name, shape in one.items()}

    def cross(prefix: str, count: int) -> dict[str, tuple[int, ...]]:
        one = {**{f"{x}_proj": (8, 8) for x in "qkvo"}, "q_norm": (8,), "k_norm": (8,)}
        return {f"{prefix}.cross_attn_layers.{i}.{n}.weight": s for i in range(count) for n, s in one.items()}

    enc, dec, patcher = "model.local_encoder", "model.local_decoder", "model.patcher"
    shapes: dict[str, tuple[int, ...]] = {
        **layers(enc, 8, 1),
        **cross(enc, 1),
        f"{enc}.embed_tokens.weight": (260, 8),
        f"{enc}.patch_embedding_projection.weight": (16, 8),
        "model.encoder_hash_tok_embedding.weight": (6 * 31, 8),
        **layers("model.global_transformer", 16, 2),
        **layers(dec, 8, 2),
        **cross(dec, 2),
        f"{dec}.patch_embedding_projection.weight": (16, 16),
        f"{dec}.norm.weight": (8,),
        "lm_head.weight": (260, 8),
        **layers(patcher, 8, 2),
        f"{patcher}.embed_tokens.weight": (260, 8),
        f"{patcher}.norm.weight": (8,),
        f"{patcher}.lm_head.weight": (260, 8),
    }
    return config, recipe.tensors(11, shapes)


def middle_threshold(entropy: NDArray[Any]) -> float:
    return hf.threshold_in_gap(entropy.astype(np.float32))


def test_a_prefix_gives_the_prefix_of_the_answers() -> None:
    config, weights = small()
    entropy = reference.entropies(weights, config, LONG_ROW)
    config["patching_threshold"] = middle_threshold(entropy)
    full = reference.run(weights, config, LONG_ROW)
    for size in (1, 2, 3, 17, 30):
        prefix = LONG_ROW[:size]
        assert deviation(reference.entropies(weights, config, prefix), entropy[:size]) < 1e-12
        assert deviation(reference.run(weights, config, prefix), full[:size]) < 1e-12


def test_documents_of_a_packed_row_are_as_if_alone() -> None:
    """Positions run on in a packed row, which RoPE does not see, so each document's answers are its own
    exactly.
    """
    config, weights = small()
    texts = ("first document", "", "the second\none", "x")
    alone = [(*hf.text_ids(text), reference.BOS + 1) for text in texts]
    packed = [c for ids in alone for c in ids]
    entropy = reference.entropies(weights, config, packed, documents=True)
    threshold = middle_threshold(entropy)
    starts = reference.starts_of(packed, entropy, threshold, documents=True)
    logits = reference.forward(weights, config, packed, starts, documents=True)["logits"]
    at = 0
    for ids in alone:
        here = slice(at, at + len(ids))
        own_entropy = reference.entropies(weights, config, ids)
        assert deviation(entropy[here], own_entropy) < 1e-12
        own_starts = reference.starts_of(ids, own_entropy, threshold)
        if at + len(ids) < len(packed):
            own_starts[-1] = True  # the next document's BOS opens a patch whatever the entropy
        assert starts[at : at + len(ids) + 1] == own_starts
        assert deviation(logits[here], reference.forward(weights, config, ids, own_starts)["logits"]) < 1e-12
        at += len(ids)
    together = reference.forward(weights, config, packed, starts)["logits"]
    assert deviation(together, logits) > 0.1


def test_reset_at_newline_forgets_what_came_before() -> None:
    config, weights = small()
    head, tail = hf.text_ids("some line"), hf.text_ids("\nnext")[1:]
    row = (*head, *tail)
    forgetful = reference.entropies(weights, config, row, newlines=True)
    assert deviation(forgetful[len(head) :], reference.entropies(weights, config, tail)) < 1e-12
    assert deviation(forgetful[: len(head)], reference.entropies(weights, config, head)) < 1e-12
    assert deviation(forgetful, reference.entropies(weights, config, row)) > 0.1
