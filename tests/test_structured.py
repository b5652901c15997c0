"""Structured output: every text is complete within its budget and valid, whatever is chosen among the allowed bytes."""

import json
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest

from bltkit.api import ByteLM
from bltkit.cli import main
from bltkit.generate.constraint import follow, masks_along
from bltkit.generate.grammar import GrammarError, json_grammar, regex_grammar
from bltkit.generate.options import parse_options
from bltkit.generate.shortest_match import shortest_match
from bltkit.generate.structured_output import Structured
from bltkit.vocab import EOS, OFFSET

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

EXACT = ("ar", "speculative", "speculative:draft=3", "verified", "auto")
TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "c": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v", "c"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHORTEST = [
    (PERSON, b'{"name":"","age":0}'),
    (TREE, b'{"v":0,"c":[]}'),
    ({"type": "object"}, b"{}"),
    ({"enum": ["longer", "abc", 1234567]}, b'"abc"'),
    ({"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 2}, b'["..",".."]'),
    ({"type": "string", "pattern": "^(ab)*c$"}, b'"c"'),
    ({"type": "string", "pattern": "x+y"}, b'"xy"'),
    ({"type": "string", "pattern": "^[0-9]{4}-[A-Z]{2}$"}, b'"0000-AA"'),
    ({"anyOf": [{"const": "twelve bytes"}, {"type": "null"}]}, b"null"),
    ({"type": "integer", "minimum": 100}, b"100"),
]
"""Schemas and a shortest text of each; its size is what counts."""


def random_schema(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of the keywords that the library enforces, nested at most four deep."""
    leaves = ["string", "integer", "number", "boolean", "null", "enum", "pattern", "format"]
    kind = choose.choice([*leaves, "array", "object", "object", "anyOf"] if depth < 3 else leaves)
    if kind == "string":
        least = choose.choice([0, 0, choose.randrange(7)])
        return {"type": "string", "minLength": least} | choose.choice([{}, {"maxLength": least + choose.randrange(9)}])
    if kind == "integer":
        least = choose.randint(-50, 200)
        return {"type": "integer"} | choose.choice([{}, {"minimum": least, "maximum": least + choose.randrange(1000)}])
    if kind == "number":
        return {"type": "number"} | choose.choice([{}, {"exclusiveMinimum": choose.randint(-5, 5)}])
    if kind == "enum":
        values = [1, "a", "Zürich", None, True, {"x": [1, 2]}, "a longer value", -3.5, [], 'quote " and \\']
        return {"enum": choose.sample(values, choose.randint(1, 4))}
    if kind == "pattern":
        return {"type": "string", "pattern": choose.choice(["^(ab)*c$", "^[a-z]{3,5}$", "^\\d{4}-\\d{2}$", "x+y"])}
    if kind == "format":
        return {"type": "string", "format": choose.choice(["date", "ipv4", "uuid"])}
    if kind == "anyOf":
        return {"anyOf": [random_schema(choose, depth + 1) for _ in range(choose.randint(1, 3))]}
    if kind == "array":
        least = choose.randrange(4)
        limits = choose.choice([{}, {"minItems": least}, {"minItems": least, "maxItems": least + choose.randrange(3)}])
        return {"type": "array", "items": random_schema(choose, depth + 1)} | limits
    if kind == "object":
        names = choose.sample(["a", "name", "ключ", "id", "list of", 'x"y'], choose.randrange(5))
        return {
            "type": "object",
            "properties": {name: random_schema(choose, depth + 1) for name in names},
            "required": [name for name in names if choose.random() < 0.6],
            "additionalProperties": choose.choice([False, False, True, {"type": "integer"}]),
        }
    return {"type": kind}


def walk(state: Structured, budget: int, choose: random.Random) -> bytes | None:
    """A text of bytes drawn among those that are allowed; None where it is not complete in the budget."""
    made = b""
    while len(made) < budget:
        allowed = state.allowed(budget - len(made)).nonzero().flatten().tolist()
        chosen = choose.choice(allowed)
        if chosen == EOS:
            return made
        state, made = state.after(chosen), made + bytes([chosen - OFFSET])
        if state.finished(budget - len(made)):
            return made
    return None


def hold_to(seeds: range) -> int:
    """Walk a random schema and budgets for each seed; returns the number of texts that were held against them."""
    count = 0
    for seed in seeds:
        choose = random.Random(seed)
        schema = random_schema(choose)
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        grammar = json_grammar(schema)
        for budget in (choose.randint(1, 20), choose.randint(10, 200)):
            try:
                start = Structured.start(grammar, budget)
            except ValueError as error:
                assert "raise the budget" in str(error), schema
                continue
            text = walk(start, budget, choose)
            assert text is not None and len(text) <= budget, (schema, budget)
            validator.validate(json.loads(text.decode()))
            count += 1
    return count


def test_random_schemas_and_budgets() -> None:
    assert hold_to(range(40)) > 50


@pytest.mark.slow
def test_a_thousand_random_schemas() -> None:
    assert hold_to(range(10_000, 11_000)) > 1_500


@pytest.mark.parametrize(("schema", "shortest"), SHORTEST)
def test_the_shortest_text_is_the_least_budget(schema: dict[str, Any], shortest: bytes) -> None:
    grammar, size = json_grammar(schema), len(shortest)
    for seed in range(5):
        text = walk(Structured.start(grammar, size), size, random.Random(seed))
        assert text is not None and len(text) == size
        jsonschema.validate(json.loads(text), schema)
    with pytest.raises(ValueError, match=rf"max_bytes = {size - 1}: .* takes (at least )?\d+ bytes; raise the budget"):
        Structured.start(grammar, size - 1)


def test_a_recursive_schema_closes_what_it_opened() -> None:
    for seed in range(20):
        text = walk(Structured.start(json_grammar(TREE), 60), 60, random.Random(seed))
        assert text is not None
        jsonschema.validate(json.loads(text), TREE)


@pytest.mark.parametrize("pattern", ["(ab)*c|é+", "[0-9]+", "(cat|elephant)s?", ".*foo.*bar", "a{3,}[^a]"])
def test_regular_expressions(pattern: str) -> None:
    for seed in range(5):
        budget = random.Random(seed).randint(8, 30)
        text = walk(Structured.start(regex_grammar(pattern), budget), budget, random.Random(seed))
        assert text is not None and re.fullmatch(pattern, text.decode(), re.DOTALL)


def test_a_state_is_a_value_that_travels_and_masks_are_those_along_drafts() -> None:
    start = Structured.start(json_grammar(PERSON), 40)
    drafts = [byte + OFFSET for byte in b'{"name":"x","age":1}']
    count, end = follow(start, drafts, 40)
    assert count == len(drafts) and end.finished(20) and not start.finished(40)
    assert end.allowed(1).nonzero().flatten().tolist() == [EOS]
    masks = masks_along(start, drafts, 40)
    state: Any = start
    for at, draft in enumerate(drafts):
        assert masks[at].equal(state.allowed(40 - at))
        copy = pickle.loads(pickle.dumps(state))
        assert copy.allowed(40 - at).equal(state.allowed(40 - at)) and copy.made == state.made
        state = state.after(draft)
    assert start.made == b"" and start.allowed(40).nonzero().flatten().tolist() == [ord("{") + OFFSET]


@pytest.mark.parametrize(
    ("schema", "message", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems", 'Unimplemented keys: ["uniqueItems"]'),
        ({"not": {"type": "string"}}, "not", 'Unimplemented keys: ["not"]'),
        ({"type": "string", "format": "secret-format"}, "secret-format", "it cannot be enforced"),
        ({"type": "strong"}, "strong", "'type' has a wrong value"),
        ({"properties": {"a": {"minimun": 3}}}, "unknown keyword 'minimun'", "a keyword that JSON Schema"),
        ({"$defs": {"a": {"tpye": "null"}}}, "unknown keyword 'tpye'", "a keyword that JSON Schema"),
        ({"$ref": "https://example.com/secret"}, "secret", "it cannot be enforced"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength", "it cannot be enforced"),
        ({"description": "x" * 70_000}, "at most 65,536", "at most 65,536"),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: Any, message: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(message)) as error:
        json_grammar(schema)
    assert reason in error.value.reason and "secret" not in error.value.reason and "\n" not in str(error.value)


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1"])
def test_expressions_that_cannot_be_enforced(pattern: str) -> None:
    with pytest.raises(GrammarError, match="regex: it cannot be enforced"):
        regex_grammar(pattern)


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("x+y", "xy"),
        ("(?:abc|de)?f{2}", "ff"),
        ("[^a]b", "bb"),
        (r"\d\s\w", "0 a"),
        ("(?P<n>k)$", "k"),
        ("[é-ü]", "é"),
        ("(", None),
        (r"(a)\1", None),
        ("a(?=b)", None),
    ],
)
def test_short_matches(pattern: str, match: str | None) -> None:
    assert shortest_match(pattern) == match
    assert match is None or re.search(pattern, match)


def test_options_that_exclude_each_other() -> None:
    for options, message in [
        ({"json_schema": PERSON, "regex": "a"}, "exclude each other"),
        ({"json_schema": PERSON, "stop": "}"}, "stop cuts the output of json_schema short"),
        ({"json_schema": "text"}, "must be a JSON schema"),
        ({"json_schema": PERSON, "max_bytes": 3}, "max_bytes = 3: the shortest output"),
        ({"regex": 3}, "regex = 3: must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_options(b"", options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ByteLM:
    """A small random model: what is asked of it decides what it writes."""
    from tests.serve_client import saved_model

    return ByteLM.load(saved_model(tmp_path_factory.mktemp("model") / "random", chat=True))


@pytest.mark.parametrize("seed", range(3))
def test_every_exact_strategy_makes_the_same_valid_text(tiny: ByteLM, seed: int) -> None:
    choose = random.Random(seed)
    schema = PERSON if seed == 0 else random_schema(choose)
    budget = 48 if seed == 0 else choose.randint(40, 60)
    options: Any = {"json_schema": schema, "max_bytes": budget, "seed": seed, "temperature": [0.0, 1.0][seed % 2]}
    texts = {strategy: tiny.generate("Answer: ", strategy=strategy, **options) for strategy in (*EXACT, "diffusion")}
    for strategy, generation in texts.items():
        assert generation.finish == "eos", (strategy, generation)
        jsonschema.validate(json.loads(generation.text), schema)
    assert {texts[strategy].data for strategy in EXACT} == {texts["ar"].data}


def test_side_by_side_is_as_alone(tiny: ByteLM) -> None:
    schemas = [PERSON, TREE, {"type": "number"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 3}]
    for schema in schemas:
        together = tiny.samples("Data: ", 3, json_schema=schema, max_bytes=40, seed=7)
        alone = [tiny.generate("Data: ", json_schema=schema, max_bytes=40, seed=7 + at) for at in range(3)]
        assert [sample.data for sample in together] == [sample.data for sample in alone]
        for sample in together:
            jsonschema.validate(json.loads(sample.text), schema)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON), encoding="utf-8")
    assert main(["generate", "A person: ", "--json-schema", str(path), "-n", "60", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    jsonschema.validate(json.loads(answer["text"]), PERSON)
    assert answer["finish"] == "eos"
    assert main(["generate", "Year ", "--regex", "(19|20)[0-9]{2}"]) == 0
    assert re.fullmatch("(19|20)[0-9]{2}", capsys.readouterr().out.strip())
    for options, message in [
        (["--json-schema", str(path), "-n", "5"], "the shortest output that was found for this json_schema takes 19"),
        (["--json-schema", str(tmp_path / "none.json")], "none.json"),
        (["--regex", "("], "regex: it cannot be enforced"),
    ]:
        assert main(["generate", "x", *options]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
