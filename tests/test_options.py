"""The options of generation in Python: typed for editors and mypy, and checked with one clear line each."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bltkit
from bltkit.generate import ALIASES, STRATEGIES, Sampling, parse_strategy, strategy_of
from bltkit.generate.options import DEFAULTS, Options, parse_options
from bltkit.generate.request import Request

# Run outside of the tests' own type checks, which would catch these before the package does.
MISTAKES = {
    'lm.generate(["a"])': ["list", "generate_many"],
    "lm.generate(None)": ["NoneType"],
    "lm.generate(bytearray(b'a'))": ["bytearray"],
    "lm.generate('a', max_bytes='5')": ["max_bytes = '5'", "whole number"],
    "lm.generate('a', max_bytes=-1)": ["max_bytes = -1"],
    "lm.generate('a', max_bytes=True)": ["max_bytes = True"],
    "lm.generate('a', max_bytes=10**5000)": ["max_bytes", "at most"],
    "lm.generate('a', seed=1.5)": ["seed = 1.5"],
    "lm.generate('a', stop=5)": ["stop = 5"],
    "lm.generate('a', stop=['x', 5])": ["stop = ['x', 5]"],
    "lm.generate('a', temperature='hot')": ["temperature = 'hot'", "a number"],
    "lm.generate('a', temperature=None)": ["temperature = None"],
    "lm.generate('a', temperature=float('nan'))": ["temperature = nan"],
    "lm.generate('a', temperature=10**400)": ["temperature", "too large"],
    "lm.generate('a', temprature=1)": ["'temprature'", "temperature"],
    "lm.generate('a', strategy=5)": ["strategy = 5"],
    "lm.generate('a', strategy='blt-x')": ["'blt-x'", "blt-"],
    "lm.generate('a', valid_utf8='yes')": ["valid_utf8 = 'yes'"],
    "lm.samples('a', 2.5)": ["num = 2.5"],
    "lm.generate_many('abc')": ["str", "list of texts"],
    "lm.generate_many(['a', 5])": ["prompt = 5"],
    "lm.score(['a'])": ["list"],
    "lm.score('abc', context='5')": ["context = '5'"],
    "lm.patches(5)": ["int"],
    "lm.logits([1, 999])": ["999"],
    "lm.with_patching(5)": ["rule = 5"],
    "bltkit.load('bltkit:tiny', dtype='fp16')": ["dtype = 'fp16'"],
    "bltkit.evaluate('bltkit:tiny', 5)": ["tasks = 5"],
    "bltkit.evaluate('bltkit:tiny', 'utf8', limit='x')": ["limit = 'x'"],
    "bltkit.evaluate('bltkit:tiny', 'utf8', strategy=5)": ["strategy = 5"],
}
PROGRAM = """
import json, sys, bltkit
lm = bltkit.load("bltkit:tiny")
lines = {}
for call in json.load(sys.stdin):
    try:
        eval(call)
    except ValueError as error:
        lines[call] = str(error)
    except Exception as error:
        lines[call] = f"{type(error).__name__}: {error}"
print(json.dumps(lines))
"""


def test_every_mistake_is_one_line_that_names_the_value() -> None:
    asked = json.dumps(list(MISTAKES))
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True, check=True)
    lines = json.loads(done.stdout)
    assert lines.keys() == MISTAKES.keys(), "some mistakes went unnoticed"
    wrong = {call: line for call, line in lines.items() if "\n" in line or not all(w in line for w in MISTAKES[call])}
    assert not wrong


@pytest.mark.parametrize("name", ["generate", "samples", "stream", "generate_many", "generate_iter"])
def test_signatures_name_every_option(name: str) -> None:
    parameters = inspect.signature(getattr(bltkit.ByteLM, name)).parameters
    assert parameters.keys() >= Options.__annotations__.keys()
    assert all(value.kind is not value.VAR_KEYWORD for value in parameters.values())
    assert {key: parameters[key].default for key in DEFAULTS} == dict(DEFAULTS)


def test_defaults_are_those_of_the_engine() -> None:
    assert DEFAULTS.keys() == Options.__annotations__.keys()
    assert {name: DEFAULTS[name] for name in Sampling.model_fields} == Sampling().model_dump()
    request = Request()
    assert (DEFAULTS["max_bytes"], DEFAULTS["stop"], DEFAULTS["logprobs"]) == (
        request.max_bytes,
        request.stop,
        request.logprobs,
    )


def test_names_of_the_papers() -> None:
    for alias, kind in ALIASES.items():
        assert kind in STRATEGIES
        assert parse_strategy(alias) == parse_strategy(alias.upper()) == parse_strategy(kind)
    assert parse_strategy("BLT-S:draft=8") == parse_strategy("speculative:draft=8")
    assert parse_strategy("blt-d:alpha=0.9").kind == "diffusion"
    with pytest.raises(ValueError, match="did you mean 'blt-s'"):
        parse_strategy("blt_s")


def test_interpreters_complete_public_names() -> None:
    assert set(bltkit.__all__) <= set(dir(bltkit))


def test_a_model_says_what_it_is() -> None:
    lm = bltkit.load("bltkit:tiny")
    assert lm.model is not None
    shown = repr(lm)
    size = sum(weight.numel() for weight in lm.model.parameters())
    for words in (f"{size:,} parameters", str(lm.rule), "on cpu", "float32", "thread"):
        assert words in shown
    assert "packed" in repr(lm.with_weights("packed")) and f"{size:,}" in repr(lm.with_weights("packed"))


SCRIPT = """import bltkit

lm = bltkit.load("bltkit:tiny")
text: str = lm.generate("a", max_bytes=5, temperature=0, stop=["x"], strategy="blt-s").text
several: list[bltkit.Generation] = lm.generate_many(["a", b"b", bltkit.Prompt("c", seed=2)], batch_size=2, seed=1)
for chunk in lm.stream("a", top_p=0.9):
    print(chunk.data, lm.score("a", context=5).bits_per_byte)
"""


@pytest.mark.slow
def test_mypy_accepts_a_script_and_rejects_its_mistakes(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(SCRIPT)
    wrong = ["max_byte=5", "max_bytes='5'", "seed=1.5", "stop=5"]
    (tmp_path / "bad.py").write_text(SCRIPT + "".join(f"lm.generate('a', {option})\n" for option in wrong))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    good = subprocess.run([*command, "good.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    bad = subprocess.run([*command, "bad.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [int(line.split(":")[1]) for line in bad.stdout.splitlines() if ": error:" in line]
    first = SCRIPT.count("\n") + 1
    assert lines == [first, first + 1, first + 2, first + 3], bad.stdout


def test_a_strategy_may_be_given_with_its_fields() -> None:
    """As everywhere else that takes one; a field is then told in one place."""
    assert parse_options(b"", {"strategy": "speculative:draft=8"}).strategy == strategy_of("speculative", draft=8)
    with pytest.raises(ValueError, match="draft = 4 is given a second time"):
        parse_options(b"", {"strategy": "speculative:draft=8", "draft": 4})
    with pytest.raises(ValueError, match="did you mean 'speculative'"):
        parse_options(b"", {"strategy": "speculativ:draft=8"})
