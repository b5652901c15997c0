"""The sandbox's limits under attack: time, processes, memory, files, output; and what counts as having passed."""

import secrets
import threading
import time

import pytest

from tests.sandboxes import REFUSED, Run, as_each_user, own_run, refusal, running_with

REFUSAL = refusal()
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)


@as_each_user
def test_a_program_that_works_passes(run: Run) -> None:
    outcome = run("def double(x):\n    return 2 * x\nprint('hello')", "assert double(2) == 4")
    assert (outcome.passed, outcome.status, outcome.timed_out, outcome.reason) == (True, 0, False, "")
    assert outcome.stdout == "hello\n"


@as_each_user
def test_a_wrong_program_fails_and_says_why(run: Run) -> None:
    outcome = run("def double(x):\n    return x", "assert double(2) == 4, 'wrong'")
    assert not outcome.passed
    assert outcome.reason == "raised AssertionError: wrong"
    assert "AssertionError" in outcome.stderr


@as_each_user
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\n"
        "while True:\n  try: input()\n  except BaseException: pass",
    ],
    ids=["busy", "asleep", "deaf to the limit", "deaf to all"],
)
def test_infinite_loops_end(run: Run, code: str) -> None:
    outcome = run(code, cpu_seconds=1, wall_seconds=2)
    assert not outcome.passed and outcome.timed_out
    assert "time" in outcome.reason


@as_each_user
def test_a_fork_bomb_is_held_and_ended(run: Run) -> None:
    mark = secrets.token_hex(8)
    bomb = f"import os\nos.execv({{0}}, [{{0}}, '-S', '-c', {{1!r}}, {mark!r}])".format(
        "__import__('sys').executable", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    )
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(len(running_with(mark)))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = run(bomb, wall_seconds=2, cpu_seconds=1, processes=6)
    over.set()
    watcher.join()
    assert not outcome.passed
    assert 2 <= max(seen) <= 6
    assert running_with(mark) == []


@as_each_user
def test_threads_are_limited_as_well(run: Run) -> None:
    code = """
import threading
hold, count = threading.Event(), 0
try:
    while True:
        threading.Thread(target=hold.wait, daemon=True).start()
        count += 1
except RuntimeError:
    print(count)
"""
    outcome = run(code, processes=6)
    assert outcome.passed, outcome.reason
    assert 1 <= int(outcome.stdout) < 6


@as_each_user
def test_a_memory_bomb_in_one_process(run: Run) -> None:
    outcome = run("held = []\nwhile True: held.append(bytearray(1 << 20))", memory_bytes=100 << 20)
    assert not outcome.passed and not outcome.timed_out
    assert outcome.reason.startswith("raised MemoryError") or "memory" in outcome.reason


@as_each_user
def test_a_memory_bomb_in_many_processes(run: Run) -> None:
    """Each stays below the limit of a process; together they are above it."""
    code = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        held = bytearray(60 << 20)
        for at in range(0, len(held), 4096):
            held[at] = 1
        time.sleep(100)
time.sleep(100)
"""
    outcome = run(code, memory_bytes=150 << 20, wall_seconds=20)
    assert not outcome.passed and not outcome.timed_out
    assert "memory" in outcome.reason


@as_each_user
def test_memory_that_no_process_counts_is_refused(run: Run) -> None:
    code = (
        REFUSED
        + """
import ctypes, os, mmap
refused(os.memfd_create, "x")
libc = ctypes.CDLL(None, use_errno=True)
for name, values in {"shmget": (0, 4096, 0o1600), "msgget": (0, 0o1600), "semget": (0, 1, 0o1600)}.items():
    assert libc[name](*values) == -1 and ctypes.get_errno() == 1
assert not os.path.exists("/dev/shm")
refused(mmap.mmap, -1, 1 << 30)  # shared memory is address space
import socket
refused(socket.socket, socket.AF_UNIX)  # what is sent to one that nobody reads stays when its sender has closed
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    refused(socket.socketpair, socket.AF_UNIX, kind)
refused(socket.socketpair()[0].setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
"""
    )
    outcome = run(code)
    assert outcome.passed, outcome.reason


@as_each_user
def test_a_memory_bomb_behind_an_ended_first_thread(run: Run) -> None:
    """The process then shows no memory of its own; only its other threads do."""
    code = """
import ctypes, os, threading, time
def fill():
    while "Z" not in open(f"/proc/{os.getpid()}/stat").read():  # not before the first thread has ended
        time.sleep(0.02)
    held = bytearray(60 << 20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    time.sleep(100)
for _ in range(3):
    if os.fork() == 0:
        threading.Thread(target=fill).start()
        ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)  # exit, of this thread alone
time.sleep(100)
"""
    outcome = run(code, memory_bytes=150 << 20, wall_seconds=20)
    assert not outcome.passed and not outcome.timed_out
    assert "memory" in outcome.reason


@as_each_user
def test_files_are_limited_in_size_and_number(run: Run) -> None:
    code = """
import os
written = 0
try:
    with open("large", "wb", buffering=0) as file:
        while True:
            written += file.write(bytes(1 << 16))
except OSError:
    pass
assert written == 1 << 20, written
total = written
try:
    for number in range(100):
        with open(f"piece{number}", "wb", buffering=0) as file:
            for _ in range(16):
                total += file.write(bytes(1 << 16))
except OSError:
    pass
assert total <= 4 << 20, total
for name in os.listdir("."):
    os.unlink(name)
number = 0
try:
    while True:
        open(f"file{number}", "w").close()
        number += 1
except OSError:
    pass
assert 10 < number <= 50, number
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
assert len(held) < 20
"""
    outcome = run(code, file_bytes=1 << 20, folder_bytes=4 << 20, files=50, open_files=20)
    assert outcome.passed, outcome.reason


@as_each_user
def test_nothing_is_left_running(run: Run) -> None:
    mark = secrets.token_hex(8)
    code = f"""
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)", {mark!r}], start_new_session=True)
    os._exit(0)
os.wait()
time.sleep(1)
"""
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.extend(running_with(mark))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = run(code)
    over.set()
    watcher.join()
    assert outcome.passed, outcome.reason
    assert seen  # it was running
    assert running_with(mark) == []


@as_each_user
@pytest.mark.parametrize("target", ["1", "2", "3"], ids=["output", "error", "result"])
def test_a_flood_of_output_ends_the_run(run: Run, target: str) -> None:
    outcome = run(f"import os\nwhile True: os.write({target}, b'x' * 65536)", cpu_seconds=20, wall_seconds=20)
    assert not outcome.passed and not outcome.timed_out
    assert "wrote more than" in outcome.reason
    assert len(outcome.stdout) <= 2000 and len(outcome.stderr) <= 2000


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os, sys; os.execv(sys.executable, [sys.executable, '-S', '-c', 'pass'])",
        "import os\nif os.fork(): os._exit(0)",
        "import os; os.close(3)",
        "import os; os.write(3, b'passed\\n')",
        "import os; os.write(3, b'0' * 32); os._exit(0)",
        "import builtins; builtins.exec = builtins.compile = lambda *a, **k: None",
        "import os; os._exit = os.write = lambda *a: None",
        "import builtins; builtins.AssertionError = builtins.BaseException = int",
        "import sys; sys.stdout = sys.stderr = None; sys.modules.clear()",
        "def check(): pass",
        "x = '''",
        "x = (",
        "if False: \\",
    ],
)
def test_what_does_not_come_through_its_tests_has_not_passed(code: str) -> None:
    outcome = own_run(code, "def check():\n    '''It is.'''\n    assert False\ncheck()\n")
    assert not outcome.passed
    assert outcome.reason


def test_it_has_no_input_and_no_name_of_a_script() -> None:
    outcome = own_run("try:\n    input()\nexcept EOFError:\n    print(__name__)\nif __name__ == '__main__': 1 / 0")
    assert outcome.passed and outcome.stdout == "program\n", outcome.reason


def test_event_loops_and_pipes_work_without_sockets() -> None:
    code = "import asyncio, multiprocessing\nasyncio.run(asyncio.sleep(0))\na, b = multiprocessing.Pipe()\na.send(1)"
    outcome = own_run(code, "assert b.recv() == 1")
    assert outcome.passed, outcome.reason


def test_a_reason_is_one_printable_line() -> None:
    assert own_run("raise ValueError('\\x1b]0;title\\x07\\nnext')").reason == "raised ValueError: ?]0;title? next"


def test_outcomes_repeat_themselves() -> None:
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}), hash('x'))"
    assert own_run(code) == own_run(code)
