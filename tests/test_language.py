"""The field's English: phrases that pages do not use, and what to write instead (the glossary of CONTRIBUTING.md)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BANNED = {
    r"behind (?:a|the|its) context": "after a context",
    r"anew": "again; recompute, resample, recreate",
    r"broken off": "interrupted",
    r"so many (?:bytes|passes|minutes|nats|items)": "maximum number of ...; up to N ...",
    r"as it may be": "possibly",
    r"bytes a patch": "bytes per patch",
    r"(?:parameters?) in products": "non-embedding parameters",
    r"unit bytes": "bytes per unit",
    r"what stands behind|stands? behind the": "what follows; after",
    r"an? .{1,20} of one's own": "an own ..., a ... of your own",
    r"is at it": "is running",
    r"plan of then": "original plan",
    r"\bspec [0-9]": "the paper's section, or a section of docs/model.md",
    r"\bseams?\b": "extension point",
}
WRITTEN_BY_PROGRAMS = ("docs/configuration.md", "docs/reference/command-line.md")
"""They follow the source, which is not held to the list yet."""
REPORTS = ("ablations.md", "efficiency.md", "entropy-quality.md", "scaling.md")
"""Their tables and captions are written by studies."""
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def prose(text: str, *, tables: bool = True) -> str:
    """A page without code, outputs and link targets; without tables and pictures if asked."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    # The glossary quotes what it replaces.
    text = text.partition("\n## Glossary\n")[0] + text.partition("\n## Glossary\n")[2].partition("\n## ")[2]
    return text if tables else "\n".join(line for line in text.splitlines() if not line.startswith(("|", "!")))


def hits(text: str) -> list[str]:
    """Banned phrases of a text, each with what to write."""
    flat = " ".join(text.split())
    return [
        f"{match[0]!r}: write {remedy}"
        for phrase, remedy in BANNED.items()
        for match in re.finditer(rf"\b{phrase}\b" if phrase[0] != "\\" else phrase, flat, flags=re.IGNORECASE)
    ]


def test_banned_phrases_are_recognised() -> None:
    assert len(hits("Behind a\ncontext of 5 bytes a patch it is drawn anew (spec 3.7).")) == 4
    assert not hits(prose("`anew`\n\n```text\nbroken off\n```\n[a](anew.md)"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_is_written_in_the_fields_english(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in WRITTEN_BY_PROGRAMS:
        pytest.skip("written from the source")
    phrases = hits(prose(path.read_text(encoding="utf-8"), tables=path.name not in REPORTS))
    assert not phrases, phrases
