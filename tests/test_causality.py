"""Nothing that stands before a byte knows the byte, at any stage; and what must know it does. All in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.model import EntropyConfig, EntropyModel
from bltkit.patches import Patches
from bltkit.patching import patch
from bltkit.vocab import BOS, EOS, encode
from tests import tiny
from tests.rows import example
from tests.tiny import Case

SAME = 1e-12
MOVED = 1e-9


@dataclass(frozen=True)
class Stages:
    """Everything between a row's bytes and its logits; one row, no batch axis."""

    scores: Tensor | None
    patches: Patches
    by_byte: dict[str, Tensor]
    by_patch: dict[str, Tensor]


@torch.no_grad()
def stages(case: Case, ids: Sequence[int]) -> Stages:
    row, model = torch.tensor([list(ids)]), case.model
    scores = None if case.scorer is None else case.scorer.scores(row)
    patches = patch(case.rule, row, scores, documents=case.config.document_masks)
    documents = model.documents(row)
    embeds = model.embed(row, documents)
    h, z = model.encoder(embeds, patches, documents)
    latents = model.latent(z, model.patch_documents(documents, patches))
    logits = model.decoder(h, latents, patches.byte_latent, documents)
    torch.testing.assert_close(logits, model(row, patches), atol=SAME, rtol=0)
    return Stages(
        None if scores is None else scores[0],
        patches,
        {"embeds": embeds[0], "h": h[0], "logits": logits[0]},
        {"z": z[0], "latents": latents[0]},
    )


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


@settings(max_examples=40)
@given(tiny.cases(), st.data())
def test_nothing_before_a_byte_knows_it(case: Case, data: st.DataObject) -> None:
    """A BOS is left out on both sides of the change: it closes the patch in front of it by design."""
    choices = [t for t, value in enumerate(case.ids) if value != BOS]
    if not choices:
        return
    t = data.draw(st.sampled_from(choices))
    other = data.draw(st.sampled_from([value for value in (EOS, 4, 14, 36, 101, 255) if value != case.ids[t]]))
    one, two = stages(case, case.ids), stages(case, [*case.ids[:t], other, *case.ids[t + 1 :]])

    # The byte itself is not asked whether it opens a patch: column t is decided before it is seen.
    assert one.patches.starts[0, : t + 1].tolist() == two.patches.starts[0, : t + 1].tolist()
    complete = int(one.patches.starts[0, : t + 1].sum()) - 1
    if one.scores is not None and two.scores is not None:
        assert difference(one.scores[:t], two.scores[:t]) < SAME
        assert difference(one.scores[t], two.scores[t]) > MOVED
    for name in one.by_byte:
        assert difference(one.by_byte[name][:t], two.by_byte[name][:t]) < SAME, name
        assert difference(one.by_byte[name][t], two.by_byte[name][t]) > MOVED, name
    for name in one.by_patch:
        assert difference(one.by_patch[name][:complete], two.by_patch[name][:complete]) < SAME, name
        assert difference(one.by_patch[name][complete], two.by_patch[name][complete]) > MOVED, name


@pytest.mark.parametrize("rule", ["stride:k=3", "space", "byte"])
@pytest.mark.parametrize("masks", [False, True])
def test_a_byte_is_known_to_the_end_of_its_document(rule: str, masks: bool) -> None:
    """Past every local window, through the latents; into the next document only where documents are ignored."""
    case = example(rule)
    case = replace(case, config=case.config.replace(document_masks=masks))
    first, second = encode(b"ab cd ef gh ij kl mn op", eos=True).tolist(), encode(b"qr st uv wx").tolist()
    ids = [*first, *second]
    changed = [ids[0], ids[1] + 1, *ids[2:]]
    moved = [difference(a, b) > MOVED for a, b in zip(*(case.run(row)[0] for row in (ids, changed)), strict=True)]
    assert moved == [False] + [True] * (len(first) - 1) + [not masks] * len(second)


@pytest.mark.parametrize("window", [1, 3, None])
def test_an_entropy_model_knows_its_window(window: int | None) -> None:
    """One layer: exactly `window` scores know a byte, all later ones without a window."""
    model = EntropyModel(EntropyConfig(width=8, layers=1, heads=2, ffn_width=12, window=window))
    model = tiny.fill(model.double(), 0)
    ids = encode(b"abcdefghij")[None]
    changed = ids.clone()
    changed[0, 4] += 1
    moved = ((model.scores(ids) - model.scores(changed)).abs() > MOVED)[0].nonzero()[:, 0].tolist()
    assert moved == list(range(4, 11 if window is None else 4 + window))
