"""Every way in which attention is cut into kernel calls gives the plain masked softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bltkit.model.attention import Rotation, Visibility

HEADS, DIM = 4, 6


def plain(q: Tensor, k: Tensor, v: Tensor, window: int | None, segments: Tensor | None) -> Tensor:
    """The executable specification: one query at a time."""
    rows, heads, queries, dim = q.shape
    history, share = k.shape[2] - queries, heads // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(rows):
        for i in range(queries):
            at = history + i
            keys = range(0 if window is None else max(0, at + 1 - window), at + 1)
            if segments is not None:
                keys = [j for j in keys if segments[b, j] == segments[b, at]]
            for head in range(heads):
                scores = k[b, head // share, list(keys)] @ q[b, head, i] / dim**0.5
                out[b, head, i] = scores.softmax(0) @ v[b, head // share, list(keys)]
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int | None, bool, int, int]:
    window = draw(st.sampled_from([None, 1, 2, 5, 63, 64, 65, 130, 300]))
    queries = draw(st.sampled_from([1, 2, 7, 64, 129, 257, 300]))
    # A sliding cache keeps window - 1 keys; one that keeps more must work as well.
    history = draw(st.sampled_from([0, 1, 40, (window or 5) - 1, (window or 5) + 3]))
    rows, kv_heads = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 4]))
    return rows, queries, history, window, draw(st.booleans()), kv_heads, draw(st.integers(0, 2**16))


@settings(max_examples=40)
@given(case=cases())
def test_attention_is_the_masked_softmax(case: tuple[int, int, int, int | None, bool, int, int]) -> None:
    rows, queries, history, window, segmented, kv_heads, seed = case
    keys, generator = history + queries, torch.Generator().manual_seed(seed)
    q = torch.randn(rows, HEADS, queries, DIM, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, rows, kv_heads, keys, DIM, generator=generator, dtype=torch.float64)
    segments = (torch.rand(rows, keys, generator=generator) < 0.02).cumsum(-1) if segmented else None
    seen = Visibility.of(queries, history, window, segments, q.device).attend(q, k, v)
    torch.testing.assert_close(seen, plain(q, k, v, window, segments), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("form", "queries", "history", "window", "segmented"),
    [
        ("all", 1, 40, None, False),
        ("all", 1, 40, 41, False),
        ("causal", 70, 0, 70, False),
        ("dense", 1, 40, 41, True),
        ("dense", 300, 40, None, True),  # in steps
        ("dense", 20, 40, 41, False),
        ("blocks", 150, 62, 63, True),
        ("blocks", 150, 62, 63, False),
    ],
)
def test_every_form_with_grouped_heads(
    form: str, queries: int, history: int, window: int | None, segmented: bool
) -> None:
    keys = history + queries
    q = torch.randn(2, HEADS, queries, DIM, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, keys, DIM, dtype=torch.float64)
    segments = torch.stack((torch.arange(keys) // 37, torch.arange(keys) // 50)) if segmented else None
    visible = Visibility.of(queries, history, window, segments, q.device)
    assert visible.form == form
    torch.testing.assert_close(visible.attend(q, k, v), plain(q, k, v, window, segments), atol=1e-12, rtol=0)


def test_a_window_costs_its_length() -> None:
    """No [T, T] mask, and at most a quarter more scores than are seen (blocks of a quarter window)."""
    mask = Visibility.of(8192, 0, 512, None, torch.device("cpu")).mask
    assert mask is not None
    assert mask.numel() <= 1.25 * 8192 * 512


@pytest.mark.parametrize(("queries", "window"), [(300, None), (300, 300), (150, 70)])
def test_every_cut_has_the_gradients_of_the_plain_form(queries: int, window: int | None) -> None:
    q, k, v = (torch.randn(1, 2, queries, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    segments = (torch.arange(queries) >= 100).long()[None]
    weight = torch.randn_like(q)
    found = Visibility.of(queries, 0, window, segments, q.device).attend(q, k, v)
    wanted = plain(q, k, v, window, segments)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.03)]
)
def test_rotation_turns_neighbouring_pairs(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    rotation = Rotation.of(torch.arange(7, 12), 8, 100.0, x.to(dtype))
    found = rotation.turn(x.to(dtype))
    in_place = x.to(dtype, copy=True)
    rotation.turn_(in_place)
    assert torch.equal(in_place, found)
    assert found.dtype == dtype
    for t in range(5):
        for pair in range(4):
            angle = torch.tensor((7 + t) * 100.0 ** (-2 * pair / 8), dtype=torch.float64)
            even, odd = x[:, :, t, 2 * pair], x[:, :, t, 2 * pair + 1]
            turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
            for i, wanted in enumerate(turned):
                # What fp32 is to an angle, at angles of up to 12.
                assert (found[:, :, t, 2 * pair + i].double() - wanted).abs().max() < 12 * tolerance
