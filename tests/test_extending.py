"""CONTRIBUTING's promise, kept: a plug-in of every seam is one file and one line.

The worked examples are read out of CONTRIBUTING.md. Each begins with a comment that names its file, and is followed by
a diff: the registry's file, a line that is there, and the line to add. The fast tests import them in this process; a
copy of the package with all eight is run as a user would, and under the contract tests.
"""

import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from bltkit.cli.study import STUDIES, study_command
from bltkit.config import parse
from bltkit.data.sources import SOURCES
from bltkit.eval.noise import NOISES
from bltkit.eval.tasks import TASKS
from bltkit.generate import STRATEGIES
from bltkit.patching import RULES
from bltkit.registry import Registry, resolve
from bltkit.train.objectives import OBJECTIVES
from bltkit.train.schedules import SCHEDULES
from tests.test_readme import FENCE

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
REGISTRIES: dict[str, Registry[Any]] = {
    "vowel": RULES,
    "csv": SOURCES,
    "label-smoothing": OBJECTIVES,
    "inverse-sqrt": SCHEDULES,
    "repeat-last": STRATEGIES,
    "palindrome": TASKS,
    "leet": NOISES,
}
"""By the kind of the worked example."""
CONTRACTS = {
    "vowel": ["test_patching.py"],
    "csv": ["test_sources.py"],
    "label-smoothing": ["test_objectives.py"],
    "inverse-sqrt": ["test_schedule.py"],
    "repeat-last": ["test_strategies.py", "test_ledger.py", "test_flops_decoding.py"],
    "palindrome": ["test_eval_tasks.py", "test_runner.py"],
    "leet": ["test_noise.py"],
    "hello": ["test_studies.py"],
}
"""The test files that enrol it."""
FIELDS: dict[str, dict[str, Any]] = {"csv": {"paths": ["a.csv"]}, "leet": {"intensity": 0.5}}
"""Those without a default."""


@dataclass(frozen=True)
class Example:
    """A worked example: its file, and the line `added` that follows the line `after` in `registry`."""

    path: str
    text: str
    registry: str
    after: str
    added: str

    @property
    def target(self) -> str:
        """`module:attribute` of the added line."""
        match = re.search(r'"(bltkit[\w.]+:\w+)",$', self.added)
        assert match is not None, self.added
        return match[1]

    def add_to(self, root: Path) -> None:
        """Do what CONTRIBUTING says, in a copy of the repository."""
        path, registry = root / self.path, root / self.registry
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.text, encoding="utf-8")
        before = registry.read_text(encoding="utf-8")
        assert before.count(f"{self.after}\n") == 1, f"{self.registry} has no line {self.after!r}, or several"
        registry.write_text(before.replace(f"{self.after}\n", f"{self.after}\n{self.added}\n"), encoding="utf-8")


def examples() -> list[Example]:
    """All of CONTRIBUTING, in order."""
    blocks = list(FENCE.finditer(CONTRIBUTING))
    found = []
    for block, follower in itertools.pairwise(blocks):
        if block[1] == "python":
            assert follower[1] == "diff" and follower.start() == block.end(), "a file is followed by its line"
            path, _, text = block[2].partition("\n")
            registry, after, added = follower[2].splitlines()
            assert after[0] == " " and added[0] == "+"
            found.append(Example(path[2:], text, registry.removeprefix("--- "), after[1:], added[1:]))
    return found


EXAMPLES = dict(zip((*REGISTRIES, "hello"), examples(), strict=True))
each = pytest.mark.parametrize("kind", list(EXAMPLES))


@each
def test_an_example_is_short_and_its_line_has_a_place(kind: str) -> None:
    example = EXAMPLES[kind]
    assert len(example.text.splitlines()) < 30
    assert not (ROOT / example.path).exists(), "choose an example that the package does not have"
    assert (ROOT / example.registry).read_text(encoding="utf-8").count(f"{example.after}\n") == 1


@pytest.fixture
def imported(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's class, from a folder that its package takes for its own."""
    kind: str = request.getfixturevalue("kind")
    example = EXAMPLES[kind]
    path = tmp_path / Path(example.path).relative_to("src/bltkit")
    path.parent.mkdir(parents=True)
    path.write_text(example.text, encoding="utf-8")
    module = example.target.partition(":")[0]
    parent = importlib.import_module(module.rpartition(".")[0])
    folder = path.parent if path.name != "__init__.py" else path.parent.parent
    monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(folder)])
    yield resolve(example.target)
    sys.modules.pop(module)
    delattr(parent, module.rpartition(".")[2])


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_the_line_makes_it_a_value_and_a_name(kind: str, imported: Any) -> None:
    registry = REGISTRIES[kind]
    grown = registry.with_kind(EXAMPLES[kind].target)
    assert list(grown) == [*registry, kind] and grown[kind] is imported
    assert f"\n{kind}\n" in grown.listing()
    annotation = Annotated[registry.base, grown]  # type: ignore[name-defined]
    fields = {"kind": kind} | FIELDS.get(kind, {})
    value = parse(annotation, fields, "config")
    assert type(value) is imported and parse(annotation, value.model_dump(mode="json"), "config") == value
    with pytest.raises(ValueError, match=f"did you mean '{kind}'"):
        parse(annotation, fields | {"kind": f"{kind}x"}, "config")
    with pytest.raises(ValueError, match=r"unknown key '.*zzz'"):
        parse(annotation, fields | {"zzz": 1}, "config")


@pytest.mark.parametrize("kind", ["hello"])
def test_the_line_makes_a_study_a_command(kind: str, imported: Any) -> None:
    assert kind not in STUDIES
    command = study_command(kind, EXAMPLES[kind].target)
    assert command.name == kind and imported.__doc__.strip() in command.help
    assert {"plan", "set_", "out", "dry_run", "report", "as_json"} <= {option.name for option in command.params}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bltkit.patching.none:None", "there is no module 'bltkit.patching.none'"),
        ("bltkit.patching.space", "is not 'module:attribute', such as"),
        ("bltkit.patching.space:SpaceRul", "defines no 'SpaceRul'; did you mean 'SpaceRule'?"),
        ("bltkit.patching.space:SpaceRule", "the kind 'space' is taken; choose another name"),
        ("bltkit.patching.space:OFFSET", "is no subclass of PatchingRule"),
        ("bltkit.patching.rule:PatchingRule", "does not implement opens"),
        ("tests.test_extending:Nameless", 'has no name; add the field kind: Literal["..."] = "..."'),
    ],
)
def test_a_line_that_does_not_fit_says_why(target: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        list(RULES.with_kind(target))
    assert message in str(error.value) and "\n" not in str(error.value)


class Nameless(RULES["byte"]):  # type: ignore[misc]
    kind: str


def test_registries_do_not_grow_behind_their_users_back() -> None:
    for registry in REGISTRIES.values():
        assert len(registry) == len(registry.targets) == len(set(registry.targets))
        with pytest.raises(TypeError):
            registry["mine"] = object  # type: ignore[index]


# A copy of the package with all eight.


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    package = ROOT / "src" / "bltkit"
    embedded = shutil.ignore_patterns("embedded")
    shutil.copytree(package, root / "src" / "bltkit", ignore=embedded)
    (root / "src" / "bltkit" / "embedded").symlink_to(package / "embedded")
    for name in ("tests", "docs", "scripts", "configs"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    for example in EXAMPLES.values():
        example.add_to(root)
    return root


def run(copy: Path, *arguments: str) -> str:
    """A module run by Python in the copy; its output, where it succeeds."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


COMMANDS = """
[["patch", "--rule", "vowel", "banana", "--json"], "vowel"]
[["generate", "--strategy", "repeat-last", "--max-bytes", "6", "a----", "--json"], "bytes"]
[["eval", "--tasks", "list"], "palindrome"]
[["eval", "--tasks", "palindrome", "--noise", "leet:0.5", "--limit", "2"], "palindrome"]
[["train", "run.toml", "--out", "out", "patching.rule=vowel"], ""]
[["study", "hello", "--out", "hello"], "| space "]
"""
RUN = """
[model]
kind = "blt"
preset = "tiny"
[data]
sources = ["texts.csv"]
row_bytes = 64
batch_rows = 2
[objective]
kind = "label-smoothing"
[optim]
schedule = "inverse-sqrt"
[trainer]
max_steps = 2
"""
PROGRAM = """
import contextlib, io, json, sys, bltkit
from bltkit.cli import main
assert bltkit.__file__.startswith(sys.argv[1]), bltkit.__file__
for line in sys.argv[2].strip().splitlines():
    command, expected = json.loads(line)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0, command
    assert expected in printed.getvalue(), (command, printed.getvalue())
"""


def test_a_user_meets_all_eight(copy: Path) -> None:
    (copy / "run.toml").write_text(RUN, encoding="utf-8")
    rows = "".join(f"{number},a row of words that is number {number}\n" for number in range(40))
    (copy / "texts.csv").write_text("id,text\n" + rows, encoding="utf-8")
    run(copy, "-c", PROGRAM, str(copy), COMMANDS)


@pytest.mark.slow
@each
def test_the_contract_tests_hold(kind: str, copy: Path) -> None:
    files = [f"tests/{name}" for name in CONTRACTS[kind]]
    name = EXAMPLES[kind].target.rpartition(":")[2]
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        f"{kind} or {name}",
        "-o",
        "addopts=-ra -m 'not gpu and not network'",
    ]
    printed = run(copy, "-m", "pytest", *options, *files)
    assert re.search(r"^[1-9]\d* passed", printed.splitlines()[-1]), printed


@pytest.mark.slow
def test_the_reference_of_keys_has_them(copy: Path) -> None:
    run(copy, "scripts/configuration.py")
    page = (copy / "docs" / "configuration.md").read_text(encoding="utf-8")
    kinds = ("vowel", "csv", "label-smoothing", "inverse-sqrt")
    assert [kind for kind in kinds if f'kind = "{kind}"`' not in page] == []
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_configuration.py")


@pytest.mark.slow
def test_style_types_and_layers_hold(copy: Path) -> None:
    paths = [example.path for example in EXAMPLES.values()]
    run(copy, "-m", "ruff", "check", *paths)
    run(copy, "-m", "ruff", "format", "--check", *paths)
    run(copy, "-m", "mypy")
    run(copy, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())")
