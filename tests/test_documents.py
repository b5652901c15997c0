"""A document in a packed row is as if it stood alone: scores, patches and logits; in float64, any neighbours.

Positions run on in a packed row, which RoPE does not see: what remains is rounding.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.model import EntropyConfig, EntropyModel
from bltkit.patches import Patches
from bltkit.patching import patch
from bltkit.vocab import encode
from tests import tiny
from tests.tiny import Case

TOLERANCE = 1e-9

texts = st.lists(st.lists(st.sampled_from(b"ab \n"), max_size=9).map(bytes), min_size=2, max_size=4)


@torch.no_grad()
def answers(case: Case, ids: Tensor, next_opens: bool) -> tuple[Tensor, Patches, Tensor]:
    """Scores [T], patches and logits [T, V] of one row; `next_opens`: another document follows."""
    row = ids[None]
    scores = torch.zeros(row.shape) if case.scorer is None else case.scorer.scores(row)
    starts = patch(case.rule, row, scores).starts
    if next_opens:
        starts = torch.cat((starts[:, :-1], torch.ones_like(starts[:, -1:])), 1)
    patches = Patches.from_starts(starts)
    return scores[0], patches, case.model(row, patches)[0]


@settings(max_examples=25)
@given(tiny.cases(), texts)
def test_a_document_in_a_packed_row_is_as_if_alone(case: Case, documents: list[bytes]) -> None:
    alone = [encode(text, eos=True) for text in documents]
    packed = torch.cat(alone)
    scorer = case.scorer_config
    if isinstance(scorer, tiny.EntropyConfig | tiny.BoundaryConfig):
        scorer = scorer.replace(document_masks=True)
    config = case.config.replace(document_masks=True)
    case = replace(case, config=config, scorer_config=scorer, ids=packed.tolist())

    scores, patches, logits = answers(case, packed, next_opens=False)
    at = 0
    for ids in alone:
        end = at + len(ids)
        own_scores, own_patches, own_logits = answers(case, ids, next_opens=end < len(packed))
        torch.testing.assert_close(scores[at:end], own_scores, atol=TOLERANCE, rtol=0)
        assert patches.starts[0, at : end + 1].tolist() == own_patches.starts[0].tolist()
        torch.testing.assert_close(logits[at:end], own_logits, atol=TOLERANCE, rtol=0)
        at = end


@pytest.mark.parametrize("masks", [False, True])
def test_without_masks_neighbours_are_seen(masks: bool) -> None:
    model = tiny.fill(EntropyModel(config().replace(document_masks=masks)).double(), 0)
    first, second = encode(b"one", eos=True), encode(b"two", eos=True)
    packed = model.scores(torch.cat((first, second))[None])[0, len(first) :]
    distance = float((packed - model.scores(second[None])[0]).abs().max())
    assert distance < TOLERANCE if masks else distance > 1e-3


def test_reset_at_newline_begins_anew_with_the_newline() -> None:
    model = tiny.fill(EntropyModel(config().replace(document_masks=False, reset_at_newline=True)).double(), 0)
    head, tail = encode(b"some line"), encode(b"\nthe next", bos=False)
    packed = model.scores(torch.cat((head, tail))[None])[0]
    alone = torch.cat((model.scores(head[None])[0], model.scores(tail[None])[0]))
    torch.testing.assert_close(packed, alone, atol=TOLERANCE, rtol=0)
    remembering = tiny.fill(EntropyModel(config().replace(document_masks=False)).double(), 0)
    assert float((remembering.scores(torch.cat((head, tail))[None])[0] - alone)[len(head) :].abs().max()) > 1e-3


def config() -> EntropyConfig:
    return EntropyConfig(width=8, layers=2, heads=2, ffn_width=12, window=6)
