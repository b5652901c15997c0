"""Contract of a study: a plan, units that are measured once, a report from rows; and the table of all studies."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from filelock import FileLock
from pydantic import Field

from bltkit.cli import main
from bltkit.cli.study import STUDIES, field_options
from bltkit.config import dump_toml, parse
from bltkit.files.lock import writer_lock
from bltkit.registry import resolve
from bltkit.study.driver import measured_units, rows_of, run_study
from bltkit.study.report import Section, write_report
from bltkit.study.store import ROWS, ResultStore
from bltkit.study.study import Row, Study, StudyRun, Unit

if TYPE_CHECKING:
    import pandas as pd

STAMP = {"commit": "c0", "machine": {"cpu": "here"}, "threads": 1, "command": "blt study <x>"}


class Lengths(Study):
    """Lengths of words.

    More about it.
    """

    what: ClassVar[str] = "lengths"

    words: tuple[str, ...] = Field(
        default=("a", "bb", "ccc"), description="Words.", json_schema_extra={"option": "--word", "aliases": ["--words"]}
    )
    factor: float = Field(default=1.0, description="Factor of every length.")
    locked: bool = Field(default=False, description="Give each word a lock.")

    def units(self) -> Sequence[Unit]:
        return [Unit(word, lock=f"locks/{word}" if self.locked else "") for word in self.words]

    def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
        yield {"unit": 1} if unit.name == "clash" else {"length": len(unit.name) * self.factor}

    def sections(self, frame: "pd.DataFrame") -> Sequence[Section]:
        return [Section("Words", ("They have <lengths>.",), (frame[["unit", "length"]],))]


CONTRACT: dict[str, type[Study]] = {
    name: study for name in STUDIES if isinstance(study := resolve(STUDIES[name]), type)
} | {"lengths": Lengths}
"""Every registered study, and one of this file."""
each = pytest.mark.parametrize("name", list(CONTRACT))


@pytest.fixture(autouse=True)
def _lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "lengths", "tests.test_studies:Lengths")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directory of a study's smoke plan, interrupted after the first row and resumed; measured once for this file."""
    places: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in places:
            out, study = tmp_path_factory.mktemp(name) / "out", CONTRACT[name].smoke()
            if len(study.units()) > 1:
                with pytest.raises(KeyboardInterrupt):
                    run_study(Interrupted.of(study), out, STAMP)
                kept = ResultStore(out, study.what).rows()
                assert kept, "the first row is lost"
                assert run_study(study, out, STAMP).rows()[: len(kept)] == kept
            else:
                run_study(study, out, STAMP)
            places[name] = out
        return places[name]

    return directory


class Interrupted:
    """A study that is interrupted where its second row would be stored."""

    @staticmethod
    def of(study: Study) -> Study:
        counted: list[Row] = []

        class Broken(type(study)):  # type: ignore[misc]
            def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
                for row in super().run(unit, run):
                    if counted:
                        raise KeyboardInterrupt
                    counted.append(row)
                    yield row

        return Broken.model_validate(study.model_dump())


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_is_there_and_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", name, "--help"]) == 0
    assert name in capsys.readouterr().out


def test_the_list_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES) and "Lengths of words." in listed


@each
def test_a_plan_is_a_value_that_is_read_back(name: str) -> None:
    study = CONTRACT[name].smoke()
    assert parse(type(study), study.model_dump(mode="json"), "plan") == study
    units = study.units()
    names = [unit.name for unit in units]
    assert units and len(set(names)) == len(units) and list(units) == list(study.units())
    with pytest.raises(ValueError, match="no_such_field"):
        parse(type(study), study.model_dump(mode="json") | {"no_such_field": 1}, "plan")


@each
def test_every_option_has_a_help_and_a_name_of_its_own(name: str) -> None:
    options = field_options(CONTRACT[name])
    flags = [flag for option in options for flag in option.flags]
    assert len(set(flags)) == len(flags)
    for option in options:
        assert option.help.strip(), f"{option.field} has no description"


@each
@pytest.mark.slow
def test_what_was_measured_stays_whatever_interrupts(name: str, measured: Any) -> None:
    study, out = CONTRACT[name].smoke(), measured(name)
    before = (out / ROWS).read_bytes()
    store = run_study(study, out, STAMP)
    assert (out / ROWS).read_bytes() == before, "a finished study measures again"
    rows = store.rows()
    assert all(row["commit"] == "c0" and row["what"].startswith(study.what) for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert measured_units(study, out, study.units()) == {unit.name for unit in study.units()}
    assert all(study.is_done(unit, rows_of(study, store, unit)) for unit in study.units())


@each
@pytest.mark.slow
def test_a_report_comes_from_rows_alone(name: str, measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = measured(name)
    assert main(["study", name, "--out", str(out), "--report"]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "table.md").read_text(encoding="utf-8") and printed.startswith("# ")
    assert main(["study", name, "--out", str(out), "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == ResultStore(out, CONTRACT[name].what).rows()
    assert all(Path(path).stat().st_size for path in (report["table"], report["page"], *report["figures"]))
    page = Path(report["page"]).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import""", page), "the page loads something"
    assert page.count("<img") == len(report["figures"]) / 2


@each
@pytest.mark.slow
def test_rows_of_other_settings_are_refused(name: str, measured: Any, tmp_path: Path) -> None:
    study = CONTRACT[name].smoke()
    unit = next((unit for unit in study.units() if unit.settings), None)
    rows = ResultStore(measured(name), study.what).rows()
    if unit is not None:
        key = next(iter(unit.settings))
        changed = [_with(row, key, "another") if study.unit_of(row) == unit.name else row for row in rows]
    elif "plan" in rows[0]:
        changed = [row | {"plan": row["plan"] | {next(iter(row["plan"])): "another"}} for row in rows]
    else:
        pytest.skip("this study compares settings that only its models know, in its own tests")
    store = ResultStore(tmp_path, study.what)
    for row in changed:
        store.add(row)
    with pytest.raises(ValueError, match=r"'another', and the plan says .*; use a new --out, or restore the original"):
        run_study(study, tmp_path, STAMP)


def _with(row: Row, key: str, value: Any) -> Row:
    head, _, rest = key.partition(".")
    return row | {head: _with(row[head], rest, value) if rest and key not in row else value}


@each
def test_a_dry_run_writes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, plan, out = CONTRACT[name].smoke(), tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(dump_toml(study.model_dump(mode="json")), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["study", name, "--plan", str(plan), "--out", str(out), "--dry-run"]) == 0
    from_file = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["study", name, "--plan", "smoke", "--out", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out == from_file
    if study.estimate(study.units()) is None:
        assert from_file.splitlines() == [unit.name for unit in study.units()]


@each
def test_one_process_writes_at_a_time(name: str, tmp_path: Path) -> None:
    study = CONTRACT[name].smoke()
    if all(unit.lock for unit in study.units()):
        pytest.skip("every unit has a lock of its own")
    with writer_lock(tmp_path), pytest.raises(ValueError, match="is in use by process"):
        run_study(study, tmp_path, STAMP)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["study", "lengths", "--out", str(tmp_path / "out")]
    assert main([*line, "--word", "x", "--words", "yy", "--factor", "2", "--json"]) == 0
    assert [(row["unit"], row["length"]) for row in json.loads(capsys.readouterr().out)["rows"]] == [
        ("x", 2),
        ("yy", 4),
    ]
    assert main([*line, "--set", 'words=["x", "yy", "zzz"]', "--set", "factor=2", "--dry-run"]) == 2
    assert "words = ['x', 'yy'], and the plan says ['x', 'yy', 'zzz']" in capsys.readouterr().err
    assert main([*line, "--set", 'words=["x", "yy"]', "--factor", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out == "x  (measured)\nyy  (measured)\n"
    assert main(["study", "lengths", "--help"]) == 0
    assert "Factor of every length; default: 1.0." in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_patterns_choose_units(tmp_path: Path) -> None:
    study = Lengths(words=("a:1", "a:2", "b:1"))
    assert [row["unit"] for row in run_study(study, tmp_path, STAMP, only=["*:2", "b"]).rows()] == ["a:2", "b:1"]
    with pytest.raises(ValueError, match=r"--only 'c' matches no unit of study 'lengths'; it has a:1, a:2, b:1"):
        run_study(study, tmp_path, STAMP, only=["c"])


def test_a_time_limit_ends_between_units(tmp_path: Path) -> None:
    said: list[str] = []
    clock = iter([0.0, 30.0, 61.0]).__next__
    store = run_study(Lengths(), tmp_path, STAMP, minutes=1, clock=clock, say=said.append)
    assert [row["unit"] for row in store.rows()] == ["a"]
    assert said == ["time limit reached; rerun the command to resume at bb"]
    assert [row["unit"] for row in run_study(Lengths(), tmp_path, STAMP).rows()] == ["a", "bb", "ccc"]


def test_units_with_locks_are_shared_among_processes(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / "bb.lock"):
        thread = threading.Thread(
            target=run_study, args=(Lengths(locked=True), tmp_path, STAMP), kwargs={"say": said.append}
        )
        thread.start()
        thread.join()
    store = ResultStore(tmp_path, "lengths")
    assert [row["unit"] for row in store.rows()] == ["a", "ccc"]
    assert said == ["bb: already running in another process; skipping"]
    # A row that another process adds is seen without a new store, and not measured again.
    other = ResultStore(tmp_path, "lengths")
    other.add(store.rows()[0] | {"unit": "bb"})
    assert [row["unit"] for row in store.rows()] == ["a", "ccc", "bb"]
    assert len(run_study(Lengths(locked=True), tmp_path, STAMP).rows()) == 3


def test_studies_share_a_directory(tmp_path: Path) -> None:
    class Others(Lengths):
        what: ClassVar[str] = "others"

    run_study(Lengths(), tmp_path, STAMP)
    assert len(run_study(Others(factor=2.0), tmp_path, STAMP).rows()) == 3
    assert len((tmp_path / ROWS).read_text().splitlines()) == 6
    said = r"study 'lengths' with factor = 1\.0, and the plan says 2\.0; use a new --out, or restore the original plan"
    with pytest.raises(ValueError, match=said):
        run_study(Lengths(factor=2.0), tmp_path, STAMP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "factr=2"], "study lengths: unknown key 'factr'; did you mean 'factor'?"),
        (["--set", "factor=much"], "study lengths: factor = 'much'"),
        (["--set", "factor"], "override 'factor' is not of the form"),
        (["--plan", "none.toml"], "config file none.toml does not exist"),
        (["--plan", "smok"], "--plan 'smok' is neither a TOML file nor one of smoke"),
        (["--set", 'words=["a", "a"]'], "study 'lengths': the unit 'a' is named twice; each needs its own name"),
        (["--word", "clash"], "study 'lengths', unit 'clash': the key 'unit' is the row's own; rename it"),
        (["--minutes", "-1"], "minutes = -1.0: must be 0 or more and finite"),
        (["--report"], "there is no rows.jsonl in it to report; measure first, without --report"),
        (["--report", "--factor", "0"], "--factor is for measuring; --report only reads the rows in --out"),
        (["--report", "--set", "factor=2"], "--set is for measuring; --report only reads the rows in --out"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", "lengths", "--out", str(out), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (out / ROWS).exists()


def test_a_directory_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "lengths"]) == 2
    assert "study 'lengths' needs --out DIR" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bltkit.study.report.EXTRA", ("pandas", "no_such_library"))
    assert main(["study", "lengths", "--out", str(tmp_path / "out")]) == 2
    assert "studies need no_such_library: pip install 'bltkit[study]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_that_is_not_finite_names_its_unit(tmp_path: Path) -> None:
    class Endless(Lengths):
        def run(self, unit: Unit, run: StudyRun) -> Iterator[Row]:
            yield {"length": float("nan")}

    with pytest.raises(ValueError, match="study 'lengths', unit 'a': its row is no JSON"):
        run_study(Endless(), tmp_path, STAMP)


def test_a_report_escapes_and_folds(tmp_path: Path) -> None:
    import pandas as pd

    study = Lengths(words=("a|b",))
    report = write_report(study, run_study(study, tmp_path, STAMP).frame(), tmp_path)
    assert "| a\\|b" in report.text and "They have <lengths>." in report.text
    page = report.page.read_text(encoding="utf-8")
    assert "They have &lt;lengths&gt;." in page and "blt study &lt;x&gt;" in page
    with pytest.raises(ValueError, match="there are no rows of `blt study lengths` to report"):
        write_report(study, pd.DataFrame(), tmp_path)


def test_an_unknown_study_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "lenghts"]) == 2
    assert "no study 'lenghts'; did you mean 'lengths'?" in capsys.readouterr().err
