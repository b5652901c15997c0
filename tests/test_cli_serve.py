"""The verb `serve`: mistakes, each answered by one line before anything is loaded."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bltkit.cli import main
from bltkit.cli.serving import size_of
from bltkit.serve.security import KEY_VARIABLE, read_keys


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("blt: "), err
    return err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "--port", str(port))
    assert f"127.0.0.1:{port}" in line and "--port" in line
    assert "--host" in refused(capsys, "--host", "no.such.host.invalid")


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n \n")
    for arguments, named in [
        (("--memory", "much"), "--memory"),
        (("--memory", "0"), "memory"),
        (("--port", "70000"), "--port"),
        (("--max-sequences", "0"), "--max-sequences"),
        (("--threads", "0"), "--threads"),
        (("--cors", "example.org"), "--cors"),
        (("--cors", "https://example.org/path"), "--cors"),
        (("--api-key-file", str(empty)), "--api-key-file"),
        (("--api-key-file", str(tmp_path)), "--api-key-file"),
        (("--api-key-file", str(tmp_path / "none")), "none"),
        (("--timeout", "-1"), "--timeout"),
    ]:
        assert named in refused(capsys, *arguments)


def test_an_extra_that_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the module that imports uvicorn: a second copy of the package would part from the one that tests patch.
    monkeypatch.delitem(sys.modules, "bltkit.serve.program", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'bltkit[serve]'" in refused(capsys)


def test_help_imports_no_server() -> None:
    program = (
        "import sys, bltkit.cli\n"
        "assert bltkit.cli.main(['serve', '--help']) == 0\n"
        "print([name for name in ('fastapi', 'uvicorn', 'prometheus_client', 'torch') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


def test_sizes() -> None:
    assert [size_of(text, "--memory") for text in ("1500", "2K", "1.5M", "2G", "1GiB", "3mb")] == [
        1500,
        2048,
        3 * 2**19,
        2**31,
        2**30,
        3 * 2**20,
    ]
    for text in ("", "G", "-1", "1e9", "2X", "1.G"):
        with pytest.raises(ValueError, match="--memory"):
            size_of(text, "--memory")


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv(KEY_VARIABLE, " one ")
    assert read_keys(None) == (b"one",)
    file = tmp_path / "keys"
    file.write_bytes(b"two\r\n\n three \n")
    assert read_keys(file) == (b"two", b"three"), "the file's keys, and not the environment's"
