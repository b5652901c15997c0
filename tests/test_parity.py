"""Directories are exchangeable with `transformers`: its models give the same logits here, and ours there.

Random tiny models in fp32 (tests/hf.py), 1e-5 on every logit of every position. Draws whose fp32 answer is
uncertain by itself are left out: see `hf.rounding_error`.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

from tests import hf, ours

pytest.importorskip("transformers")

TOLERANCE = 1e-5
CLEAR = 4e-6  # the oracle's own error: what remains of the tolerance is ours

parity = settings(max_examples=15, deadline=None)


@parity
@given(case=hf.cases())
def test_their_directory_here(case: hf.Case) -> None:
    model = hf.build(case)
    assume(hf.rounding_error(model, case.ids) < CLEAR)
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, Path(folder))
        entropy = ours.entropies_hf_dir(Path(folder))(case.ids).numpy()
        logits = ours.load_hf_dir(Path(folder))(case.ids).numpy()
    assert np.abs(entropy - hf.entropies(model, case.ids)).max() < TOLERANCE
    assert np.abs(logits - hf.logits(model, case.ids)).max() < TOLERANCE


def test_their_directory_in_the_published_spelling(tmp_path: Path) -> None:
    ids = hf.text_ids("Some words, some more words, und längere Wörter.")
    hf.save(hf.build(hf.Case(hf.Shape(k=3, window=None, patcher_window=None), 3, ids)), tmp_path)
    hf.spell_as_published(tmp_path)
    back = hf.load(tmp_path)
    assert np.abs(ours.entropies_hf_dir(tmp_path)(ids).numpy() - hf.entropies(back, ids)).max() < TOLERANCE
    assert np.abs(ours.load_hf_dir(tmp_path)(ids).numpy() - hf.logits(back, ids)).max() < TOLERANCE


@parity
@given(case=hf.cases())
def test_our_directory_there(case: hf.Case) -> None:
    model = hf.build(case)
    with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved"
        hf.save(model, Path(theirs))
        ours.roundtrip(Path(theirs), saved)
        back = hf.load(saved)
    same_model(back, model, case.ids)


@settings(max_examples=5, deadline=None)
@given(case=hf.cases())
def test_a_directory_survives_the_oracle_alone(case: hf.Case) -> None:
    """The test above can only be trusted if the oracle reads its own directories back exactly."""
    model = hf.build(case)
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, Path(folder))
        same_model(hf.load(Path(folder)), model, case.ids)


def same_model(back: Any, model: Any, ids: tuple[int, ...]) -> None:
    """The tensors are equal to the bit.

    The answers are not: fp32 sums depend on where in memory a tensor lies.
    """
    tensors = hf.weights_of(model)
    assert hf.weights_of(back).keys() == tensors.keys()
    for name, tensor in hf.weights_of(back).items():
        assert np.array_equal(tensor, tensors[name]), name
    assert back.config.patching_threshold == model.config.patching_threshold
    assume(hf.rounding_error(model, ids) < CLEAR)
    assert np.abs(hf.entropies(back, ids) - hf.entropies(model, ids)).max() < TOLERANCE
    assert np.abs(hf.logits(back, ids) - hf.logits(model, ids)).max() < TOLERANCE
