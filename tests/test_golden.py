"""The golden files of this repository: reproduced by the executable specification, and by the package."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden_files, ours, reference
from tests.golden_files import GoldenCase

TOLERANCE = 5e-6  # the oracle computed in fp32; the largest deviation when the files were made is in cases.json
ENTROPY_TOLERANCE = 1e-5

pytestmark = pytest.mark.parametrize("case", golden_files.names(), indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return golden_files.read(request.param)


@pytest.fixture
def directory(case: GoldenCase, tmp_path: Path) -> Path:
    case.write(tmp_path)
    return tmp_path


def test_weights_follow_from_the_recipe(case: GoldenCase) -> None:
    assert golden_files.weights_sha256(case.weights) == case.weights_sha256


def test_reference(case: GoldenCase) -> None:
    entropy = reference.entropies(case.weights, case.config, case.ids)
    starts = reference.starts_of(case.ids, entropy, case.config["patching_threshold"])
    logits = reference.forward(case.weights, case.config, case.ids, starts)["logits"]
    assert np.abs(entropy - case.entropies).max() < ENTROPY_TOLERANCE
    assert starts == case.starts
    assert np.abs(golden_files.kept_logits(logits) - case.logits).max() < TOLERANCE


def test_our_entropies_and_patches(case: GoldenCase, directory: Path) -> None:
    entropy = ours.entropies_hf_dir(directory)(case.ids).numpy()
    assert np.abs(entropy - case.entropies).max() < ENTROPY_TOLERANCE
    assert ours.starts_hf_dir(directory)(case.ids).tolist() == case.starts


def test_our_logits(case: GoldenCase, directory: Path) -> None:
    logits = ours.load_hf_dir(directory)(case.ids).numpy()
    assert logits.shape == (len(case.ids), 260)
    assert np.abs(golden_files.kept_logits(logits) - case.logits).max() < TOLERANCE
