"""The writer's lock of a directory: never two holders, and what a killed one leaves is taken over."""

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bltkit.files import writer_lock
from bltkit.files.lock import HOLDER, LOCK, holder_of

HOLD = """
import os, sys, time
from pathlib import Path
from bltkit.files import writer_lock
with writer_lock(Path(sys.argv[1]), lambda line: print(line, flush=True)):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(directory: Path, *more: str) -> "subprocess.Popen[str]":
    """A process that holds `directory` until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "held" not in process.stdout.readline():
        assert process.poll() is None
    return process


def test_what_ends_by_itself_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new/and/below"):
        with writer_lock(tmp_path / name, pytest.fail):
            assert {LOCK, HOLDER} == {entry.name for entry in (tmp_path / name).iterdir()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())
    with pytest.raises(KeyError), writer_lock(tmp_path / "kept"):
        (tmp_path / "kept" / "file").write_text("x")
        raise KeyError
    assert [entry.name for entry in (tmp_path / "kept").iterdir()] == ["file"]


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"is in use by process {process.pid} on {socket.gethostname()}"):  # noqa: SIM117
            with writer_lock(tmp_path):
                pass
        assert str(process.pid) in str(holder_of(tmp_path))
    finally:
        process.kill()
        process.communicate()
    said: list[str] = []
    assert holder_of(tmp_path) is None
    with writer_lock(tmp_path, said.append):
        assert holder_of(tmp_path) is not None
    assert len(said) == 1 and f"taking over the lock of process {process.pid}" in said[0]
    assert not list(tmp_path.iterdir())


def test_the_same_process_is_no_exception(tmp_path: Path) -> None:
    with writer_lock(tmp_path):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} "), writer_lock(tmp_path):
            pass
        assert (tmp_path / HOLDER).exists() and (tmp_path / LOCK).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_a_killed_holder_do_not_keep_it(tmp_path: Path) -> None:
    """A loader's workers are forked: their copies of the descriptor end with the wait, whatever filelock does."""
    process = holder(tmp_path, "3")
    process.send_signal(signal.SIGKILL)
    process.wait()
    said: list[str] = []
    with writer_lock(tmp_path, said.append):
        assert len(said) == 1
    assert process.stdout is not None
    process.stdout.close()


def compete(directory: Path, rounds: int) -> None:
    """Take the lock again and again; with it held nobody else may be inside."""
    inside = directory / "inside"
    for _ in range(rounds):
        try:
            with writer_lock(directory):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another one is in
                time.sleep(0.001)
                inside.unlink()
        except ValueError:
            continue


def test_never_two_holders(tmp_path: Path) -> None:
    (tmp_path / "keep").touch()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compete, args=(tmp_path, 60)) for _ in range(3)]
    for process in processes:
        process.start()
    failures: list[BaseException] = []

    def here() -> None:
        try:
            compete(tmp_path, 60)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=here) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and not failures
    assert [entry.name for entry in tmp_path.iterdir()] == ["keep"]


def test_a_file_that_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had it open while its holder removed it would hold another lock than who makes it again."""
    lock, flock = tmp_path / LOCK, fcntl.flock
    waiting: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        if not waiting:  # opened; now a holder leaves, and another one comes
            waiting.append(os.fstat(descriptor).st_ino)
            lock.rename(tmp_path / "elsewhere")
            lock.touch()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", late)
    with writer_lock(tmp_path):
        assert lock.stat().st_ino != waiting[0]
        with pytest.raises(ValueError, match="is in use by"), writer_lock(tmp_path):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["elsewhere"]


def test_a_directory_that_a_leaving_holder_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, make, removals = tmp_path / "run", Path.mkdir, [1, 1]

    def removed(path: Path, *args: Any, **options: Any) -> None:
        make(path, *args, **options)
        if path == directory and removals:
            removals.pop()
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed)
    with writer_lock(directory):
        assert (directory / HOLDER).exists()
    assert not removals and not directory.exists()


@pytest.mark.parametrize("record", ["", "[]", "{", '{"pid": "x"}', '{"pid": -1}', '{"pid": 99999999999999999999}'])
def test_a_record_that_says_nothing(record: str, tmp_path: Path) -> None:
    (tmp_path / HOLDER).write_text(record)
    with writer_lock(tmp_path):
        pass
    with writer_lock(tmp_path):
        (tmp_path / HOLDER).write_text(record)
        with pytest.raises(ValueError, match="is in use by"), writer_lock(tmp_path):
            pass


def test_where_no_lock_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be locked for writing"), writer_lock(tmp_path / "file" / "below"):
        pass
    monkeypatch.setattr(
        "fcntl.flock", lambda *arguments: (_ for _ in ()).throw(OSError(38, "Function not implemented"))
    )
    with pytest.raises(OSError, match="file system with locks") as caught, writer_lock(tmp_path / "new"):
        pass
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()
    monkeypatch.undo()
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(OSError, match="Permission denied"), writer_lock(tmp_path / "closed"):
            pass
