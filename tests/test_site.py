"""The documentation site: its pages, commands and docstrings; slow tests build it and run the tutorials."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import bltkit
from scripts.command_line import PAGE as COMMAND_LINE
from scripts.docstring_lists import with_lists
from tests.test_readme import commands, python, run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
TUTORIALS = ("start.md", *(f"tutorials/{path.name}" for path in sorted((DOCS / "tutorials").glob("*.md"))))


def navigation() -> list[str]:
    """The pages that the navigation names."""
    return re.findall(r"^ +- [^\n]*?: ([\w/.-]+\.md)$", CONFIG.partition("\nnav:")[2], flags=re.MULTILINE)


def test_the_navigation_names_every_page_once() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(navigation()) == sorted(pages)


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in bltkit.__all__ if f"\n::: bltkit.{name}\n" not in page]
    assert not missing, f"docs/reference/python.md lacks {missing}"
    without = [name for name in bltkit.__all__ if not inspect.getdoc(getattr(bltkit, name))]
    assert not without, f"without a docstring: {without}"


def test_the_page_of_the_command_line_is_current() -> None:
    result = subprocess.run([sys.executable, "-m", "scripts.command_line", "--check"], cwd=ROOT, check=False)
    assert result.returncode == 0, f"write {COMMAND_LINE.name} again: python -m scripts.command_line"


def test_arguments_of_docstrings_become_lists() -> None:
    text = (
        "Load.\n\ndtype: of weights,\n    in memory. device: where.\nseed: 0.\nRaises ValueError: never.\n\nMore: so."
    )
    assert with_lists(text).splitlines() == [
        "Load.",
        "",
        "- **dtype**: of weights, in memory.",
        "- **device**: where.",
        "- **seed**: 0.",
        "",
        "Raises ValueError: never.",
        "",
        "- **More**: so.",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly from a copy of the sources."""
    pytest.importorskip("zensical")
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "src", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return copy / "site"


class Page(HTMLParser):
    """Anchors of a page, links out of it, and addresses that a browser fetches to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        values = dict(attributes)
        self.anchors.add(values.get("id") or "")
        if tag == "a":
            self.links.add(values.get("href") or "")
        elif tag != "link" or values.get("rel") != "canonical":
            self.fetched.update(values.get(key) or "" for key in ("src", "href", "srcset"))


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        yield path, Page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    outside = {address for _, page in pages(site) for address in page.fetched if urlsplit(address).netloc}
    assert not outside
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)]*", styles)


@pytest.mark.slow
def test_links_between_pages_lead_somewhere(site: Path) -> None:
    parsed = {path.resolve(): page for path, page in pages(site)}
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if path.name == "404.html" or parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = parsed[target].anchors if target in parsed else None
            if not target.exists() or (parts.fragment and anchors is not None and parts.fragment not in anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


@pytest.mark.slow
def test_the_reference_renders_every_public_name(site: Path) -> None:
    page = Page((site / "reference" / "python.html").read_text(encoding="utf-8"))
    assert {f"bltkit.{name}" for name in bltkit.__all__} <= page.anchors


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the tutorials name of a clone."""
    path = tmp_path_factory.mktemp("tutorials")
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, path / name)
    shutil.copy(ROOT / "README.md", path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(name: str, directory: Path) -> None:
    """Its `blt` and `python` lines in order, trainings cut to two steps, then its Python as one program."""
    text = (DOCS / name).read_text(encoding="utf-8")
    lines = [command.line for command in commands(re.sub(r"^python ", "blt python ", text, flags=re.MULTILINE))]
    for line in lines:
        if line.startswith("blt train "):
            shutil.rmtree(directory / line.rpartition("--out ")[2].split()[0], ignore_errors=True)
            line += " trainer.max_steps=2 optim.warmup_steps=1"
        line = re.sub("^blt python", shlex.quote(sys.executable), line)
        if "texts-dir/text" in line:
            (directory / "texts-dir" / "text").mkdir(parents=True, exist_ok=True)
        result = run(line, directory)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    program = python(text)
    if program:
        result = run(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}", directory)
        assert result.returncode == 0, result.stderr
