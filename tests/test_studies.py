"""The contract of a study: a plan, rows that are measured once, and a report; and the table of all studies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bltkit.cli import main
from bltkit.cli.study import STUDIES
from bltkit.config import dump_toml, parse
from bltkit.registry import resolve
from bltkit.study.study import Study, missing_units, run_study

STAMP = {"commit": "c0", "machine": "here"}


class Lengths(Study):
    """Lengths of words.

    More about it.
    """

    words: tuple[str, ...] = ("a", "bb", "ccc")
    factor: float = 1.0

    def units(self) -> Sequence[str]:
        return self.words

    def run(self, unit: str) -> Mapping[str, Any]:
        if unit == "breaks":
            raise KeyboardInterrupt
        return {"unit": 1} if unit == "clash" else {"length": len(unit) * self.factor}

    def report(self, rows: Sequence[Mapping[str, Any]]) -> str:
        return "\n".join(f"{row['unit']}: {row['length']}" for row in rows)


CONTRACT = {name: study for name in STUDIES if isinstance(study := resolve(STUDIES[name]), type)} | {"lengths": Lengths}
"""Every registered study of the contract, and one of this file."""


@pytest.fixture(autouse=True)
def _lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "lengths", "tests.test_studies:Lengths")


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_is_there_and_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", name, "--help"]) == 0
    assert name in capsys.readouterr().out


def test_the_list_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES) and "Lengths of words." in listed


@pytest.mark.parametrize("name", list(CONTRACT))
def test_a_plan_is_a_value_that_is_read_back(name: str) -> None:
    study = CONTRACT[name].example()
    assert parse(type(study), study.model_dump(mode="json"), "plan") == study
    units = study.units()
    assert units and len(set(units)) == len(units) and list(units) == list(study.units())
    with pytest.raises(ValueError, match="no_such_field"):
        parse(type(study), study.model_dump(mode="json") | {"no_such_field": 1}, "plan")


@pytest.mark.parametrize("name", list(CONTRACT))
def test_what_was_measured_stays_whatever_interrupts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = CONTRACT[name].example()
    units, asked, measure = list(study.units()), [], type(study).run

    def interrupted(self: Study, unit: str) -> Mapping[str, Any]:
        asked.append(unit)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(self, unit)

    monkeypatch.setattr(type(study), "run", interrupted)
    if len(units) > 1:
        with pytest.raises(KeyboardInterrupt):
            run_study(study, name, tmp_path, STAMP)
        assert missing_units(study, name, tmp_path) == units[1:]
    rows = run_study(study, name, tmp_path, STAMP)
    assert [row["unit"] for row in rows] == units and asked == [*units[:2], *units[1:]][: len(asked)]
    assert all(row["commit"] == "c0" and row["what"] == name for row in rows)
    assert run_study(study, name, tmp_path, STAMP) == rows
    assert missing_units(study, name, tmp_path) == []
    assert study.report(rows).strip() and study.report(rows[:1]).strip()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@pytest.mark.parametrize("name", list(CONTRACT))
def test_the_command(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = CONTRACT[name].example()
    plan, out = tmp_path / "plan.toml", str(tmp_path / "out")
    plan.write_text(dump_toml(study.model_dump(mode="json")), encoding="utf-8")
    line = ["study", name, "--plan", str(plan), "--out", out]
    assert main([*line, "--dry-run"]) == 0
    assert capsys.readouterr().out.split() == [word for unit in study.units() for word in unit.split()]
    assert not Path(out).exists(), "a dry run leaves something"
    assert main([*line, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [row["unit"] for row in measured["rows"]] == list(study.units())
    assert main(["study", name, "--out", out, "--report"]) == 0
    printed = capsys.readouterr().out
    assert printed == study.report(measured["rows"]).rstrip() + "\n" == Path(measured["table"]).read_text("utf-8")
    assert main([*line, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("(measured)") == len(study.units())


def test_fields_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["study", "lengths", "--out", str(tmp_path / "out")]
    assert main([*line, "--set", 'words=["x", "yy"]', "--set", "factor=2"]) == 0
    assert capsys.readouterr().out == "x: 2.0\nyy: 4.0\n"
    assert main(["study", "lengths", "--help"]) == 0
    assert "factor = 1.0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "factr=2"], "study lengths: unknown key 'factr'; did you mean 'factor'?"),
        (["--set", "factor=much"], "study lengths: factor = 'much'"),
        (["--set", "factor"], "override 'factor' is not of the form"),
        (["--plan", "none.toml"], "config file none.toml does not exist"),
        (["--set", 'words=["a", "a"]'], "study 'lengths': the unit 'a' is named twice; each needs its own name"),
        (["--set", 'words=["clash"]'], "study 'lengths', unit 'clash': the key 'unit' is the row's own; rename it"),
        (["--report"], "there is no rows.jsonl in it to report; measure first, without --report"),
        (["--report", "--set", "factor=2"], "--set is for measuring; --report only reads the rows in --out"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "lengths", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_rows_of_another_plan_are_refused(tmp_path: Path) -> None:
    run_study(Lengths(), "lengths", tmp_path, STAMP)
    said = r"with factor = 1\.0, and the plan says 2\.0; use a new --out, or restore the original plan"
    with pytest.raises(ValueError, match=said):
        run_study(Lengths(factor=2.0), "lengths", tmp_path, STAMP)
    # Another study may share the directory.
    assert len(run_study(Lengths(factor=2.0), "others", tmp_path, STAMP)) == 3


def test_a_number_that_is_not_finite_names_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lengths, "run", lambda self, unit: {"length": float("nan")})
    with pytest.raises(ValueError, match="study 'lengths', unit 'a': its row is no JSON"):
        run_study(Lengths(), "lengths", tmp_path, STAMP)


def test_an_unknown_study_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "lenghts"]) == 2
    assert "no study 'lenghts'; did you mean 'lengths'?" in capsys.readouterr().err
