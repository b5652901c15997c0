"""The standard streams: what a terminal shows of data, what pipes get, and progress in a log."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bltkit import cli
from bltkit.terminal import progress as progress_module
from bltkit.terminal import streams
from bltkit.terminal.control_characters import encodable_json, visible, visible_json
from bltkit.terminal.progress import Progress

HOSTILE = "\x1b]0;x\x07\x1b[2J\x9b31m\x7f\rover\u202egnp.exe\u2066\u200b\ufeff\U000e0041[red]:smile:"
SHOWN = r"\x1b]0;x\x07\x1b[2J\x9b31m\x7f\rover\u202egnp.exe\u2066\u200b\ufeff\U000e0041[red]:smile:"


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stands for stdout. Called in a test's body: pytest sets stdout again after its fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "dumb")  # no styles, whose sequences would be taken for data
    return stream


def test_control_characters_are_shown() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\tb\nc\r\nd é 中 می\u200cخواهم 👩\u200d👩") == "a\tb\nc\r\nd é 中 می\u200cخواهم 👩\u200d👩"
    assert visible(os.fsdecode(b"\xff.txt")) == r"\xff.txt" and visible("\ud83d") == r"\ud83d"
    for code in (*range(0x20), *range(0x7F, 0xA0)):
        assert visible(chr(code)).isprintable() or chr(code) in "\t\n"
    assert visible(visible(HOSTILE)) == visible(HOSTILE)


def test_json_stays_json() -> None:
    line = json.dumps({HOSTILE: "\ud800"}, ensure_ascii=False)
    for made in (visible_json(line), encodable_json(line)):
        assert json.loads(made) == {HOSTILE: "\ud800"}
        made.encode()
    assert visible(visible_json(line)) == visible_json(line)


def test_results_on_a_terminal_and_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    streams.write_result(HOSTILE)
    streams.write_json([HOSTILE])
    lines = terminal.shown().split("\n")
    assert lines[0] == SHOWN and json.loads(lines[1]) == [HOSTILE] and lines[1].isprintable()
    piped = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", piped)
    streams.write_result(HOSTILE, end="")
    piped.flush()
    assert isinstance(piped.buffer, io.BytesIO) and piped.buffer.getvalue() == HOSTILE.encode()


def test_rich_takes_data_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table
    from rich.text import Text

    monkeypatch.setenv("COLUMNS", "200")
    terminal = on_a_terminal(monkeypatch)
    table = Table("\x1b[31mhead", "x")
    table.add_row(HOSTILE, Text("\x1b[2J[bold]"))
    console = streams.console()
    console.print(table)
    console.print("[red]\x1b[0m:smile:")
    shown = terminal.shown()
    assert "\x1b" not in shown and "\u202e" not in shown
    assert r"\x1b]0;x\x07\x1b[2J" in shown and r"[red]\x1b[0m:smile:" in shown


@pytest.mark.parametrize("verb", [("patch",), ("patch", "--compare"), ("patch", "--json"), ("generate", "-n", "60")])
def test_verbs_on_a_terminal(verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    assert cli.main([*verb, HOSTILE]) == 0
    shown = terminal.shown()
    assert shown and visible(shown) == shown


def test_what_a_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming, in pieces that cut characters and sequences."""
    from bltkit.api import ByteLM
    from bltkit.generate import Chunk, Stats

    terminal = on_a_terminal(monkeypatch)
    data = HOSTILE.encode()
    stats = Stats.__new__(Stats)
    chunks = [Chunk(data[at : at + 1], None, None) for at in range(len(data))]
    monkeypatch.setattr(ByteLM, "stream", lambda self, prompt, **options: iter([*chunks, Chunk(b"", "length", stats)]))
    with contextlib.suppress(AttributeError):  # the account has no figures
        cli.main(["generate", "x"])
    assert terminal.shown() == SHOWN + "\n"


def test_messages_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert cli.main(["score", "--file", "/nowhere/" + HOSTILE.replace("/", "")]) == 2
    assert cli.main(["train", os.fsdecode(b"\x1b\xff.toml")]) == 2
    assert cli.main(["score", "x", "--\x1b[2J"]) == 2
    shown = stderr.shown()
    assert shown.count("\n") == 3 and visible(shown) == shown and r"\x1b" in shown


def test_a_name_that_is_not_utf8_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", piped)
    with streams.usable_streams():
        streams.write_result(os.fsdecode(b"caf\xe9"))
    piped.flush()
    assert isinstance(piped.buffer, io.BytesIO) and piped.buffer.getvalue() == b"caf\xe9\n"


def test_a_text_without_an_end_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streams, "MAX_TEXT_BYTES", 100)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        for source in (["-"], ["--file", "/dev/zero"]):
            assert cli.main(["score", *source]) == 2
            assert "has more than" in capsys.readouterr().err


def test_closed_descriptors_are_occupied(tmp_path: Path) -> None:
    """Else the first file that a program opens is its stdout."""
    program = (
        "import sys; from bltkit.terminal.streams import occupy_closed_streams; occupy_closed_streams()\n"
        "with open(sys.argv[1], 'w') as file: assert file.fileno() > 2\n"
    )
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program, str(tmp_path / "file")]
    ) as process:
        assert process.wait() == 0


def test_a_closed_stderr_leaves_the_text_alone() -> None:
    line = 'exec "$0" -m bltkit generate x --max-bytes 4 --json 2>&-; exit 9'
    done = subprocess.run(["sh", "-c", line, sys.executable], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["stats"]["bytes"] == 4
    assert done.stdout.count(b"\n") == 1


def test_a_closed_stdin_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for verb in ("patch", "score", "generate"):
        assert cli.main([verb, "-"]) == 2
        assert "standard input is closed" in capsys.readouterr().err


class Clock:
    """Seconds that a test counts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("evaluating", "items", clock=clock) as progress:
        for second in range(3601):
            clock.now = float(second)
            progress(second, 7200)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and 8 < len(lines) < 25
    assert lines[0] == "evaluating: 10 of 7,200 items, 0 %, 1/s, 2.0 h left"
    assert lines[1].startswith("evaluating: 25 of")


def test_progress_of_fast_commands_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("scoring", "bytes", clock=clock) as progress:
        for done in range(100):
            clock.now = done / 11
            progress(done, 100)
    assert capsys.readouterr() == ("", "")


def test_progress_without_a_total_with_stages_and_anew(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("annotate", "bytes", clock=clock) as progress:
        progress(0, None)
        clock.now = 20.0
        progress(4000, None)
        clock.now = 40.0
        progress(1000, 8000)  # another count begins
        clock.now = 80.0
        progress(5000, 8000)
        clock.now = 500.0
        progress.stage("writing [red]\x1b")
    assert capsys.readouterr().err.splitlines() == [
        "annotate: 4,000 bytes, 200/s",
        "annotate: 1,000 of 8,000 bytes, 12 %",
        "annotate: 5,000 of 8,000 bytes, 62 %, 100/s, 30 s left",
        "annotate: writing [red]\x1b",
    ]


def test_progress_is_resumed_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    """What was there before does not count as fast."""
    clock = Clock()
    with Progress("training", "steps", clock=clock) as progress:
        progress(900, 1000)
        clock.now = 50.0
        progress(910, 1000)
    assert capsys.readouterr().err == "training: 910 of 1,000 steps, 91 %, 0.2/s, 8 min left\n"


def test_a_training_tells_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bltkit.config import dump_toml
    from tests.tiny_training import Workplace

    monkeypatch.setattr(progress_module, "FIRST_SECONDS", 0.0)
    config = tmp_path / "tiny.toml"
    config.write_text(dump_toml(Workplace.at(tmp_path).fields("cnn", "trainer.max_steps=4", "trainer.log_every=2")))
    assert cli.main(["train", str(config), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert any(line.startswith("training: 2 of 4 steps, 50 %, ") for line in lines), lines
    assert any("bits/byte" in line and "bytes/s" in line and " left" in line for line in lines), lines


BAR = """
import sys, time
from bltkit.terminal.progress import Progress
from bltkit.terminal.streams import say, write_result
with Progress("[red]\\x1b]0;x\\x07", "items") as progress:
    progress(1, 3)
    say("message \\x1b[2J")
    write_result("result")
    time.sleep(60)
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_bar_leaves_the_terminal_clean(term: str) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": term}
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    shown, until, next_signal = b"", time.monotonic() + 120, 0.0
    while time.monotonic() < until:
        if b"result" in shown and time.monotonic() > next_signal:
            process.send_signal(signal.SIGINT)
            next_signal = time.monotonic() + 5
        if select.select([master], [], [], 0.2)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other side is closed
                break
    assert process.wait(60) != 0
    os.close(master)
    assert b"\x1b]0;" not in shown and b"\x07" not in shown and b"\x1b[2J" not in shown
    assert rb"message \x1b[2J" in shown and b"result" in shown
    if term == "xterm":
        assert rb"[red]\x1b]0;x\x07" in shown
        assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    else:
        assert b"\x1b[" not in shown.split(b"Traceback")[0]
