"""Configs: a slip names the nearest key, overrides read as they look, and what is written reads back."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from bltkit.config import Config, apply_overrides, dump_toml, load_toml, parse, parse_value
from bltkit.model import EntropyConfig
from bltkit.patching import ThresholdRule
from bltkit.train import TrainConfig, build_model

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))
PARAMETERS = {  # millions, as the comments of the files say
    "tiny-entropy.toml": 0.7,
    "tiny-boundary.toml": 0.7,
    "tiny-cnn.toml": 0.165,
    "tiny-bpe.toml": 4.7,
    "100m-entropy.toml": 99.5,
    "tiny.toml": 5.2,
    "1b.toml": 4500,
    "8b.toml": 10600,
}
SMALL = {"model": {"kind": "entropy", "width": 8, "layers": 1, "heads": 1}, "trainer": {"max_steps": 3}}
BLT = {"model": {"preset": "tiny"}, "patching": {"rule": "space"}, "trainer": {"max_steps": 3}}


def mistake(overrides: list[str], base: dict[str, Any] = SMALL) -> str:
    """The one line that a training config with a slip is refused with."""
    with pytest.raises(ValueError) as caught:
        parse(TrainConfig, apply_overrides(base, overrides), "run.toml")
    message = str(caught.value)
    assert message.startswith("run.toml: ") and "\n" not in message
    return message.removeprefix("run.toml: ")


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("trianer.max_steps=1", "trianer", "trainer"),
        ("trainer.max_stps=1", "trainer.max_stps", "max_steps"),
        ("model.widht=8", "model.widht", "width"),
        ("model.prest=tiny", "model.prest", "preset"),
        ('patching.rule={kind = "stride", max_patch_byte = 3}', "patching.rule.max_patch_byte", "max_patch_bytes"),
        ('patching.rule={kind = "threshold", treshold = 1.0}', "patching.rule.treshold", "threshold"),
        ('data.sources=[{kind = "text", path = "a"}]', "data.sources.0.path", "paths"),
    ],
)
def test_unknown_key_suggests_the_nearest(override: str, key: str, meant: str) -> None:
    assert mistake([override]).startswith(f"unknown key {key!r}; did you mean {meant!r}?")


def test_unknown_key_deep_in_a_preset() -> None:
    assert mistake(["model.ngrams.bucket=5"], BLT) == "unknown key 'model.ngrams.bucket'; did you mean 'buckets'?"
    assert mistake(["model.encoder.widht=5"], BLT) == "unknown key 'model.encoder.widht'; did you mean 'width'?"


def test_unknown_key_like_no_other_lists_what_is_known() -> None:
    message = mistake(["trainer.zzz=1"])
    assert message.startswith("unknown key 'trainer.zzz'; known: accumulate, branch,") and "validate_every" in message


def test_misspelt_required_key_is_called_unknown_not_missing() -> None:
    base = {"model": SMALL["model"], "trainer": {"max_step": 3}}
    assert mistake([], base) == "unknown key 'trainer.max_step'; did you mean 'max_steps'? (and 1 more)"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.kind=entrpy", "model.kind = 'entrpy'; did you mean 'entropy'?"),
        ("patching.rule={kind = 'strde'}", "patching.rule.kind = 'strde'; did you mean 'stride'?"),
        ("patching.rule={kind = 'stride'}", "key 'patching.rule.k' is missing; for example k = 4.5"),
        ("objective={}", "key 'objective.kind' is missing"),
        ("objective.kind=token-boundary", "key 'objective.tokenizer' is missing"),
        ("trainer={}", "key 'trainer.max_steps' is missing"),
        ("trainer.max_steps=2.5", "trainer.max_steps = 2.5: Input should be a valid integer"),
        ("trainer.max_steps=-1", "trainer.max_steps = -1: Input should be greater than 0"),
        ("optim.lr=fast", "optim.lr = 'fast': Input should be a valid number"),
        ("optim.lr=nan", "optim.lr = nan: Input should be a finite number"),
        ("optim.betas=[0.9]", "key 'optim.betas.1' is missing"),
        ("optim.betas=[0.9,", "optim.betas = '[0.9,'"),
        ("trainer=5", "trainer = 5: "),
        ("model=[5]", "model = [5]: "),
        ("model.kind=[1]", "model.kind = "),
        ("model.preset=tinny", "no entropy model preset 'tinny'; did you mean 'tiny'?"),
        ("model.preset=[1]", "model.preset = [1]: presets are names"),
        ('patching.rule={kind = "threshold", threshold = "x"}', "patching.rule.threshold = 'x': "),
        ("patching.rule=strid", "patching.rule: rule: unknown rule 'strid'; did you mean 'stride'?"),
        ("checkpoint.dtype=fp16", "checkpoint.dtype = 'fp16': Input should be 'fp32' or 'bf16'"),
        ("data.sources=[]", "data.sources: an empty list"),
    ],
)
def test_bad_value_is_named(override: str, message: str) -> None:
    assert mistake([override]).startswith(message)


def test_what_does_not_fit_together() -> None:
    assert mistake(["model.kind=cnn", "model.preset=tiny"]).startswith("model.preset = 'tiny': presets are names")
    assert mistake(["objective={kind='token-boundary', tokenizer='t'}"]).startswith(
        "model.kind = 'entropy' does not go"
    )
    assert mistake(["patching={}"], BLT).startswith("a BLT needs patching.model")
    assert mistake(["model.heads=3"]).startswith("model: width 8 must be an even multiple of heads 3")


def test_long_values_are_cut_short() -> None:
    assert len(mistake([f"trainer=[{'1, ' * 1000}]"])) < 250


def test_a_chosen_member_has_a_key_like_its_tag() -> None:
    """`threshold` is a rule and its field: only the first of the two is a tag."""

    class Other(Config):
        kind: Literal["other"] = "other"

    class Holder(Config):
        rule: Annotated[ThresholdRule | Other, Field(discriminator="kind")]
        alone: ThresholdRule | None = None

    with pytest.raises(ValueError, match=r"^x: rule\.threshold = 'a': "):
        parse(Holder, {"rule": {"kind": "threshold", "threshold": "a"}}, "x")
    with pytest.raises(ValueError, match=r"^x: unknown key 'alone\.treshold'; did you mean 'threshold'\?"):
        parse(Holder, {"rule": {"kind": "other"}, "alone": {"treshold": 1}}, "x")


def test_preset_with_changes() -> None:
    config: TrainConfig = parse(TrainConfig, apply_overrides(BLT, ["model.encoder.layers=2"]), "x")
    plain: TrainConfig = parse(TrainConfig, BLT, "x")
    assert config.model == plain.model.replace(encoder=plain.model.encoder.replace(layers=2))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("1_000", 1000),
        ("3e-4", 3e-4),
        ("-0.5", -0.5),
        ("true", True),
        ('"10"', "10"),
        ("'a b'", "a b"),
        ("blt", "blt"),
        ("stride:k=4,max_patch_bytes=8", "stride:k=4,max_patch_bytes=8"),
        ("a=b=c", "a=b=c"),
        ("books/*.txt", "books/*.txt"),
        ("", ""),
        ('["stdlib", "a.txt"]', ["stdlib", "a.txt"]),
        ("[0.9, 0.95]", [0.9, 0.95]),
        ('{kind = "text", paths = ["a"]}', {"kind": "text", "paths": ["a"]}),
        ("[1,", "[1,"),
        ('"open', '"open'),
        ("{a = }", "{a = }"),
        ("1\nother = 2", "1\nother = 2"),
        ("1\n[table]", "1\n[table]"),
    ],
)
def test_override_values(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)
    assert apply_overrides({"a": {"b": 0, "c": 1}}, [f"a.b={text}"]) == {"a": {"b": value if text else "", "c": 1}}


def test_overrides_build_on_one_another_and_leave_the_original() -> None:
    data = {"a": {"b": 1}, "list": [1]}
    found = apply_overrides(data, ["a.b=2", "a.c.d=3", "a.b=4", "list=[2]", " e = 5 "])
    assert found == {"a": {"b": 4, "c": {"d": 3}}, "list": [2], "e": 5}
    assert data == {"a": {"b": 1}, "list": [1]}


@pytest.mark.parametrize("override", ["", "a", "=1", "a..b=1", ".a=1", "a.=1"])
def test_broken_override(override: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form section\.key=value"):
        apply_overrides({}, [override])


def test_override_below_a_value() -> None:
    with pytest.raises(ValueError, match=r"override 'a\.b\.c=1': b is a value, not a section"):
        apply_overrides({"a": {"b": 2}}, ["a.b.c=1"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml does not exist"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a directory; name a TOML file"):
        load_toml(tmp_path)
    for content in (b"a = ", b"a = 1\na = 2", b"[x", b"\xff\xfe", b"\x00"):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.toml is not valid TOML: ") as caught:
            load_toml(tmp_path / "broken.toml")
        assert "\n" not in str(caught.value)


keys = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=10)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


@given(data=st.dictionaries(keys, values, max_size=4))
def test_any_plain_values_survive_a_file(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(dump_toml(data).encode())
    assert load_toml(path) == data


def test_absent_values_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(dump_toml({"a": None, "b": {"c": None, "d": [{"e": None, "f": 1}]}}))
    assert load_toml(tmp_path / "a.toml") == {"b": {"d": [{"f": 1}]}}


def test_there_are_configs() -> None:
    assert {path.name for path in CONFIGS} >= {"tiny-entropy.toml", "tiny.toml", "1b.toml", "8b.toml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_is_written_back(path: Path, tmp_path: Path) -> None:
    config: TrainConfig = parse(TrainConfig, load_toml(path), path.name)
    (tmp_path / "again.toml").write_text(dump_toml(config.model_dump(mode="json")))
    assert parse(TrainConfig, load_toml(tmp_path / "again.toml"), "again") == config


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_describes_a_model_of_the_size_it_says(name: str) -> None:
    config: TrainConfig = parse(TrainConfig, load_toml(CONFIGS[0].parent / name), name)
    with torch.device("meta"):
        model = build_model(config.model)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[name], rel=0.05)


def test_values_are_frozen() -> None:
    config: TrainConfig = parse(TrainConfig, SMALL, "x")
    with pytest.raises(ValidationError, match="frozen"):
        config.trainer = None  # type: ignore[misc, assignment]
    with pytest.raises(ValidationError, match="frozen"):
        config.model.width = 9  # type: ignore[misc, union-attr]
    assert hash(config.optim.betas) and isinstance(config.data.sources, tuple)


def test_replace_makes_a_validated_copy() -> None:
    config = EntropyConfig(width=8, layers=1, heads=2)
    changed = config.replace(layers=3)
    assert (config.layers, changed.layers, changed.width) == (1, 3, 8)
    with pytest.raises(ValueError, match="must divide heads"):
        config.replace(kv_heads=3)
    with pytest.raises(ValueError, match="laiers"):
        config.replace(laiers=3)
