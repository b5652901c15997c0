"""Figures of the study `entropy`: ranks, calibration, evenness, borders and characters, against slow versions."""

import itertools
import math
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bltkit.eval.scripts import script
from bltkit.study.entropy_quality.borders import (
    after_spaces,
    agreement,
    border_figures,
    evenness,
    fixed_borders,
    highest_borders,
    mean_figures,
    per_patch,
    random_borders,
    token_borders,
    word_borders,
)
from bltkit.study.entropy_quality.characters import by_script, characters, scripts
from bltkit.study.entropy_quality.scores import calibration
from bltkit.study.stats import spearman, spearman_interval
from bltkit.tokens import ByteTokenizer, train_bpe

RANDOM = np.random.default_rng(0)
FEW = st.integers(-3, 3).map(float)
PAIRS = st.lists(st.tuples(FEW, FEW), min_size=2, max_size=30)
TEXTS = st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode))


def flags(size: int, seed: int, share: float = 0.4) -> Any:
    found = np.random.default_rng(seed).random(size) < share
    found[0] = True
    return found


@given(PAIRS)
def test_spearman_is_scipys(pairs: list[tuple[float, float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = zip(*pairs, strict=True)
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found is not None and math.isclose(found, stats.spearmanr(first, second).statistic, abs_tol=1e-12)


def test_bootstrap_ranks_what_it_drew() -> None:
    """Its percentiles are those of drawing the blocks themselves."""
    first = RANDOM.integers(0, 5, 60).astype(float)
    second = first + RANDOM.normal(0, 2, 60)
    found = spearman_interval(first, second, block=7, resamples=50, seed=3)
    draws = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=50)
    blocks = [np.arange(60)[at : at + 7] for at in range(0, 60, 7)]
    slow = []
    for draw in draws:
        taken = np.concatenate([np.tile(block, times) for block, times in zip(blocks, draw, strict=True)])
        slow.append(spearman(first[taken], second[taken]))
    assert found.interval == pytest.approx(list(np.quantile(np.array(slow, float), [0.025, 0.975])))
    assert found.low is not None and found.value is not None and found.high is not None
    assert found.low < found.value < found.high


def test_without_two_blocks_or_two_values_there_is_no_interval() -> None:
    rising = np.arange(9.0)
    assert spearman_interval(rising, rising, block=9, resamples=5).interval is None
    assert spearman_interval(rising, rising * 0, block=2, resamples=5).value is None
    with pytest.raises(ValueError, match="ranked in pairs"):
        spearman([1, 2], [1])


def test_a_planted_entropy_is_perfect_and_a_shuffled_one_worthless() -> None:
    surprisals = RANDOM.exponential(2, 20_000)
    perfect = calibration(surprisals, {"own": surprisals}, "own", 20)
    assert spearman(surprisals, surprisals) == pytest.approx(1)
    assert perfect["ece"] < 1e-12 and perfect["slope"] == pytest.approx(1) and abs(perfect["gap"]) < 1e-12
    shuffled = RANDOM.permutation(surprisals)
    correlation = spearman(shuffled, surprisals)
    found = calibration(shuffled, {"own": surprisals}, "own", 20)
    assert correlation is not None and abs(correlation) < 0.03
    assert found["slope"] == pytest.approx(0, abs=0.05) and found["ece"] > 1 and abs(found["gap"]) < 1e-9


def test_error_of_a_calibrated_model_is_what_chance_makes_of_it() -> None:
    errors, noises = [], []
    for _ in range(30):
        entropies = RANDOM.uniform(0, 5, 2000)
        found = calibration(entropies, {"own": entropies + RANDOM.normal(0, 1, 2000)}, "own", 10)
        errors.append(found["ece"])
        noises.append(found["ece_noise"])
    assert np.mean(errors) == pytest.approx(np.mean(noises), rel=0.15)
    surer = calibration(entropies, {"own": entropies * 2 + 1}, "own", 10)
    assert surer["slope"] == pytest.approx(2) and surer["gap"] == pytest.approx(entropies.mean() + 1) == surer["ece"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_bins_hold_all_bytes_and_never_part_equal_entropies(levels: list[int], bins: int) -> None:
    entropies = np.array(levels, float)
    surprisals = {"own": entropies**2, "other": -entropies}
    found = calibration(entropies, surprisals, "own", bins)
    assert sum(part["n"] for part in found["bins"]) == len(levels) and len(found["bins"]) <= bins
    for name, values in surprisals.items():
        total = sum(part["n"] * part["surprisal"][name] for part in found["bins"])
        assert total == pytest.approx(values.sum())
    below = 0
    for one in found["bins"]:  # a bin is a stretch of the sorted entropies, between two different ones
        part = sorted(levels)[below : below + one["n"]]
        assert one["entropy"] == pytest.approx(np.mean(part))
        below += one["n"]
        assert below == len(levels) or sorted(levels)[below] > part[-1]


def test_evenness_of_known_amounts() -> None:
    assert evenness(np.full(7, 3.0)) == evenness(np.array([3.0]))
    assert evenness(np.full(7, 3.0)) == {"mean": 3, "cv": pytest.approx(0), "gini": pytest.approx(0)}
    one = evenness(np.array([0, 0, 0, 8.0]))
    assert one == {"mean": 2, "cv": pytest.approx(math.sqrt(3)), "gini": 0.75}
    assert evenness(np.zeros(3))["gini"] is None
    amounts = RANDOM.exponential(1, 50)
    slow = np.abs(amounts[:, None] - amounts[None]).sum() / (2 * 50 * amounts.sum())
    assert evenness(amounts)["gini"] == pytest.approx(slow)


@given(st.integers(1, 60), st.data())
def test_border_sets_of_a_rate(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 5))
    entropies = np.random.default_rng(seed).integers(0, 4, size).astype(float)
    sets = fixed_borders(size, count), random_borders(size, count, seed), highest_borders(entropies, count)
    for borders in sets:
        assert borders[0] and borders.sum() == count and len(borders) == size
    gaps = np.diff([*np.flatnonzero(sets[0]), size])
    assert gaps.max() - gaps.min() <= 1
    chosen, others = entropies[1:][sets[2][1:]], entropies[1:][~sets[2][1:]]
    assert not len(chosen) or not len(others) or chosen.min() >= others.max()
    assert (random_borders(size, count, seed) == sets[1]).all()


@given(TEXTS.filter(bool), st.integers(0, 5))
def test_border_figures_are_those_counted_by_hand(data: bytes, seed: int) -> None:
    bits = np.random.default_rng(seed).exponential(2, len(data))
    borders = flags(len(data), seed)
    found = border_figures(borders, {"a": bits}, characters(data))
    patches: list[list[int]] = []
    for at, opens in enumerate(borders):
        if opens:
            patches.append([])
        patches[-1].append(at)
    sums = [sum(bits[at] for at in patch) for patch in patches]
    inside = [bits[at] for patch in patches for at in patch[1:]]
    one = found["judges"]["a"]
    assert found["borders"] == len(patches) and found["bytes_per_patch"] == len(data) / len(patches)
    assert one["first"] == pytest.approx(np.mean([bits[patch[0]] for patch in patches]))
    assert one["inside"] == (pytest.approx(np.mean(inside)) if inside else None)
    assert one["first_share"] == pytest.approx(sum(bits[patch[0]] for patch in patches) / bits.sum())
    assert one["patch_mean"] == pytest.approx(np.mean(sums))
    assert one["patch_cv"] == pytest.approx(np.std(sums) / np.mean(sums))
    assert per_patch(bits, borders) == pytest.approx(sums)
    wide, cut = 0, 0
    for begin, size, stray in pieces(data):
        if size > 1 and not stray:
            wide += 1
            cut += any(borders[begin + 1 : begin + size])
    assert found["cut_characters"] == (pytest.approx(cut / wide) if wide else None)


def pieces(data: bytes) -> list[tuple[int, int, bool]]:
    """Offset and size of each character, and whether it is a byte that belongs to none, tried out byte by byte."""
    found, at = [], 0
    while at < len(data):
        for size in (1, 2, 3, 4):
            try:
                whole = len(data[at : at + size].decode()) == 1
            except UnicodeDecodeError:
                whole = False
            if whole and at + size <= len(data):
                found.append((at, size, False))
                break
        else:
            size = 1
            found.append((at, 1, True))
        at += size
    return found


@given(TEXTS)
def test_characters_are_those_found_by_trying(data: bytes) -> None:
    found = characters(data)
    assert list(zip(found.starts.tolist(), found.sizes.tolist(), found.stray.tolist(), strict=True)) == pieces(data)


def test_agreement_counts_and_chance_is_what_random_borders_reach() -> None:
    wanted = flags(4000, 1, 0.2)
    found = flags(4000, 2, 0.3) | (wanted & flags(4000, 3, 0.5))
    both = sum(bool(found[at] and wanted[at]) for at in range(1, 4000))
    one = agreement(found, wanted)
    precision, recall = both / found[1:].sum(), both / wanted[1:].sum()
    assert (one["precision"], one["recall"]) == (pytest.approx(precision), pytest.approx(recall))
    assert one["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    by_chance = [agreement(random_borders(4000, int(found.sum()), seed), wanted)["f1"] for seed in range(200)]
    assert one["chance"] == pytest.approx(np.mean(np.array(by_chance, float)), rel=0.02)
    assert agreement(wanted, wanted)["f1"] == 1
    assert agreement(fixed_borders(5, 1), wanted[:5])["f1"] is None


def test_borders_of_words_and_tokens() -> None:
    data = "Hi,  a tent. Ünï".encode()
    assert split(data, word_borders(data)) == [b"Hi,", b"  a ", b"tent.", b" \xc3\x9cn\xc3", b"\xaf"]
    tokenizer = ByteTokenizer.from_json(train_bpe([b"the tent the tent the tent"], 265))
    tokens = [tokenizer.pieces[token] for token in tokenizer.encode(data)]
    assert split(data, token_borders(data, tokenizer)) == tokens and b" tent" in tokens
    moved = split(data, after_spaces(token_borders(data, tokenizer), data))
    assert b"tent" in moved and b"".join(moved) == data and len(moved) <= len(tokens)


def split(data: bytes, borders: Any) -> list[bytes]:
    places = [*np.flatnonzero(borders), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def test_scripts_of_letters_and_what_stands_between() -> None:
    text = "1 abc, где? 漢字かな é\u0301 µ"
    names = scripts(characters(text.encode()))
    expected = ["Latin"] * 7 + ["Cyrillic"] * 5 + ["Han"] * 2 + ["Hiragana"] * 3 + ["Latin"] * 4
    assert list(names) == expected
    assert [script(one) for one in "ア한ก5∑"] == ["Katakana", "Hangul", "Thai", None, None]
    assert script(unicodedata.lookup("FULLWIDTH LATIN SMALL LETTER A")) == "Latin"
    assert set(scripts(characters(b"12 \xff"))) == {"none"}


def test_figures_by_script_sum_to_the_text() -> None:
    data = "Then где мы, 漢字と漢字. And".encode()
    borders, bits = flags(len(data), 4), RANDOM.exponential(2, len(data))
    for word in ("где", "漢字", "と"):  # so that no script is without a patch
        borders[data.index(word.encode())] = True
    found = by_script(characters(data), borders, {"a": bits}, 1)
    assert sum(one["bytes"] for one in found.values()) == len(data)
    assert sum(one["borders"] for one in found.values()) == borders.sum()
    carried = sum(one["bits_per_patch"]["a"] * one["borders"] for one in found.values())
    assert carried == pytest.approx(bits.sum())
    assert found["Latin"]["cut_share"] is None
    assert next(iter(found)) == max(found, key=lambda name: found[name]["bytes"])
    assert found["Hiragana"]["bytes"] == 3 and found["Hiragana"]["bytes_per_patch"] == 3 / found["Hiragana"]["borders"]
    assert set(by_script(characters(data), borders, {"a": bits}, 4)) == set(found) - {"Hiragana"}


def test_mean_figures_average_leaf_by_leaf() -> None:
    several = [{"n": 2, "x": {"a": 1.0, "b": None}}, {"n": 2, "x": {"a": 3.0, "b": 1.0}}]
    assert mean_figures(several) == {"n": 2, "x": {"a": 2.0, "b": None}}
