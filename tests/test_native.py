"""The native backend computes what eager torch does: stacks over all shapes, sessions, batches and strategies; and a
position's result has the same bits alone and in any company."""

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bltkit.generate import Request, Sampling, Session, generate, parse_strategy
from bltkit.model import StackConfig
from bltkit.model.cross import CrossAttention
from bltkit.model.decoder import PatchKV, PatchReads
from bltkit.model.fused_linear import Linear
from bltkit.model.layers import Transformer
from bltkit.model.quantize import available_forms, reform
from bltkit.native import accelerated, backend_of, library, on_backend
from bltkit.native import backend as backend_module
from bltkit.native.linear import NativeInt8, NativeLinear, native_linear
from bltkit.native.stack import NativeTransformer
from tests import test_batch, test_session, test_strategies, tiny
from tests.natively import natively, needs_library
from tests.rows import example, start

pytestmark = pytest.mark.usefixtures("_library")


@pytest.fixture(scope="module")
def _library() -> None:
    needs_library()


class Model(nn.Module):
    """A stack, and cross-attention in front of its first layers."""

    def __init__(self, config: StackConfig, readers: int = 0) -> None:
        super().__init__()
        self.stack = Transformer(config)
        self.cross = nn.ModuleList(CrossAttention(config, bool(i % 2)) for i in range(readers))

    @property
    def readers(self) -> tuple[Any, ...]:
        return tuple(self.cross)


@st.composite
def stacks(draw: st.DrawFn) -> StackConfig:
    """Head widths with and without a kernel of their own, odd inner widths, windows shorter than the rows."""
    heads, head_dim = draw(st.sampled_from([(1, 2), (2, 6), (4, 16), (2, 32), (4, 32), (2, 64), (1, 128)]))
    return StackConfig(
        width=heads * head_dim,
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (None, 1, 2) if heads % (n or 1) == 0])),
        ffn_width=draw(st.sampled_from([5, 12, 64, 100])),
        window=draw(st.sampled_from([None, 1, 3, 17])),
    )


@settings(max_examples=25, deadline=None)
@given(stacks(), st.sampled_from([1, 2, 3, 16]), st.lists(st.integers(1, 16), min_size=2, max_size=6), st.data())
def test_a_stack_equals_the_eager_one(config: StackConfig, rows: int, sizes: list[int], data: st.DataObject) -> None:
    """Whatever part of a pass is kept; the stacks take over each other's caches."""
    torch.manual_seed(0)
    readers = data.draw(st.integers(0, config.layers))
    model = tiny.fill(Model(config, readers).double(), 1)
    native = _native(model)
    eager_cache = native_cache = model.stack.empty_cache(rows)
    for size in sizes:
        x = torch.randn(rows, size, config.width, dtype=torch.float64)
        before = _reads(model, rows, data.draw(st.sampled_from([1, size]))) if readers else None
        with torch.inference_mode():
            expected, (slot,) = model.stack.extend(x, [eager_cache], before)
            outputs, (native_slot,) = native.extend(x, [native_cache], before)
        for ours, right in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, right, atol=1e-11, rtol=1e-11)
        counts = data.draw(st.lists(st.integers(0, size), min_size=rows, max_size=rows))
        eager_cache, native_cache = slot.keep(counts), native_slot.keep(counts)
        if data.draw(st.booleans()):
            eager_cache, native_cache = native_cache, eager_cache
        order = data.draw(st.permutations(range(rows)))
        eager_cache, native_cache = eager_cache.select(order), native_cache.select(order)


@settings(max_examples=15, deadline=None)
@given(stacks(), st.integers(2, 16), st.sampled_from(["fp32", "int8"]))
def test_a_position_has_the_same_bits_in_any_company(config: StackConfig, rows: int, form: str) -> None:
    """Beside other rows, beside later positions of its own, and for any number of threads."""
    torch.manual_seed(0)
    native = _native(_formed(tiny.fill(Model(config), 1), form))
    histories = torch.randn(rows, 20, config.width)
    x = torch.randn(rows, 3, config.width)
    with torch.inference_mode():
        _, (slot,) = native.extend(histories[:, :4], [native.empty_cache(rows)])
        together = native.extend(x, [slot.keep([4] * rows)])[0][-1]
        for row in (0, rows - 1):
            _, (alone,) = native.extend(histories[row : row + 1, :4], [native.empty_cache()])
            cache = alone.keep([4])
            for column in range(3):
                outputs, (step,) = native.extend(x[row : row + 1, column : column + 1], [cache])
                assert torch.equal(outputs[-1][0, 0], together[row, column])
                cache = step.keep([1])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            _, (slot,) = native.extend(histories[:, :4], [native.empty_cache(rows)])
            assert torch.equal(native.extend(x, [slot.keep([4] * rows)])[0][-1], together)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_numbers_that_are_not_finite_stay_in_their_row(broken: float, form: str) -> None:
    config = StackConfig(width=64, layers=2, heads=2, ffn_width=64)
    native = _native(_formed(tiny.fill(Model(config), 1), form))
    x = torch.randn(3, 2, 64)
    with torch.inference_mode():
        sound = native.extend(x, [native.empty_cache(3)])[0][-1]
        x[1, 0, 5] = broken
        outputs = native.extend(x, [native.empty_cache(3)])[0][-1]
    assert not outputs[1].isfinite().any()
    assert torch.equal(outputs[[0, 2]], sound[[0, 2]])


@pytest.mark.parametrize("form", [form for form in available_forms() if form not in ("fp32", "int4")])
@pytest.mark.parametrize("shape", [(96, 48), (260, 128), (64, 1536)])
def test_forms_keep_their_weights(form: str, shape: tuple[int, int]) -> None:
    """A product differs from one with the very same rounded weights in float64 by what 16-bit inputs lose at most."""
    torch.manual_seed(0)
    linear = Linear(shape[1], shape[0])
    nn.init.normal_(linear.weight)
    formed = reform(nn.ModuleList([linear]), cast(Any, form), min_elements=1)[0]
    native = native_linear(formed)
    assert isinstance(native, NativeLinear)
    assert native.form == ("fp32" if form == "packed" else form)
    assert torch.equal(native.weight, cast(Tensor, formed.weight))
    x = torch.randn(9, shape[1])
    right = x.double() @ native.weight.double().T
    size = x.double().abs().amax(1, keepdim=True) * native.weight.double().abs().sum(1)
    steps = native.matrix.limit if isinstance(native, NativeInt8) else 2.0**20
    with torch.inference_mode():
        assert ((native(x) - right).abs() <= size / steps).all()
        many = x.repeat(20, 1)
        torch.testing.assert_close(native(many)[:9].double(), right, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["ar", "speculative:draft=4", "verified:draft=4"])
def test_generation_is_the_same_and_the_ledger_names_it(strategy: str) -> None:
    case = example("stride:k=3", diffusion_block=4)
    model = tiny.fill(case.model, 3).float()
    native, scorer = on_backend("native", model, None)
    assert scorer is None and native is not None
    request = Request(Sampling(temperature=0.8, seed=5), 40, strategy=parse_strategy(strategy))
    made = {}
    for name, each in (("eager", model), ("native", native)):
        chunks = list(generate(Session.start(each, None, case.rule), request))
        made[name] = b"".join(chunk.data for chunk in chunks)
        assert chunks[-1].stats is not None
        assert chunks[-1].stats.backend == name
    assert made["eager"] == made["native"]


PROPERTIES: tuple[Callable[[], None], ...] = (
    test_session.test_any_cut_equals_uncached,
    test_session.test_any_part_of_a_pass_can_be_kept,
    test_batch.test_any_history_of_a_batch,
    test_batch.test_a_row_is_decoded_as_if_alone,
)


@pytest.mark.parametrize("test", PROPERTIES, ids=lambda test: test.__name__)
def test_properties_hold_over_the_backend(test: Callable[[], None]) -> None:
    with natively():
        test()


@pytest.mark.parametrize("kind", ["ar", "speculative"])
def test_strategies_over_the_backend(kind: str) -> None:
    with natively():
        test_strategies.test_bytes_and_logprobs_are_those_of_plain_decoding(kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_session", "test_batch", "test_strategies", "test_lanes", "test_ledger"])
def test_whole_files_over_the_backend(name: str) -> None:
    """All tests of sessions, batches and strategies, their slow ones apart."""
    path = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--backend", "native", path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=path.parents[1], check=False)
    assert result.returncode == 0, result.stdout[-4000:]


def test_the_fixture_really_is_native() -> None:
    with natively():
        assert backend_of(start(example("space")).model) == "native"


def test_a_machine_without_a_compiler_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.kernels.cache_clear()
    backend_module._warn_once.cache_clear()
    try:
        model = tiny.fill(example("space").model, 0).float()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert on_backend("auto", model, None) == (model, None)
        assert [record.message for record in caplog.records] == [
            "decoding without the native backend: no C++ compiler (no-such-compiler); install one, such as g++, or "
            "name it in CXX"
        ]
        with pytest.raises(ValueError, match=r"backend = 'native': no C\+\+ compiler .*; or use backend 'eager'"):
            on_backend("native", model, None)
    finally:
        library.kernels.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: no such language' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.kernels.cache_clear()
    try:
        with pytest.raises(library.Unavailable, match=r"broken does not compile the kernels .*no such language"):
            library.kernels()
        assert not list((tmp_path / "cache" / "bltkit").iterdir())
    finally:
        library.kernels.cache_clear()


def test_what_cannot_be_native_is_named_and_works(caplog: pytest.LogCaptureFixture) -> None:
    case = example("stride:k=3")
    model = tiny.fill(case.model, 0).float()
    layer: Any = model.decoder.stack.layers[0]
    layer.attention.out = _Adapter(layer.attention.out)
    backend_module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        native, _ = on_backend("native", model, None)
    assert native is not None
    assert [record.message for record in caplog.records] == [
        "not in the native backend: decoder.stack: a _Adapter in a product's place"
    ]
    assert backend_of(native) == "native, eager decoder.stack"
    sampled = Request(Sampling(temperature=0), 20)
    made = [
        b"".join(chunk.data for chunk in generate(Session.start(each, None, case.rule), sampled))
        for each in (model, native)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_stay_eager(dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny.fill(example("space").model, 0)).to(dtype)
    native, reasons = accelerated(model)
    assert backend_of(native) == "eager"
    assert len(reasons) == 3
    assert f"weights in {str(dtype).removeprefix('torch.')}" in reasons[0]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="no backend 'nativ'; did you mean 'native'"):
        on_backend("nativ", None, None)


class _Adapter(nn.Linear):
    """A linear map that is none of the package's."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False)
        self.weight = inner.weight


def _native(model: Model) -> NativeTransformer:
    """As the backend makes it of a decoder."""
    copied = copy.deepcopy(model)
    assert backend_module._lay_out(copied) is None
    return NativeTransformer(copied.stack, [cast(CrossAttention, block) for block in copied.cross])


def _formed(model: Model, form: str) -> Model:
    return reform(model, cast(Any, form), min_elements=1)


def _reads(model: Model, rows: int, positions: int) -> PatchReads:
    config = model.stack.config
    kv = tuple(
        tuple(torch.randn(rows, positions, 2, config.heads, config.head_dim, dtype=torch.float64) for _ in range(2))
        for _ in model.readers
    )
    return PatchReads(model.readers, PatchKV(kv))
