"""`blt generate --prompts F --out G`, and what `blt generate` shows on a terminal."""

import gzip
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import COLOR_SYSTEMS

import bltkit
from bltkit.cli.writer import Writer
from bltkit.files.lock import writer_lock
from bltkit.generate.prompt_file import check_prompts, read_prompts
from bltkit.terminal.palette import patch_style
from tests.test_cli import Blt_, blt, models

__all__ = ["blt", "models"]

ROWS: list[dict[str, Any]] = [
    {"id": "text", "prompt": "The "},
    {"id": "bytes", "prompt_hex": "ff00c3", "max_bytes": 4},
    {"id": "own", "prompt": "a", "seed": 7, "stop": ["e", "t"]},
    {"id": 4, "prompt": ""},
]
OPTIONS = ("--max-bytes", "9", "--seed", "3", "--batch", "2")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def results(path: Path) -> dict[str | int, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_each_result_is_that_of_the_prompt_alone(blt: Blt_, models: Path, tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "f.jsonl", ROWS), tmp_path / "g.jsonl"
    line = ("generate", "--prompts", prompts, "--out", out, "--model", models / "blt", *OPTIONS)
    ran = blt(*line)
    assert ran.status == 0 and ran.out == b"" and "4 prompts continued" in ran.err
    lm, rows = bltkit.load(models / "blt"), results(out)
    assert rows.keys() == {"text", "bytes", "own", 4}
    for row in ROWS:
        data = bytes.fromhex(row["prompt_hex"]) if "prompt_hex" in row else row["prompt"].encode()
        alone = lm.generate(data, max_bytes=row.get("max_bytes", 9), seed=row.get("seed", 3), stop=row.get("stop", ()))
        result = rows[row["id"]]
        assert (result["text"], result["finish"]) == (alone.text, alone.finish)
        assert bytes.fromhex(result.get("bytes_hex", alone.data.hex())) == alone.data
        assert ("bytes_hex" in result) == ("\ufffd" in alone.text)
        assert result["stats"]["bytes"] == len(alone.data)
    assert blt(*line, "--json").json()["skipped"] == 4


def test_a_rerun_continues_and_repairs_a_cut_line(blt: Blt_, models: Path, tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "f.jsonl", ROWS), tmp_path / "g.jsonl"
    line = ("generate", "--prompts", prompts, "--out", out, "--model", models / "blt", *OPTIONS)
    blt(*line)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (whole[:-5], lines[0] + lines[1][:1], lines[0][:10], b""):
        out.write_bytes(cut)
        assert blt(*line).status == 0
        assert {key: row["text"] for key, row in results(out).items()} == {
            row["id"]: row["text"] for row in map(json.loads, lines)
        }
        assert out.read_bytes().startswith(cut[: cut.rfind(b"\n") + 1])
    write(prompts, [*ROWS, {"id": "new", "prompt": "b"}])
    assert blt(*line, "--json").json() | {"seconds": 0, "bytes": 0} == {
        "out": str(out),
        "prompts": 5,
        "generated": 1,
        "skipped": 4,
        "bytes": 0,
        "seconds": 0,
    }
    assert "seed = 3, now it is 4" in blt(*line, "--seed", "4").mistake()
    assert "temperature" in blt(*line, "--temperature", "0").mistake()
    assert "stop" in blt(*line, "--stop", "x").mistake()
    assert "model" in blt(*line, "--model", models / "space").mistake()
    write(prompts, [ROWS[0] | {"prompt": "other"}, *ROWS[1:]])
    assert "'text' has a result" in blt(*line).mistake()


def test_a_second_writer_and_foreign_files_are_refused(blt: Blt_, models: Path, tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "f.jsonl", ROWS), tmp_path / "g.jsonl"
    line = ("generate", "--prompts", prompts, "--model", models / "blt", *OPTIONS)
    with writer_lock(tmp_path / "g.jsonl.run"):
        assert str(os.getpid()) in blt(*line, "--out", out).mistake()
    other = tmp_path / "other.jsonl"
    other.write_text("something\n")
    for place, words in (
        (other, "something else"),
        (prompts, "file of prompts"),
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "g.jsonl", "does not exist"),
        (tmp_path / "g.jsonl.gz", "uncompressed"),
    ):
        assert words in blt(*line, "--out", place).mistake()
    assert other.read_text() == "something\n" and not (tmp_path / "other.jsonl.run").exists()
    assert "--out" in blt(*line).mistake()
    assert "--prompts" in blt("generate", "--out", out).mistake()
    for extra in (("PROMPT",), ("--num", "2"), ("--stats",), ("--show-patches",)):
        assert "single prompt" in blt(*line, "--out", out, *extra).mistake()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[" * 2000, "nested"),
        ("5", "JSON object"),
        ("{}", "'prompt'"),
        ('{"prompt": "a", "prompt_hex": "00"}', "one of them"),
        ('{"prompt": 5}', "must be text"),
        ('{"prompt_hex": "0"}', "hexadecimal"),
        ('{"prompt": "a", "seeed": 1}', "'seed'"),
        ('{"prompt": "a", "seed": 1.5}', "seed = 1.5"),
        ('{"prompt": "a", "max_bytes": "5"}', "max_bytes = '5'"),
        ('{"prompt": "a", "stop": [5]}', "stop = [5]"),
        ('{"prompt": "a", "id": null}', "id = None"),
        ('{"prompt": "a", "id": "named"}', "every line"),
    ],
)
def test_a_broken_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(ValueError) as mistake:
        check_prompts(path)
    assert f"{path}:3" in str(mistake.value) and words in str(mistake.value) and "\n" not in str(mistake.value)


def test_prompt_files_of_other_kinds(tmp_path: Path) -> None:
    plain = tmp_path / "f.txt"
    plain.write_bytes(b"\xef\xbb\xbfone\r\n\n tw\xff \nthree")
    assert [(item.id, item.prompt.text) for item in read_prompts(plain)] == [
        (1, b"one"),
        (3, b" tw\xff "),
        (4, b"three"),
    ]
    packed = tmp_path / "f.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "b"}'))
    assert [(item.id, item.prompt.text) for item in read_prompts(packed)] == [(1, "a"), (2, "b")]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"f\.jsonl\.gz"):
        check_prompts(packed)
    write(plain.with_suffix(".jsonl"), [{"prompt": "a", "id": "x"}] * 2)
    with pytest.raises(ValueError, match="id 'x'"):
        check_prompts(plain.with_suffix(".jsonl"))
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises((ValueError, OSError)):
            check_prompts(path)


TERMINAL = """
import sys
from bltkit.cli.writer import Writer
writer = Writer(*eval(sys.argv[1]), patches=len(sys.argv) > 2)
pieces = [(b"caf", "100"), (b"\\xc3", "1"), (b"\\xa9\\x1b]0;x\\x07\\n", "00000000"), (b"\\xe2\\x98", "10")]
for data, opens in pieces:
    opens = [flag == "1" for flag in opens]
    writer.write(data, opens)
print("held", writer.end(), file=sys.stderr)
"""


def on_terminal(*arguments: str, **environment: str) -> bytes:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", TERMINAL, *arguments]
    done = subprocess.run(
        command,
        stdout=terminal,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    assert done.stderr == b"held 2\n", done.stderr
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(controller)
    return shown.replace(b"\r\n", b"\n")


def test_a_terminal_shows_whole_characters_and_no_control_sequences() -> None:
    assert on_terminal("[]") == "café\\x1b]0;x\\x07\n\n".encode()
    assert on_terminal("[b'a\\x1b']") == "\x1b[2ma\\x1b\x1b[0mcafé\\x1b]0;x\\x07\n\n".encode()


@pytest.mark.parametrize("system", ["standard", "256"])
def test_patches_have_the_colours_of_blt_patch(system: str) -> None:
    shown = on_terminal("[]", "patches", TERM={"standard": "xterm", "256": "xterm-256color"}[system]).decode()
    first, second = (
        patch_style(number, system).render("|", color_system=COLOR_SYSTEMS[system]).split("|")[0] for number in (1, 2)
    )
    plain = shown.replace("\x1b[0m", "")
    assert plain.startswith(f"{first}c{first}a{first}f{second}é{second}\\x1b{second}]") and plain.endswith("\\x07\n\n")
    # Nothing is left open at any moment, so that an interruption colours no shell.
    assert shown.count("\x1b[0m") == shown.count(first) + shown.count(second)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_borders_are_marked(environment: dict[str, str]) -> None:
    text = "[b'prompt']"
    assert on_terminal(text, **environment) == "café\\x1b]0;x\\x07\n\n".encode()
    assert on_terminal(text, "patches", **environment) == "│caf│é\\x1b]0;x\\x07\n\n".encode()


def test_a_border_inside_a_character_is_marked_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stdout)
    writer = Writer(b"", patches=True)
    writer.write("aя中b".encode(), [True, False, True, True, False, True, False])
    writer.end()
    assert stdout.buffer.getvalue().decode() == "│aя┊│中┊b\n"  # type: ignore[attr-defined]


def test_a_pipe_gets_the_bytes_untouched() -> None:
    command = [sys.executable, "-c", TERMINAL, "[b'prompt']"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == b"caf\xc3\xa9\x1b]0;x\x07\n\xe2\x98\n" and done.stderr == b"held 0\n"


def test_stats(blt: Blt_, models: Path) -> None:
    line = ("generate", "The ", "--model", models / "blt", "--max-bytes", "12", "--strategy", "BLT-S")
    told = blt(*line, "--stats").err
    for words in ("first byte: after", "bytes/s", "patches: ", "passes: ", " drafted bytes accepted (", "GB/s ("):
        assert words in told
    assert "of what this machine copies" in told
    assert blt(*line, "--stats").out == blt(*line).out
    assert "terminal" in blt(*line, "--show-patches").mistake()
