"""Checkpoints loaded straight into forms of weights: equal to `reform`, in bounded memory, stored and refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import bltkit
from bltkit.checkpoint import Bundle, damages, listed_files, load_bundle, reader, save_bundle, stored
from bltkit.checkpoint import chosen_forms as forms
from bltkit.convert import convert
from bltkit.generate import autotune
from bltkit.generate import open_bundle as loading
from bltkit.model import Blt, BltConfig, EntropyConfig, EntropyModel, NgramConfig, StackConfig, quantize
from bltkit.model.formed import Int4Linear, Int8Linear
from bltkit.model.quantize import FORMS, FormedLinear, WeightForm, available_forms, form_of, reform, weights_of
from bltkit.model.rounding import Matrix, from_nibbles, round_int4, to_nibbles, widen_int4
from bltkit.patching import parse_rule
from bltkit.vocab import encode
from tests import tiny

AVAILABLE = available_forms()
RULE = parse_rule("threshold:threshold=2.5")
SMALL = 32 * 64
"""Elements from which matrices count as large here, for models that take no time."""


@pytest.fixture(autouse=True)
def small_matrices_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quantize, reader, forms, stored):
        monkeypatch.setattr(module, "MIN_ELEMENTS", SMALL)


def bundle_of(seed: int = 0, width: int = 32, ffn: int = 64, latent: int = 96, kv_heads: int | None = None) -> Bundle:
    stack = StackConfig(width=width, layers=1, heads=2, ffn_width=ffn, window=16)
    config = BltConfig(
        encoder=stack,
        latent=stack.replace(width=latent, window=None, kv_heads=kv_heads),
        decoder=stack,
        ngrams=NgramConfig(buckets=31),
    )
    scorer = EntropyModel(EntropyConfig(width=width, layers=1, heads=2, ffn_width=ffn, window=16))
    return Bundle(tiny.fill(Blt(config), seed), tiny.fill(scorer, seed + 1), RULE)


def reformed(bundle: Bundle, form: WeightForm, scorer: WeightForm) -> Bundle:
    model = reform(bundle.model, form, min_elements=SMALL)
    return replace(bundle, model=model, scorer=reform(bundle.scorer, scorer, min_elements=SMALL))


@torch.no_grad()
def same(left: Bundle, right: Bundle) -> None:
    """The same forms of the same numbers, and the same logits and scores."""
    for one, other in ((left.model, right.model), (left.scorer, right.scorer)):
        assert one is not None and other is not None
        kinds = [type(inner) for inner in one.modules()]
        assert kinds == [type(inner) for inner in other.modules()]
        for (name, weight), (_, expected) in zip(weights_of(one), weights_of(other), strict=True):
            assert torch.equal(weight, expected), name
    ids = encode(b"so many bytes, and more of them")
    assert left.scorer is not None and right.scorer is not None
    assert torch.equal(left.scorer.scores(ids[None]), right.scorer.scores(ids[None]))
    assert torch.equal(bltkit.ByteLM(left).logits(ids), bltkit.ByteLM(right).logits(ids))


@settings(max_examples=8, deadline=None)
@given(
    form=st.sampled_from([form for form in AVAILABLE if form != "fp32"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    ffn=st.sampled_from([40, 64, 80]),
    latent=st.sampled_from([64, 72, 96]),
    kv_heads=st.sampled_from([None, 1]),
    seed=st.integers(0, 99),
)
def test_loading_into_a_form_is_reforming(
    tmp_path_factory: Any, form: WeightForm, dtype: torch.dtype, ffn: int, latent: int, kv_heads: int | None, seed: int
) -> None:
    place = tmp_path_factory.mktemp("checkpoint") / "c"
    save_bundle(place, bundle_of(seed, ffn=ffn, latent=latent, kv_heads=kv_heads), dtype=dtype)
    loaded = load_bundle(place, weights=form, scorer_weights=form)
    same(loaded, reformed(load_bundle(place), form, form))
    assert loaded.model is not None and form_of(loaded.model) == form


@pytest.mark.parametrize("dtype, own", [(None, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_the_scorer_keeps_the_files_numbers(tmp_path: Path, dtype: torch.dtype | None, own: WeightForm) -> None:
    save_bundle(tmp_path / "c", bundle_of(), dtype=dtype)
    loaded = load_bundle(tmp_path / "c", weights="int8")
    assert loaded.model is not None and loaded.scorer is not None
    assert (form_of(loaded.model), form_of(loaded.scorer)) == ("int8", own)
    for (name, weight), (_, expected) in zip(
        weights_of(loaded.scorer),
        weights_of(load_bundle(tmp_path / "c").scorer),
        strict=True,  # type: ignore[arg-type]
    ):
        assert torch.equal(weight, expected), name
    assert form_of(load_bundle(tmp_path / "c", weights="packed").scorer) == "packed"  # type: ignore[arg-type]


def test_small_models_are_loaded_in_fp32_and_large_ones_as_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_bundle(tmp_path / "half", bundle_of(), dtype=torch.bfloat16)
    save_bundle(tmp_path / "wide", bundle_of())
    assert form_of(load_bundle(tmp_path / "half").model) == "fp32"  # type: ignore[arg-type]
    monkeypatch.setattr(forms, "WIDE_BYTES", 1000)
    assert form_of(load_bundle(tmp_path / "wide").model) == "fp32"  # type: ignore[arg-type]
    assert not caplog.records
    assert form_of(load_bundle(tmp_path / "half").model) == "bf16"  # type: ignore[arg-type]
    (record,) = caplog.records
    assert "held in bf16 as in the file, 0.0 GB; in fp32 they would take 0.0 GB" in record.getMessage()
    assert form_of(load_bundle(tmp_path / "half", weights="fp32").model) == "fp32"  # type: ignore[arg-type]
    assert form_of(load_bundle(tmp_path / "half", dtype=torch.float32).model) == "fp32"  # type: ignore[arg-type]


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(tmp_path / "c", bundle_of(), dtype=torch.bfloat16)
    wide = forms.needed_bytes(list(rooms(tmp_path / "c")), "fp32")
    refusal = r"take 0\.0 GB in fp32, but 0\.0 GB .* free; .*--weights bf16 \(0\.0 GB\) or int8"
    monkeypatch.setattr(reader.Reader, "fill", lambda *_: pytest.fail("was read"))
    monkeypatch.setattr(forms, "free_memory", lambda device: int(wide) - 1)
    with pytest.raises(ValueError, match=refusal):
        load_bundle(tmp_path / "c", weights="fp32")
    monkeypatch.setattr(forms, "free_memory", lambda device: 10)
    with pytest.raises(ValueError, match=r"in int4, but .* free; free some memory"):
        load_bundle(tmp_path / "c", weights="int4")


def rooms(place: Path) -> Any:
    from bltkit.checkpoint.names import rooms as rooms_of

    bundle = load_bundle(place, device="meta")
    return rooms_of(bundle.model, bundle.scorer)


@pytest.mark.parametrize("form", ["bf16", "fp16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_stored_form_is_the_form_of_the_original(tmp_path: Path, form: WeightForm, dtype: torch.dtype | None) -> None:
    """By `save` and by `convert`, which write the same tensors; loaded as stored, bit for bit what loading makes."""
    save_bundle(tmp_path / "plain", bundle_of(), dtype=dtype)
    convert(tmp_path / "plain", tmp_path / "converted", weights=form)
    bltkit.ByteLM(load_bundle(tmp_path / "plain", dtype=dtype)).save(tmp_path / "saved", weights=form)
    expected = load_bundle(tmp_path / "plain", weights=form)
    for name in ("converted", "saved"):
        place = tmp_path / name
        same(load_bundle(place, verify=True), expected)
        same(load_bundle(place, weights=form), expected)
        manifest = json.loads((place / "bltkit.json").read_text())
        assert (manifest["weights"], manifest["format"]) == (form, 3)
        assert (json.loads((place / "config.json").read_text())["model_type"] == "bltkit") == form.startswith("int")
        assert not list(damages(place, listed_files(place)))
    saved, converted = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "converted"))
    assert saved.keys() == converted.keys()
    assert all(torch.equal(saved[name], converted[name]) for name in saved)
    convert(tmp_path / "converted", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "converted" / "model.safetensors"
    ).read_bytes()
    same(load_bundle(tmp_path / "again"), expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_int8_stays_in_the_files_map(tmp_path: Path) -> None:
    save_bundle(tmp_path / "c", bundle_of(), weights="int8")
    loaded = load_bundle(tmp_path / "c")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    file = str((tmp_path / "c" / "model.safetensors").resolve())
    stretches = [[int(end, 16) for end in line[0].split("-")] for line in maps if line[-1] == file]
    held = [inner for inner in loaded.model.modules() if isinstance(inner, Int8Linear)]  # type: ignore[union-attr]
    assert len(held) > 3
    for inner in held:
        begin, size = inner.steps.data_ptr(), inner.steps.nbytes
        assert any(first <= begin and begin + size <= last for first, last in stretches)


def test_what_was_rounded_is_not_given_more_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bundle(tmp_path / "c", bundle_of(), weights="int8")
    for form in ("packed", "bf16", "int4"):
        with pytest.raises(
            ValueError, match=f"weights = '{form}': .* stores its weights in int8, .* convert the original"
        ):
            load_bundle(tmp_path / "c", weights=form)
        if form != "packed":
            with pytest.raises(ValueError, match="stores int8"):
                convert(tmp_path / "c", tmp_path / "d", weights=form)
    for layout in ("hf", "meta"):
        with pytest.raises(ValueError, match=f"int8 have no place in layout '{layout}'"):
            convert(tmp_path / "c", tmp_path / "d", to=layout)
        with pytest.raises(ValueError, match="packed"):
            convert(tmp_path / "c", tmp_path / "d", to=layout, weights="packed")
    assert not (tmp_path / "d").exists()
    wide, rounded = load_bundle(tmp_path / "c", weights="fp32"), load_bundle(tmp_path / "c")
    assert "stay rounded" in caplog.text
    assert form_of(wide.model) == "fp32"  # type: ignore[arg-type]
    for (_, weight), (_, expected) in zip(weights_of(wide.model), weights_of(rounded.model), strict=True):  # type: ignore[arg-type]
        assert torch.equal(weight, expected)


def test_forms_and_layouts(tmp_path: Path) -> None:
    save_bundle(tmp_path / "c", bundle_of())
    for form, layout in (("int8", "hf"), ("int4", "meta"), ("int4", "hf")):
        with pytest.raises(ValueError, match=f"weights in {form} have no place in layout '{layout}'"):
            convert(tmp_path / "c", tmp_path / "d", to=layout, weights=form)
    with pytest.raises(ValueError, match="layout 'meta' takes weights as they are"):
        convert(tmp_path / "c", tmp_path / "d", to="meta", weights="bf16")
    with pytest.raises(ValueError, match="'int9'; did you mean"):
        convert(tmp_path / "c", tmp_path / "d", weights="int9")
    with pytest.raises(ValueError, match="give one of them"):
        load_bundle(tmp_path / "c", weights="int8", dtype=torch.float32)
    with pytest.raises(ValueError, match="give one of them"):
        save_bundle(tmp_path / "d", bundle_of(), weights="int8", dtype=torch.float32)
    assert not (tmp_path / "d").exists()
    convert(tmp_path / "c", tmp_path / "d", to="hf", weights="bf16")
    same(load_bundle(tmp_path / "d", weights="bf16"), reformed(load_bundle(tmp_path / "c"), "bf16", "fp32"))


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_broken_stored_forms(tmp_path: Path, form: WeightForm) -> None:
    """One line for a file that is cut, for a tensor of another shape or dtype, and for one that is missing."""
    save_bundle(tmp_path / "c", bundle_of(), weights=form)
    file = tmp_path / "c" / "model.safetensors"
    tensors, content = load_file(file), file.read_bytes()
    name = next(name for name in sorted(tensors) if name.endswith(".steps"))
    (tmp_path / "c" / "bltkit.json").write_text(unlisted(tmp_path / "c" / "bltkit.json"))
    other = torch.uint8 if form == "int8" else torch.int8
    cases = [
        (tensors | {name: tensors[name][:, :-1].contiguous()}, "has shape"),
        (tensors | {name: tensors[name].to(other)}, "has dtype"),
        ({key: tensor for key, tensor in tensors.items() if key != name.replace("steps", "scales")}, "is missing"),
        (tensors | {name.replace("steps", "spare"): torch.zeros(1)}, "unexpected tensor"),
    ]
    for changed, message in cases:
        save_file(changed, file)
        with pytest.raises(ValueError, match=message) as error:
            load_bundle(tmp_path / "c")
        assert "\n" not in str(error.value)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_bundle(tmp_path / "c")


def unlisted(path: Path) -> str:
    """bltkit.json without its files, so that sizes are not compared, and without a seal."""
    data = json.loads(path.read_text())
    return json.dumps({key: {} if key == "files" else value for key, value in data.items() if key != "digest"})


@settings(max_examples=10, deadline=None)
@given(outputs=st.integers(1, 80), groups=st.integers(1, 5), seed=st.integers(0, 999))
def test_int4_in_a_file_and_in_memory(outputs: int, groups: int, seed: int) -> None:
    """Nibbles are documented: an even input in the lower four bits. What the kernel holds are the same numbers."""
    weight = torch.randn(outputs * 16, 32 * groups, generator=torch.Generator().manual_seed(seed))
    steps, scales, zeros = round_int4(weight)
    packed = to_nibbles(steps)
    assert torch.equal(packed & 15, steps[:, ::2]) and torch.equal(packed >> 4, steps[:, 1::2])
    assert torch.equal(from_nibbles(packed), steps)
    made, read = Int4Linear.of(Matrix.of(weight)), Int4Linear.of_nibbles(packed, scales, zeros)
    assert torch.equal(made.packed, read.packed) and torch.equal(made.scales_zeros, read.scales_zeros)
    assert torch.equal(made.weight, widen_int4(steps, scales, zeros))


def test_rows_of_large_tables_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as from memory; a table that was written to, copied or trained is used as it is."""
    monkeypatch.setattr("bltkit.checkpoint.reader.LARGE_TABLES", 0)
    save_bundle(tmp_path / "c", bundle_of(), dtype=torch.bfloat16)
    model = load_bundle(tmp_path / "c").model
    assert model is not None
    embed: Any = model.embed
    ids = torch.randint(4, 260, (2, 40))
    calls: list[int] = []
    rows = embed.rows
    embed.rows = Counting(rows, calls)
    with torch.no_grad():
        read = embed(ids)
    assert calls and rows.serves(embed.ngrams)
    embed.rows = None
    with torch.no_grad():
        assert torch.equal(embed(ids), read)
        embed.rows = Counting(rows, calls)
        embed.ngrams.mul_(2)
        assert not rows.serves(embed.ngrams) and not torch.equal(embed(ids), read)
    before = len(calls)
    embed(ids).sum().backward()
    assert embed.ngrams.grad is not None and len(calls) == before


class Counting:
    def __init__(self, rows: Any, calls: list[int]) -> None:
        self.rows, self.calls = rows, calls

    def serves(self, table: torch.Tensor) -> bool:
        return bool(self.rows.serves(table))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls.append(rows.numel())
        return self.rows(rows)


def test_auto_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fastest of the forms that fit and round no weight; a tight one where none does."""
    save_bundle(tmp_path / "half", bundle_of(), dtype=torch.bfloat16)
    save_bundle(tmp_path / "stored", bundle_of(), weights="int8")
    measured: list[Any] = []

    def times(model: Any, scorer: Any, several: Any, **options: Any) -> dict[str, float]:
        measured.append(several)
        return {"fp32": 100.0} | {form: {"packed": 90.0, "bf16": 30.0}.get(form, 100.0) for form in several}

    monkeypatch.setattr(loading, "measure_forms", times)
    free = {"bytes": 10**12}
    monkeypatch.setattr(loading, "free_memory", lambda device: free["bytes"])
    assert form_of(loading.open_bundle(tmp_path / "half", weights="auto").model) == "bf16"  # type: ignore[arg-type]
    assert measured == [["fp32", "packed", "bf16"]]
    assert "weights auto: bf16, 3.3 times the speed of fp32" in caplog.text
    free["bytes"] = int(forms.needed_bytes(list(rooms(tmp_path / "half")), "int8")) + 1
    assert form_of(loading.open_bundle(tmp_path / "half", weights="auto").model) == "int8"  # type: ignore[arg-type]
    assert "int8, as larger forms do not fit" in caplog.text
    assert form_of(loading.open_bundle(tmp_path / "stored", weights="auto").model) == "int8"  # type: ignore[arg-type]
    assert "int8, as stored" in caplog.text


def test_measuring_reads_the_first_matrices_alone(tmp_path: Path) -> None:
    from bltkit.checkpoint import skeleton

    save_bundle(tmp_path / "c", bundle_of())
    whole = load_bundle(tmp_path / "c")
    read: list[Any] = []
    with skeleton(tmp_path / "c") as bones:
        assert bones.model is not None and bones.model.embed.bytes.weight.device.type == "meta"

        def reading(linear: Any) -> Any:
            read.append(bones.read(linear))
            return read[-1]

        found = autotune.measure_forms(
            bones.model, bones.scorer, ["fp32"], read=reading, device=torch.device("cpu"), max_bytes=2**16, repeats=1
        )
    assert found.keys() == {"fp32"} and read
    values = [weight for module in (whole.model, whole.scorer) for _, weight in weights_of(module)]  # type: ignore[arg-type]
    assert len(read) < len(values) / 4
    assert all(any(torch.equal(linear.weight, value) for value in values) for linear in read)


CHILD = """
import sys, torch
from bltkit.checkpoint import load_bundle
from bltkit.api import ByteLM
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmHWM", "VmRSS"))]
load_bundle(sys.argv[2], weights=sys.argv[3])
before = anonymous()
bundle = load_bundle(sys.argv[1], weights=sys.argv[3])
after = anonymous()
ByteLM(bundle).score(b"some text")
print(after[2] - before[2], after[0] - before[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form, share", [("bf16", 1.0), ("int8", 0.5), ("int4", 0.3125)])
def test_memory_of_a_load(tmp_path: Path, form: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, a form takes its own bytes; on the way to it no more than a slice and a matrix besides."""
    monkeypatch.undo()
    stack = StackConfig(width=64, layers=1, heads=2, ffn_width=128, window=16)
    config = BltConfig(
        encoder=stack, latent=stack.replace(width=768, layers=5, heads=12, ffn_width=2048, window=None), decoder=stack,
        ngrams=NgramConfig(buckets=20_000),
    )  # fmt: skip
    model = Blt(config).reset_parameters(torch.Generator().manual_seed(0))
    scorer = EntropyModel(EntropyConfig(width=64, layers=1, heads=2, ffn_width=128, window=16))
    scorer.reset_parameters(torch.Generator().manual_seed(1))
    save_bundle(tmp_path / "large", Bundle(model, scorer, RULE), dtype=torch.bfloat16)
    save_bundle(tmp_path / "small", bundle_of(), dtype=torch.bfloat16)
    dense = 2 * sum(weight.numel() for name, weight in model.named_parameters() if "ngrams" not in name)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "large"), str(tmp_path / "small"), form]
    held, peak = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
    spare = 24 * 2**20  # small weights in fp32, a matrix of the file and its slices
    assert share * dense * 0.8 < held < share * dense + spare
    assert peak < share * dense + 2 * spare < 2 * dense  # an fp32 copy alone would be 2 * dense
    print(form, dense >> 20, held >> 20, peak >> 20)


def test_every_form_is_tried() -> None:
    assert set(AVAILABLE) <= set(FORMS)
    assert all(issubclass(kind, FormedLinear) for kind in quantize.KINDS.values())
