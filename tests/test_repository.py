"""Rules about the repository's files: no machine's paths, docstrings in front, readable sizes, pins."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from bltkit.patches import Patches

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES = 400
MAX_EMBEDDED_BYTES = 25_000_000
RECURRING = {
    "__init__.py": "every package has one",
    "config.py": "the configs of a package, beside bltkit/config.py, which reads all of them",
    "study.py": "the verb, and the contract of a study",
    "driver.py": "the loop around a study, and the one around a program in the sandbox",
    "store.py": "rows of a study, and text on disk",
    "plots.py": "figures of studies, and those of evaluations",
}
"""File names that may occur several times, and why; at most ten."""
VAGUE_NAMES = re.compile(r"(utils?|common|helpers?|misc|base_.*)\.py")
# An absolute path below a home or work directory, but neither a URL's tail nor a longer path's middle.
MACHINE_PATH = re.compile(rb"(?<![\w.:/~$}-])/(?:work|root|home|Users)/\w")


def repository_files() -> list[Path]:
    """Every file that is, or would be, under version control; all but generated ones where git is missing."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        files = [path for path in ROOT.rglob("*") if not {".venv", "__pycache__"} & set(path.parts)]
    else:
        files = [ROOT / name for name in listed.split("\0") if name]
    return sorted(path for path in files if path.is_file())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_machine_paths_are_recognised() -> None:
    """The pattern of the next test finds what it is meant to find, and lets addresses alone."""
    for folder in ("work", "root", "home"):
        assert MACHINE_PATH.search(f'open("/{folder}/me/x")'.encode())
    for harmless in (b"https://example.org/home/x", b"runs/home/x", b"~/root/x", b"$HOME/root/x"):
        assert not MACHINE_PATH.search(harmless)


def test_no_file_names_a_machines_path() -> None:
    found = [name_of(path) for path in repository_files() if MACHINE_PATH.search(path.read_bytes())]
    assert not found, f"absolute paths of somebody's machine in: {', '.join(found)}"


def test_no_file_has_a_name_that_says_nothing() -> None:
    found = [name_of(path) for path in SOURCES if VAGUE_NAMES.fullmatch(path.name)]
    assert not found, f"name these after what they hold: {', '.join(found)}"


def recurring(names: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    """Names that stand in more than one file -> these files."""
    places: dict[str, set[str]] = {}
    for name, path in names:
        places.setdefault(name, set()).add(name_of(path))
    return {name: sorted(paths) for name, paths in places.items() if len(paths) > 1}


def test_names_that_recur_are_recognised() -> None:
    first, second = SOURCES[:2]
    assert recurring([("Plan", first), ("Plan", first), ("Row", second)]) == {}
    assert list(recurring([("Plan", first), ("Plan", second), ("Row", second)])) == ["Plan"]


def test_a_file_name_says_which_file_is_meant() -> None:
    """In a stack trace two files of the same name are one."""
    names = recurring((path.name, path) for path in SOURCES)
    assert names.keys() <= RECURRING.keys(), "name these after what they are of: " + str(
        {name: paths for name, paths in names.items() if name not in RECURRING}
    )
    assert len(RECURRING) <= 10 and RECURRING.keys() <= names.keys(), "the list of exceptions holds more than it has to"


def test_a_class_name_is_defined_in_one_file() -> None:
    names = recurring(
        (node.name, path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not names, f"name these after what they are of, such as ScalingPlan: {names}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_source_file_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a file starts with a docstring: what it is, where it sits"
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split by what the parts are for (at most {MAX_LINES})"


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {canonical(name) for name in re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)}
    missing = {canonical(requirement) for requirement in wanted} - pinned
    assert not missing, f"constraints.txt lacks {sorted(missing)}"
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "pins only, no addresses"


def canonical(requirement: str) -> str:
    """A requirement's package name as PEP 503 spells it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_embedded_models_stay_small() -> None:
    size = sum(path.stat().st_size for path in (ROOT / "src/bltkit/embedded").rglob("*") if path.is_file())
    assert size <= MAX_EMBEDDED_BYTES, f"embedded models take {size / 1e6:.1f} MB of every installation"


def test_shapes_are_checked_under_pytest() -> None:
    """The import hook of conftest.py is at work: a tensor without a batch axis is refused."""
    with pytest.raises(TypeCheckError):
        Patches(torch.ones(3, dtype=torch.bool), torch.tensor([2]), 2)
