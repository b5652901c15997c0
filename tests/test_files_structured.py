"""JSON and TOML: byte order marks, depth, half surrogate pairs, numbers, and messages that name the place."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bltkit
from bltkit.config import load_toml, parse_value
from bltkit.files import parse_json, parse_toml, read_json, read_json_object, read_toml, read_utf8
from bltkit.files.structured import MAX_DEPTH

BOM = b"\xef\xbb\xbf"

ELSEWHERE = ("checkpoint/token_checkpoint.py", "checkpoint/sealing.py", "data/store.py", "data/sources/shards.py")
"""Modules that parse by themselves, what they have just written."""


def test_no_other_module_parses() -> None:
    root = Path(bltkit.__file__).parent
    offenders = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name == "files/structured.py" or name.startswith(ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
            elif isinstance(node, ast.ImportFrom):
                called = " ".join(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                called = " ".join(f"{alias.name}." for alias in node.names)
            else:
                continue
            if any(word in called for word in ("json.load", "json.JSONDecoder", "tomllib.", "tomli.")):
                offenders.append(f"{name}:{node.lineno}: {called}")
    assert not offenders, "use bltkit.files"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.integers(0, 2))
def test_json_is_what_the_library_reads(value: object, ascii_only: bool, marks: int) -> None:
    data = BOM * marks + json.dumps(value, ensure_ascii=ascii_only).encode()
    for settings in ({}, {"finite": True}, {"escaped_bytes": True}):
        assert parse_json(data, "here", **settings) == value
    assert parse_json(data.decode(), "here") == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (BOM + b" \n", "empty"),
        (b'{"a": 1', "Expecting ',' delimiter at column 8"),
        (b'{"a":\n 1\n', "Expecting ',' delimiter at line 3, column 1"),
        (b'{"a": "b', "Unterminated string starting at column 7"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 5) + b"]" * (MAX_DEPTH + 5), "nested too deeply, more than 200 levels"),
        (rb'{"a": "x\ud800"}', r"\ud800 is half a surrogate pair"),
        (rb'{"a": ["x\uDFFFx"]}', r"\udfff is half a surrogate pair"),
        (rb'{"a": {"\udc80": 1}}', r"\udc80 is half a surrogate pair"),
        (rb'"\ude00\ud83d"', r"\ude00 is half a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8: invalid continuation byte at byte 7"),
        (b'{"a":\n"\xff"}', "not UTF-8: invalid start byte at line 2"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16, not UTF-8; save it as UTF-8"),
        (b"1" * 5_000, "an integer of more than 4300 digits"),
        (b"[1] 2", "Extra data at column 5"),
    ],
)
def test_json_that_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_json(data, "file.jsonl:7")
    assert str(error.value).startswith(f"file.jsonl:7: not JSON ({reason}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_json_that_is_not_refused() -> None:
    assert parse_json(rb'"\ud83d\ude00 \\ud800 \uac00"', "here") == "\U0001f600 \\ud800 \uac00"
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "here")
    assert parse_json(json.dumps(["[{" * 1_000]), "here") == ["[{" * 1_000]
    assert len(parse_json(b"[" + b"[]," * 10_000 + b"[]]", "here")) == 10_001
    data = b"caf\xe9"
    own = json.dumps(data.decode("utf-8", "surrogateescape"))
    assert parse_json(own, "here", escaped_bytes=True).encode("utf-8", "surrogateescape") == data
    with pytest.raises(ValueError, match="half a surrogate"):
        parse_json(own, "here")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(number: str) -> None:
    assert isinstance(parse_json(number, "here"), float)
    with pytest.raises(ValueError, match=rf"^here: not JSON \({number} is"):
        parse_json(number, "here", finite=True)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(BOM + b'[a]\nb = "\xc3\xa9"\n')
    assert read_toml(path) == load_toml(path) == {"a": {"b": "é"}}
    for data, reason in [
        (b"a = " + b"[" * 5_000, "nested too deeply"),
        (b".".join([b"a"] * 5_000) + b" = 1", "nested too deeply"),
        (b"a = " + b"1" * 5_000, "an integer of more than 4300 digits"),
        (b'\na = "\xff"', "not UTF-8: invalid start byte at line 2"),
        ("a = 1".encode("utf-16"), "UTF-16, not UTF-8"),
        (b"a = \n", "Invalid value (at line 1, column 5)"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError) as error:
            load_toml(path)
        assert str(error.value).startswith(f"{path} is not valid TOML: {reason}") and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="here is not valid TOML"):
        parse_toml("=", "here")


def test_a_value_on_the_command_line_is_text_where_it_is_no_toml() -> None:
    for text in ("[" * 5_000, "1" * 5_000, "blt", "a b"):
        assert parse_value(text) == text


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(BOM + b"[1]")
    assert read_json(path) == [1] and read_utf8(path) == "[1]"
    with pytest.raises(ValueError, match=r"a\.json: a JSON object is expected, not a list"):
        read_json_object(path)
    path.write_bytes(b"[1")
    with pytest.raises(ValueError, match=r"a\.json: not JSON"):
        read_json_object(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.json: not UTF-8"):
        read_utf8(path)
