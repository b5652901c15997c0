"""Report of a study: sections and figures to table.md, report.html, and pictures as PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bltkit.checkpoint import write_atomic
from bltkit.views.figures import Figure, write_figure
from bltkit.views.pages import Cell, PageTable, Picture, picture, render_page

if TYPE_CHECKING:
    import pandas as pd

TABLE, PAGE = "table.md", "report.html"
EXTRA = ("pandas", "scipy", "matplotlib", "tabulate")


@dataclass(frozen=True)
class ReportTable:
    """A table of ready cells (texts). texts: number of columns aligned left, in front of those of figures.

    values: frame of the same shape with the numbers that the page sorts rows by; then a click on a head sorts.
    """

    cells: "pd.DataFrame"
    texts: int = 1
    label: str = ""
    values: "pd.DataFrame | None" = None

    def to_markdown(self) -> str:
        """GitHub's Markdown."""
        cells = self.cells.map(lambda cell: str(cell).replace("|", "\\|").replace("\n", " "))
        align = ["left" if at < self.texts else "right" for at in range(len(cells.columns))]
        markdown: str = cells.to_markdown(index=False, disable_numparse=True, colalign=align)
        return markdown

    def to_page(self, label: str) -> PageTable:
        """Table of the page. label: name where the table has none."""
        heads = [str(name) for name in self.cells.columns]
        rows = self.cells.astype(str).to_numpy().tolist()
        if self.values is not None:
            numbers = self.values.astype(object).where(self.values.notna(), None).to_numpy().tolist()
            rows = [[Cell(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(rows, numbers, strict=True)]
        return PageTable(self.label or label, heads, rows, self.texts, self.values is not None)


@dataclass(frozen=True)
class Section:
    """A part of a report. Texts are plain; the page escapes them.

    figures: stems of `Study.figures`. details: where not empty, the page folds the tables under this line.
    """

    title: str = ""
    paragraphs: Sequence[str] = ()
    tables: "Sequence[ReportTable | pd.DataFrame]" = ()
    figures: Sequence[str] = ()
    details: str = ""

    def report_tables(self) -> list[ReportTable]:
        """The tables, those that are bare frames with their first column as text."""
        return [table if isinstance(table, ReportTable) else ReportTable(table) for table in self.tables]


@dataclass(frozen=True)
class StudyReport:
    """Files of a report, and its Markdown text."""

    text: str
    table: Path
    page: Path
    figures: tuple[Path, ...]


class Reported(Protocol):
    """The part of `Study` that a report reads."""

    what: ClassVar[str]
    title: ClassVar[str]

    def sections(self, frame: "pd.DataFrame") -> Sequence[Section]: ...
    def figures(self, frame: "pd.DataFrame") -> Mapping[str, Figure]: ...
    def facts(self, frame: "pd.DataFrame") -> Mapping[str, Any]: ...


def require_extra() -> None:
    """Raises ValueError that names the extra where a library of it is missing."""
    from importlib.util import find_spec

    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"studies need {', '.join(missing)}: pip install 'bltkit[study]'")


def write_report(study: Reported, frame: "pd.DataFrame", out: Path) -> StudyReport:
    """Write table.md, report.html and the figures into `out`. Raises ValueError for no rows."""
    if frame.empty:
        raise ValueError(f"there are no rows of `blt study {study.what}` to report; measure first, without --report")
    sections, figures = list(study.sections(frame)), study.figures(frame)
    report = StudyReport(
        to_markdown(study, sections),
        out / TABLE,
        out / PAGE,
        tuple(out / f"{stem}.{kind}" for stem in figures for kind in ("png", "svg")),
    )
    write_atomic(report.table, report.text.encode())
    for stem, figure in figures.items():
        for kind in ("png", "svg"):
            write_figure(figure, out / f"{stem}.{kind}")
    # Last, since a page's picture has no ground of its own.
    write_atomic(report.page, to_html(study, sections, figures, study.facts(frame)).encode())
    return report


def to_markdown(study: Reported, sections: Sequence[Section]) -> str:
    """The report as Markdown, without figures."""
    return "\n\n".join(_blocks(study, sections)) + "\n"


def to_html(
    study: Reported, sections: Sequence[Section], figures: Mapping[str, Figure], facts: Mapping[str, Any]
) -> str:
    """The report as a page that loads nothing. Figures that no section names stand in the last one."""
    heading = study.title or study.what
    pictures = {stem: _picture(figure, stem) for stem, figure in figures.items()}
    placed = {stem for section in sections for stem in section.figures}
    parts = [
        {
            "section": section,
            "pictures": [pictures[stem] for stem in section.figures],
            "tables": [table.to_page(section.title or heading) for table in section.report_tables()],
        }
        for section in sections
    ]
    rest = [shown for stem, shown in pictures.items() if stem not in placed]
    facts = {name: str(value) for name, value in facts.items()}
    return render_page("study/report.html.j2", heading, parts=parts, rest=rest, facts=facts)


def _blocks(study: Reported, sections: Sequence[Section]) -> Iterator[str]:
    yield f"# {study.title or study.what}"
    for section in sections:
        if section.title:
            yield f"## {section.title}"
        yield from section.paragraphs
        yield from (table.to_markdown() for table in section.report_tables())


def _picture(figure: Figure, stem: str) -> Picture | None:
    return picture(lambda: figure, str(figure.get_label() or stem))


def number(value: float | None, digits: int) -> str:
    """Cell of a number; a dash for None and NaN."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Cell of a share, in percent."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f} %"


def with_interval(value: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """Cell of a number with its interval; rows of version 0.1.0 have intervals without width, which say nothing."""
    cell = number(value, digits)
    return (
        cell
        if interval is None or interval[0] == interval[1]
        else f"{cell} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    )
