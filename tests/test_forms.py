"""Weights in other forms: products within the form's rounding, refusals, the choice, and what is left alone."""

import copy
import json
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit import bench
from bltkit.bench.weight_forms import weights
from bltkit.checkpoint import Bundle, load_bundle, resolve_model, save_bundle
from bltkit.eval.score import score
from bltkit.generate import autotune
from bltkit.model import (
    Blt,
    BltConfig,
    BoundaryConfig,
    BoundaryModel,
    EntropyConfig,
    EntropyModel,
    NgramConfig,
    StackConfig,
    quantize,
)
from bltkit.model import formed as formed_linears
from bltkit.model.fused_linear import Linear
from bltkit.model.quantize import FORMS, KINDS, LOSSLESS, FormedLinear, Matrix, WeightForm, available_forms, reform
from bltkit.patching import parse_rule
from tests import tiny

AVAILABLE = available_forms()
OTHERS = [form for form in AVAILABLE if form != "fp32"]

WEIGHT_STEP = {"packed": 2**-24, "fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 254, "int4": 1 / 15}
"""Largest rounding of a weight: of its own size, in int8 and int4 of its output's largest."""
ROW_STEP = {"packed": 0.0, "fp16": 0.0, "bf16": 2**-8, "int8": 2**-8, "int4": 2**-8}
"""Largest rounding of what goes in and of what comes out, of its own size."""


def linear(inputs: int, outputs: int, seed: int = 0) -> Linear:
    found = Linear(inputs, outputs)
    found.weight = torch.nn.Parameter(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)))
    return found


def formed(source: Linear, form: WeightForm) -> FormedLinear:
    return cast(FormedLinear, reform(torch.nn.Sequential(source), form, min_elements=1)[0])


def model_and_scorer() -> tuple[Blt, EntropyModel]:
    stack = StackConfig(width=32, layers=1, heads=2, ffn_width=64, window=16)
    config = BltConfig(
        encoder=stack, latent=stack.replace(width=96, window=None), decoder=stack, ngrams=NgramConfig(buckets=31)
    )
    scorer = EntropyModel(EntropyConfig(width=32, layers=1, heads=2, ffn_width=48, window=16))
    return tiny.fill(Blt(config), 0), tiny.fill(scorer, 1)


@settings(max_examples=30, deadline=None)
@given(
    form=st.sampled_from(OTHERS),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 70),
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    seed=st.integers(0, 999),
)
@torch.no_grad()
def test_products_are_fp32s_within_the_forms_rounding(
    form: WeightForm, inputs: int, outputs: int, rows: list[int], seed: int
) -> None:
    multiple = {"int8": (16, 1), "int4": (32, 16)}.get(form, (1, 1))
    inputs, outputs = -(-inputs // multiple[0]) * multiple[0], -(-outputs // multiple[1]) * multiple[1]
    source = linear(inputs, outputs, seed)
    x = torch.randn(*rows, inputs, generator=torch.Generator().manual_seed(seed + 1))
    found = formed(source, form)
    y, expected = found(x), source(x)
    assert (y.shape, y.dtype) == (expected.shape, torch.float32)
    held, exact = found.weight, source.weight
    size = exact.abs().amax(1, keepdim=True) if form in ("int8", "int4") else exact.abs()
    # int8's scale is rounded to bf16, upwards or downwards.
    assert ((held - exact).abs() <= WEIGHT_STEP[form] * (1 + 2**-7) * size + 2**-24).all()
    terms = x.abs() @ held.abs().T
    assert ((y - x @ held.T).abs() <= (2.01 * ROW_STEP[form] + 1e-5) * terms + 1e-6).all()


@pytest.mark.parametrize("form", OTHERS)
@torch.no_grad()
def test_no_row_depends_on_its_neighbours(form: WeightForm) -> None:
    """A prompt's bytes must not move with those behind them; a large neighbour would show."""
    found = formed(linear(256, 96), form)
    x = torch.randn(40, 256)
    among_giants = x.clone()
    among_giants[1::2] *= 1000
    assert torch.equal(found(x)[::2], found(among_giants)[::2])
    few = torch.cat([found(row[None]) for row in x[:16]])
    assert (few - found(x[:16])).abs().max() <= 1e-5 * few.abs().max()
    # A product of many rows may be rounded once more or less.
    assert (few - found(x)[:16]).abs().max() <= (ROW_STEP[form] * 2 + 1e-5) * few.abs().max()


@torch.no_grad()
def test_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 64)
    for form in ("bf16", "int8"):
        with monkeypatch.context() as patched:
            patched.setattr(formed_linears, "_has_bf16", lambda: False)
            plain = formed(linear(64, 48), cast(WeightForm, form))
        for rows in (x[:1], x[:16], x):
            expected = rows @ plain.weight.T
            assert (plain(rows) - expected).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.parametrize("form", OTHERS)
def test_only_large_matrices_change(form: WeightForm) -> None:
    model, scorer = model_and_scorer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = reform(model, form, min_elements=32 * 64)
    kinds = {name: type(inner) for name, inner in changed.named_modules()}
    for name, inner in model.named_modules():
        large = isinstance(inner, Linear) and inner.weight.numel() >= 32 * 64
        large = large and KINDS[form].fits(Matrix.of(inner.weight))
        assert issubclass(kinds[name], FormedLinear) == large, name
        if isinstance(inner, Linear) and not large:
            assert changed.get_submodule(name).weight is inner.weight
    assert sum(issubclass(kind, FormedLinear) for kind in kinds.values()) > 3
    assert changed.embed.ngrams is model.embed.ngrams
    assert changed.decoder.norm.weight is model.decoder.norm.weight
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert type(model.latent.stack.layers[0].ffn.down) is Linear  # type: ignore[union-attr]
    saved = quantize.weight_bytes(model) - quantize.weight_bytes(changed)
    assert (saved > 0) == (form != "packed") and saved >= 0
    boundary = tiny.fill(BoundaryModel(BoundaryConfig(width=32, layers=1, heads=2, ffn_width=48)), 2)
    largest = 2.0 if form == "int4" else 0.3  # int4 has 16 steps for int8's 255
    for other in (scorer, boundary):
        ids = torch.randint(4, 260, (2, 30))
        with torch.no_grad():
            assert (reform(other, form, min_elements=1)(ids) - other(ids)).abs().max() < largest
    assert copy.deepcopy(changed).latent.stack is not changed.latent.stack


def test_a_matrix_that_a_form_cannot_hold_stays() -> None:
    if not {"fp16", "int8"} <= set(AVAILABLE):
        pytest.skip("needs kernels for both")
    for inputs, kept in ((24, True), (8, True), (32, False)):
        found = reform(torch.nn.Sequential(linear(inputs, 32)), "int8", min_elements=1)[0]
        assert (type(found) is Linear) == kept
    source = linear(32, 32)
    with torch.no_grad():
        source.weight[3, 4] = 1e5
    assert type(reform(torch.nn.Sequential(source), "fp16", min_elements=1)[0]) is Linear


@pytest.mark.parametrize("form", OTHERS)
def test_such_a_model_cannot_be_saved_moved_or_formed_again(form: WeightForm, tmp_path: Any) -> None:
    model, scorer = model_and_scorer()
    changed, changed_scorer = (reform(one, form, min_elements=1) for one in (model, scorer))
    rule = parse_rule("threshold:threshold=2.5")
    for bundle in (Bundle(changed, scorer, rule), Bundle(model, changed_scorer, rule)):
        with pytest.raises(ValueError, match=f"{form} weights is for running only; save the one"):
            save_bundle(tmp_path / "c", bundle)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="stays as it is"):
        changed.double()
    with pytest.raises(ValueError, match=f"in form '{form}' already"):
        reform(changed, OTHERS[0], min_elements=1)
    with pytest.raises(ValueError, match=f"in form '{form}' already"):
        autotune.measure_forms(changed, scorer)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_and_scorer()
    assert reform(model, "fp32") is model
    assert quantize.parse_form("int8") == "int8"
    with pytest.raises(ValueError, match="no form of weights 'int7'; did you mean 'int8'"):
        quantize.parse_form("int7")
    with pytest.raises(ValueError, match=r"weights in torch\.float32, not torch\.float64"):
        reform(copy.deepcopy(model).double(), "packed", min_elements=1)
    monkeypatch.setattr(quantize, "is_available", lambda form, device: form == "fp32")
    with pytest.raises(ValueError, match="form = 'int8': no kernels for it on this cpu; there are fp32"):
        reform(model, "int8", min_elements=1)


@pytest.mark.parametrize(
    "times, best",
    [
        ({"fp32": 100.0, "packed": 90.0, "fp16": 84.0}, "fp32"),
        ({"fp32": 100.0, "packed": 80.0, "fp16": 81.0}, "packed"),
        ({"fp32": 100.0, "packed": 60.0, "fp16": 30.0, "int8": 50.0}, "fp16"),
        ({"fp32": 100.0}, "fp32"),
    ],
)
def test_the_fastest_form_is_chosen_if_it_pays(times: dict[WeightForm, float], best: str) -> None:
    assert autotune.best_form(times) == best


def test_measuring_takes_turns_and_counts_what_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks at every product: the count of products, those of a patch shared among its bytes."""
    model, scorer = model_and_scorer()
    now, order = [0.0], []
    fitting = tuple(form for form in AVAILABLE if form != "int4")  # which does not hold a head of 260 outputs

    def tick(inner: Any, x: Any, y: Any) -> None:
        now[0] += 1.0
        order.append("fp32" if isinstance(inner, Linear) else inner.form)

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda inner, x, y: tick(inner, x, y) if isinstance(inner, Linear | FormedLinear) else None
    )
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(quantize, "is_available", lambda form, device: True)  # trying them would count
    try:
        found = autotune.measure_forms(model, scorer, fitting, patch_bytes=4.0, repeats=2, min_elements=1)
    finally:
        handle.remove()
    assert tuple(found) == fitting
    linears = [one for whole in (model, scorer) for one in whole.modules() if isinstance(one, Linear)]
    # Pooling (a projection, three matrices), the latent transformer (a projection, four), and two for the decoder.
    rare = 1 + 3 + 1 + 4 + 1 + 1
    assert found["fp32"] == pytest.approx(1e6 * (len(linears) - rare + rare / 4))
    assert len(set(found.values())) == 1
    changes = [form for form, before in zip(order, ["", *order], strict=False) if form != before]
    assert changes == list(fitting) * 2


@pytest.mark.parametrize("form", AVAILABLE)
def test_the_embedded_models_bits_per_byte(form: WeightForm) -> None:
    """Close to fp32's; forms of the same weights equal it."""
    bundle = load_bundle(resolve_model("bltkit:tiny"))
    text = bench.benchmark_text(500)
    assert bundle.model is not None and bundle.scorer is not None
    changed = replace(bundle, model=reform(bundle.model, form), scorer=reform(bundle.scorer, form))
    assert form == "fp32" or any(isinstance(one, FormedLinear) for one in changed.model.modules())  # type: ignore[union-attr]
    difference = score(changed, text).bits_per_byte - score(bundle, text).bits_per_byte
    assert abs(difference) < {"fp32": 1e-9, "packed": 1e-4, "fp16": 5e-3}.get(form, 0.05)
    if form not in LOSSLESS:
        assert difference != 0


def test_rows_of_the_benchmark() -> None:
    model, scorer = model_and_scorer()
    subject = bench.BenchSubject("small", model, scorer, parse_rule("threshold:threshold=2.5"))
    texts = []

    def bits(model: Blt, scorer: Any, text: bytes) -> float:
        texts.append(text)
        return 2.0 + len(texts) / 4

    lines: list[str] = []
    rows = weights(subject, b"abc", bits, repeats=1, threads=1, command="blt bench weights", progress=lines.append)
    assert [row.form for row in rows] == list(AVAILABLE)
    assert texts == [b"abc"] * len(rows)
    data = [json.loads(json.dumps(row.to_json(), allow_nan=False)) for row in rows]
    assert [row["added_bits_per_byte"] for row in data] == [i / 4 for i in range(len(rows))]
    assert data[0]["moved_borders"] == 0.0 and all(0 <= row["moved_borders"] <= 1 for row in data)
    assert data[0]["speedup"] == 1.0 and all(math.isfinite(row["microseconds_per_byte"]) for row in data)
    assert {"cpu", "torch"} <= data[0]["machine"].keys()
    assert (data[0]["what"], data[0]["preset"], data[0]["text_bytes"]) == ("weights", "small", 3)
    assert "bits per byte" in lines[-1]
    with pytest.raises(ValueError, match="batch = 0"):
        weights(subject, b"abc", bits, batch=0)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu() -> None:
    assert available_forms("cuda") == ("fp32", "bf16")
    source = linear(64, 48).cuda()
    x = torch.randn(5, 64, device="cuda")
    found = formed(source, "bf16")(x)
    assert found.dtype == torch.float32
    assert (found - source(x)).abs().max() <= 0.02 * source(x).abs().max()


def test_every_form_is_known() -> None:
    assert set(AVAILABLE) <= set(FORMS) and AVAILABLE[0] == "fp32"
