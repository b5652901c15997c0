"""The README is run: its commands, its Python, its links, its table of verbs.

Conventions it keeps: a line of a ```sh block that starts with `blt ` is a command and must succeed; one that
ends in `# slow` waits for the slow tests, and a slow `blt train` is cut to two steps. A ```text block right
behind a ```sh block with one command is that command's whole output on stdout. ```python blocks run in order,
as one program. Commands share a directory, so that a later one finds what an earlier one wrote.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n?(\s*)", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of the README; `output` is what it must print, if the README shows it."""

    line: str
    slow: bool
    output: str | None


def commands(text: str) -> list[Command]:
    """The `blt` commands of a Markdown text, in order."""
    found: list[Command] = []
    blocks = list(FENCE.finditer(text))
    for number, block in enumerate(blocks):
        if block[1] != "sh":
            continue
        lines = [line for line in block[2].replace("\\\n", " ").splitlines() if line.startswith("blt ")]
        follower = blocks[number + 1] if number + 1 < len(blocks) else None
        shown = follower is not None and follower[1] == "text" and follower.start() == block.end()
        for line in lines:
            output = follower[2] if follower is not None and shown and len(lines) == 1 else None
            found.append(Command(line.removesuffix("# slow").rstrip(), line.endswith("# slow"), output))
    return found


def python(text: str) -> str:
    """All Python blocks of a Markdown text as one program."""
    return "\n".join(block[2] for block in FENCE.finditer(text) if block[1] == "python")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a clone has and what the commands name besides."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("configs", "runs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("out"))
    shutil.copy(ROOT / "README.md", path)
    named = (path / "configs" / "mixture-entropy.toml").read_text(encoding="utf-8")
    (path / "prompts.jsonl").write_text('{"id": "a", "prompt": "def read("}\n', encoding="utf-8")
    (path / "texts").mkdir()
    for name in re.findall(r"texts/\w+\.jsonl", named):
        lines = (json.dumps({"text": f"{name} {number}\n" + README[number * 50 :][:1000]}) for number in range(60))
        (path / name).write_text("\n".join(lines), encoding="utf-8")
    return path


def run(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell line with this environment's `blt` in front."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        line,
        shell=True,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",  # a model of two steps writes any bytes
    )


def test_the_reader_of_commands_reads_them() -> None:
    text = "```sh\nblt a \\\n  b\nmake x\n```\n\n```sh\nblt c\n```\n\n```text\nout\n```\n"
    text += "```sh\nblt d  # slow\n```\n"
    assert [(c.line.split(), c.slow, c.output) for c in commands(text)] == [
        (["blt", "a", "b"], False, None),
        (["blt", "c"], False, "out\n"),
        (["blt", "d"], True, None),
    ]


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[pytest.mark.slow] if c.slow else [], id=c.line[:60]) for c in commands(README)],
)
def test_command(command: Command, directory: Path) -> None:
    line = command.line
    if command.slow and line.startswith("blt train "):
        line += " trainer.max_steps=2"
    result = run(line, directory)
    assert result.returncode == 0, f"{line}\n{result.stderr}"
    if command.output is not None:
        assert result.stdout.rstrip() == command.output.rstrip()


def test_python(directory: Path) -> None:
    program = python(README)
    assert "import bltkit" in program
    result = run(f"{shlex.quote(sys.executable)} -W error::SyntaxWarning -c {shlex.quote(program)}", directory)
    assert result.returncode == 0, result.stderr


def test_links_within_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", README)
    local = [link for link in links if "://" not in link]
    assert local
    missing = [link for link in local if not (ROOT / link).exists()]
    assert not missing, f"README links to what is not there: {missing}"


def test_every_verb_of_the_table_exists(directory: Path) -> None:
    verbs = re.findall(r"^\| `blt (\w+)", README, flags=re.MULTILINE)
    assert verbs, "the README's table of verbs is gone"
    known = run("blt --help", directory).stdout
    unknown = [verb for verb in verbs if not re.search(rf"\b{verb}\b", known)]
    assert not unknown, f"the README promises verbs that `blt --help` does not list: {unknown}"


SUFFIXES = (".py", ".cpp", ".hpp", ".j2", ".css", ".js")
OTHER_FOLDERS = ("native/kernels/",)
"""Folders of the tree that are no packages."""


def tree_files(text: str) -> list[str]:
    """The files of docs/tree.md below src/bltkit, a package as its __init__.py."""
    block = re.search(r"<!-- tree: begin.*?```text\n(.*?)```.*?<!-- tree: end -->", text, flags=re.DOTALL)
    assert block is not None, "the tree is gone"
    files, folders = [], [""]
    for line in block[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        path = "" if depth == 0 else folders[depth - 1] + name
        del folders[depth:]
        folders.append(path)
        files.append(f"{path}__init__.py" if name.endswith("/") else path)
    without_code = [f"{folder}__init__.py" for folder in OTHER_FOLDERS]
    return [file for file in files if file not in without_code]


def test_the_tree_names_every_file_once() -> None:
    listed = tree_files(TREE)
    package = ROOT / "src" / "bltkit"
    there = [path.relative_to(package).as_posix() for suffix in SUFFIXES for path in package.rglob(f"*{suffix}")]
    assert sorted(listed) == sorted(there), set(listed) ^ set(there)


def test_every_line_of_the_tree_says_what_the_file_is() -> None:
    inside = TREE.partition("<!-- tree: begin")[2].partition("<!-- tree: end")[0]
    lines = inside.partition("```text\n")[2].partition("```")[0].splitlines()[1:]
    short = [line for line in lines if len(line.split()) < 2 or len(line) > 110]
    assert not short, short
