"""The reference of config keys is complete and current, its schema takes what `parse` takes, errors have examples."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bltkit import cli
from bltkit.config import Config, example_of, field_doc, load_toml, parse
from bltkit.eval.noise import NOISES, parse_noise
from bltkit.eval.tasks import TASKS, parse_tasks
from bltkit.generate.strategies import STRATEGIES, parse_strategy
from bltkit.patching.rules import RULES, parse_rule
from bltkit.train import TrainConfig
from bltkit.train.objectives import OBJECTIVES
from bltkit.train.reference import _classes, keys_page, keys_text, schema, sections
from bltkit.train.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def every_class(kind: type[Config]) -> set[type[Config]]:
    """A config class and all that stand inside it."""
    inner = [member for field in kind.model_fields.values() for member in _classes(field.annotation)]
    return {kind}.union(*map(every_class, inner))


def test_every_field_has_a_meaning() -> None:
    without = {
        f"{kind.__name__}.{name}"
        for kind in every_class(TrainConfig)
        for name in kind.model_fields
        if name != "kind" and not field_doc(kind, name)
    }
    assert without == set()


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == keys_page(), "run: python scripts/configuration.py"


def test_every_key_is_there() -> None:
    keys = {f"{section.name}.{key.name}" for section in sections() for key in section.keys}
    wanted = {"checkpoint.every_seconds", "guard.spikes", "adapt.freeze", "adapt.lora.rank", "trainer.max_steps"}
    wanted |= {"model.latent.layers", "patching.rule.k", "data.sources.weight", "optim.schedule.kind", "model.preset"}
    assert {name for name in wanted if name.split(".")[0] in TrainConfig.model_fields} - keys - {
        "guard.spikes",
        "optim.schedule.kind",
    } == set()
    text = keys_text()
    assert '[model] kind = "blt"' in text and '[objective] kind = "block-diffusion"' in text
    assert "  max_steps (whole number > 0; required)\n      Steps after which the run ends.\n" in text
    assert '  broken ("refuse" or "skip"; default: "refuse")' in text


def faults(value: Any, node: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What a JSON schema has against a value: as much of the standard as ours uses."""
    if "$ref" in node:
        return faults(value, whole["$defs"][node["$ref"].rsplit("/", 1)[-1]], whole)
    for key in ("anyOf", "oneOf"):
        if key in node:
            each = [faults(value, option, whole) for option in node[key]]
            return [] if [] in each else min(each, key=len)
    kinds = {"object": dict, "array": (list, tuple), "string": str, "boolean": bool, "null": type(None)}
    kind = node.get("type")
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
            return [f"{value!r} is no {kind}"]
    elif kind is not None and not isinstance(value, kinds[kind]):
        return [f"{value!r} is no {kind}"]
    found = []
    if ("const" in node and value != node["const"]) or ("enum" in node and value not in node["enum"]):
        found.append(f"{value!r} is not allowed")
    bounds = {
        "minimum": lambda x, y: x >= y,
        "exclusiveMinimum": lambda x, y: x > y,
        "maximum": lambda x, y: x <= y,
        "exclusiveMaximum": lambda x, y: x < y,
    }
    found += [f"{value!r}: {key}" for key, holds in bounds.items() if key in node and not holds(value, node[key])]
    if isinstance(value, dict):
        properties = node.get("properties", {})
        for name, item in value.items():
            if name in properties:
                found += faults(item, properties[name], whole)
            elif node.get("additionalProperties") is False:
                found.append(f"unknown {name}")
        found += [f"no {name}" for name in node.get("required", ()) if name not in value]
    if isinstance(value, list | tuple) and "items" in node:
        found += [fault for item in value for fault in faults(item, node["items"], whole)]
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_the_shipped_configs(path: Path) -> None:
    whole = schema()
    data = load_toml(path)
    assert faults(data, whole, whole) == []
    parse(TrainConfig, data, path.name)


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": {"max_stepz": 3}},
        {"trainer": {"max_steps": 0}},
        {"trainer": {"max_steps": 1, "precision": "fp8"}},
        {"data": {"row_bytes": 2}},
        {"data": {"sources": [{"kind": "jsonl", "pathz": ["a"]}]}},
        {"optim": {"lr": -1}},
        {"model": {"kind": "blt", "presett": "tiny"}},
        {"modle": {}},
    ],
)
def test_the_schema_refuses_mistakes(change: dict[str, Any]) -> None:
    whole = schema()
    assert faults({**load_toml(ROOT / "configs" / "tiny.toml"), **change}, whole, whole)


@pytest.mark.parametrize("rule", ["stride:k=4", {"kind": "stride", "k": 4}])
def test_the_schema_takes_short_forms(rule: Any) -> None:
    whole = schema()
    data = load_toml(ROOT / "configs" / "tiny.toml") | {"patching": {"rule": rule}, "data": {"sources": ["a.txt"]}}
    assert faults(data, whole, whole) == []
    assert faults(data | {"data": {"sources": "stdlib"}, "optim": {"schedule": "wsd"}}, whole, whole) == []


def test_the_verb_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--keys"]) == 0
    assert capsys.readouterr().out == keys_text() + "\n"
    assert cli.main(["train", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "blt: name a training config (TOML); `blt train --keys` shows what it may hold\n"


@pytest.mark.parametrize("kind", [kind for kind in RULES if kind != "bpe-oracle"])
def test_a_rules_example_is_one(kind: str) -> None:
    assert parse_rule(example_of(RULES[kind])).kind == kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stride", "key 'k' is missing; for example stride:k=4.5"),
        ("threshold", "key 'threshold' is missing; for example threshold:threshold=1.25"),
        ("stride:k=0", "k = 0: .*; for example stride:k=4.5"),
        ("both:rise=1", "for example both:threshold=1.25,rise=0.125"),
        ("strides", r"did you mean 'stride'\?.*`--rule list`"),
    ],
)
def test_errors_bring_an_example(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_rule(text)


LISTS = {
    "patch --rule": RULES,
    "calibrate --rule": RULES,
    "annotate --rule": RULES,
    "study ablation --rule": RULES,
    "generate --strategy": STRATEGIES,
    "eval --strategy": STRATEGIES,
    "flops --strategy": STRATEGIES,
    "bench decode --strategy": STRATEGIES,
    "study fast-decoding --setting": STRATEGIES,
    "eval --noise": NOISES,
    "study robustness --noise": NOISES,
    "eval --tasks": TASKS,
    "study robustness --task": TASKS,
}
READERS: dict[Any, Any] = {
    RULES: parse_rule,
    STRATEGIES: parse_strategy,
    NOISES: parse_noise,
    TASKS: lambda text: parse_tasks([text]),
}


@pytest.mark.parametrize("option", LISTS)
def test_every_option_that_takes_kinds_lists_them(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever else is missing; examples are read by the option's own parser."""
    kinds = LISTS[option]
    assert cli.main([*option.split(), "list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == kinds.listing() + "\n" and captured.err == ""
    assert set(kinds) == set(re.findall(r"^([\w-]+)$", captured.out, re.MULTILINE))
    examples = re.findall(r"for example (\S+)", captured.out)
    assert len(examples) == len(kinds)
    for example in examples:
        if "tokenizer" not in example:
            READERS[kinds](example)


def test_a_list_says_once_what_all_kinds_have() -> None:
    listing = RULES.listing()
    assert listing.count("max_patch_bytes:") == 1
    assert listing.index("(each of them)") < listing.index("max_patch_bytes:")


def test_kinds_of_a_seam_have_a_table_each() -> None:
    """Also where a field names the seam's base class alone."""
    titles = {section.title for section in sections()}
    for name, kinds in {"patching.rule": RULES, "objective": OBJECTIVES, "optim.schedule": SCHEDULES}.items():
        assert {f'[{name}] kind = "{kind}"' for kind in kinds} <= titles
