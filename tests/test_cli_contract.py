"""What every verb of `blt` keeps to. Verbs are found in the typer app: a new one is tested without being named here."""

import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import bltkit
from bltkit import cli
from bltkit.compute import most_threads


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below `command` that does something, with the words that call it."""
    for name in command.list_commands(None):
        below = command.get_command(None, name)
        if hasattr(below, "list_commands"):
            yield from walk(below, (*path, name))
        else:
            yield (*path, name), below


VERBS = dict(walk(typer.main.get_command(cli.app)))
OPTIONS = [(path, param) for path, command in VERBS.items() for param in command.params if param.opts[0][0] == "-"]
PLANNED_DEVICE = ("flops",)
"""Its --device is that of a planned run: nothing is computed on it."""
CONFIGURED = ("train",)
"""Its default is in the config: trainer.device."""


def having(*names: str) -> Any:
    """Parameters of a test: verb and option, of the options that have one of these names."""
    return [pytest.param(path, param, id=" ".join(path)) for path, param in OPTIONS if set(names) & set(param.opts)]


each_verb = pytest.mark.parametrize("verb", [pytest.param(path, id=" ".join(path)) for path in VERBS])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a mistake is answered with."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("blt: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_verbs_are_found() -> None:
    assert {("patch",), ("generate",), ("models",), ("study", "efficiency")} <= VERBS.keys()


OF_THE_TERMINAL = {"as_json", "threads"}
"""Of `blt eval`: how the result is printed, and a setting of the process that Python's users give to torch."""
OF_A_CALLER = {"progress", "say", "command"}
"""Parameters that a verb fills in by itself."""


@pytest.mark.parametrize(
    ("verb", "function", "of_the_terminal"),
    [
        ("eval", bltkit.evaluate, OF_THE_TERMINAL),
        ("train", bltkit.train, {"as_json", "keys", "schema"}),
    ],
)
def test_a_verb_has_the_options_of_the_function_that_it_calls(
    verb: str, function: Any, of_the_terminal: set[str]
) -> None:
    if not inspect.isfunction(function):
        function = function.train  # the package of this name is callable
    options = {param.name for param in VERBS[(verb,)].params} - {"help"}
    assert of_the_terminal < options
    assert options - of_the_terminal == set(inspect.signature(function).parameters) - OF_A_CALLER


@each_verb
def test_help_is_as_elsewhere(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb, "-h"]) == 0
    short = capsys.readouterr()
    assert cli.main([*verb, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown == short and shown.err == ""
    assert "--json" in shown.out
    assert not re.search(r"<(bool|str|int|float|path|list)\b", shown.out)


NO_WIDTHS = ("1", "-7", "nonsense", "", "²", "99999999999")


@pytest.mark.parametrize(
    "verb, columns", [*((verb, "0") for verb in VERBS), *((("models",), columns) for columns in NO_WIDTHS)]
)
def test_help_has_a_usual_width(
    verb: tuple[str, ...], columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*verb, "--help"]) == 0
    usual = capsys.readouterr().out
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, columns)
    assert cli.main([*verb, "--help"]) == 0
    assert capsys.readouterr().out == usual


@each_verb
def test_a_closed_stdout_is_a_mistake(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main([*verb, "--help"]) == 2
    assert capsys.readouterr().err == "blt: standard output is closed; redirect it to a file or to /dev/null\n"


@each_verb
def test_a_message_never_gets_into_the_results(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main([*verb, "--no-such-option"]) == 2
    assert sys.stderr is None and capsys.readouterr().out == ""


@each_verb
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_streams(
    verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([*verb, "--help"]) == 2
        assert capsys.readouterr().err == "blt: standard output cannot be written: No space left on device\n"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.undo()
        monkeypatch.setattr(sys, "stderr", full)
        assert cli.main([*verb, "--no-such-option"]) == 2
        with pytest.raises(OSError):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@each_verb
def test_an_unknown_option_is_told_with_the_nearest(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--json" in refused(capsys, *verb, "--jsn")


@pytest.mark.parametrize("verb, param", having("--threads", "--workers"))
@pytest.mark.parametrize("count", [0, -1, 100_000, 10_000_000_000, 10**30])
def test_a_number_of_threads_has_a_bound(
    verb: tuple[str, ...], param: Any, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    option = param.opts[0]
    line = refused(capsys, *verb, option, str(count))
    assert f"{option} = {count}: use 1 to {most_threads()} " in line


@pytest.mark.parametrize("verb, param", having("--device"))
def test_devices_have_one_default(verb: tuple[str, ...], param: Any) -> None:
    if verb[0] in CONFIGURED:
        assert param.default is None and "trainer.device" in param.help
    elif verb[0] == "study":  # its default is in the plan
        assert param.default is None and "cuda:N or mps" in param.help and "default: " in param.help
    elif verb[0] not in PLANNED_DEVICE:
        assert param.default == "auto" and "cuda:N or mps" in param.help


@pytest.mark.parametrize("verb, param", having("--task", "--tasks"))
def test_task_and_tasks_are_one(verb: tuple[str, ...], param: Any) -> None:
    assert {"--task", "--tasks"} <= set(param.opts)


@pytest.mark.parametrize("verb, param", having("--out"))
def test_out_says_what_it_is(verb: tuple[str, ...], param: Any) -> None:
    assert param.metavar in ("DIR", "FILE") and "-o" in param.opts


@pytest.mark.parametrize("verb", ["generate", "score", "patch", "calibrate", "check", "eval"])
@pytest.mark.parametrize("device, message", [("cuda", "use cpu"), ("cudo", "is no device"), ("meta", "use cpu")])
def test_a_device_that_is_not_there(
    verb: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    more = {
        "calibrate": ("--files", __file__, "--patch-bytes", "4"),
        "check": ("bltkit:tiny",),
        "eval": ("--tasks", "utf8"),
    }
    line = refused(capsys, verb, *more.get(verb, ("text",)), "--device", device)
    assert f"--device = '{device}'" in line and message in line


def test_usual_manners(capsys: pytest.CaptureFixture[str]) -> None:
    import bltkit

    for flag in ("--version", "-V"):
        assert cli.main([flag]) == 0
        assert capsys.readouterr().out == f"bltkit {bltkit.__version__}\n"
    assert "Did you mean 'generate'" in refused(capsys, "generat")
    assert "bltkit:tiny, bltkit:tiny-d" in refused(capsys, "score", "x", "-m", "bltkit:huge")
    assert cli.main(["models"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"bltkit:tiny", "bltkit:tiny-d"}


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_BLT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "blt generate --max")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0 and capsys.readouterr().out.split() == ["--max-bytes"]
