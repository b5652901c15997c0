"""A harmless program that looks from inside whether the sandbox's protection is in force: each sandbox's first run."""

import os
import signal


def look(processes: int) -> None:
    """Raises AssertionError that names what is missing. processes: how many the limit allows."""
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0, "capabilities"
    assert status["NoNewPrivs"].strip() == "1", "new privileges are possible"
    assert status["Seccomp"].strip() == "2", "system calls are not filtered"
    assert os.getuid() == os.geteuid() == 1000, "the user"
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
    assert not others, "processes of the system are visible"
    with open("/proc/self/net/dev", encoding="ascii") as file:
        interfaces = [line.split(":")[0].strip() for line in file if ":" in line]
    assert set(interfaces) <= {"lo"}, f"network interfaces: {interfaces}"
    assert not os.path.lexists("/old") and not os.path.lexists("/etc/passwd"), "the system's files are visible"
    try:
        os.close(os.open("/written", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pass
    else:
        raise AssertionError("the root of the file system is writable")
    with open("written", "w", encoding="ascii"):
        pass
    assert os.listdir(".") == ["written"], "the work folder"
    _fork_to_the_limit(processes)


def _fork_to_the_limit(processes: int) -> None:
    children: list[int] = []
    try:
        while len(children) < processes:
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
        raise AssertionError("the number of processes is not limited")
    except BlockingIOError:
        pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
