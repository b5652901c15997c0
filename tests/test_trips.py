"""How far a reader has to go: the files that one decoding step executes are those that the architecture page lists."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import bltkit
from bltkit.eval.dataset_source import Place
from bltkit.eval.runner import Settings, evaluate
from bltkit.eval.subjects import open_subject
from bltkit.eval.tasks import parse_tasks
from bltkit.generate import Request, SequenceBatch, Session
from bltkit.study.driver import run_study
from bltkit.study.plots import PlotPanel, PlotSeries, panels
from bltkit.study.report import write_report
from bltkit.train import trainer as trainer_module
from bltkit.vocab import encode
from tests.eval_rows import place_of
from tests.test_studies import STAMP, Lengths
from tests.tiny_training import Workplace

PACKAGE = Path(bltkit.__file__).resolve().parent
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
MAX_LINES = 4000
MAX_FILES = 26


def executed(function: Callable[[], object]) -> set[str]:
    """The files of the package in which some function ran, relative to it; code at the top of a module is left out."""
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return {Path(name).relative_to(PACKAGE).as_posix() for name in files if Path(name).is_relative_to(PACKAGE)}


def listed(heading: str) -> set[str]:
    """The files that a section of the architecture page names."""
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^#)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert section is not None, f"the section {heading!r} is gone"
    return set(re.findall(r"`([\w/]+\.py)`", section[1]))


def test_what_runs_is_recognised() -> None:
    assert executed(lambda: encode("a")) == {"vocab.py"}
    assert executed(lambda: None) == set()


def test_one_decoding_step_runs_through_the_files_that_are_listed() -> None:
    lm = bltkit.load("bltkit:tiny")
    assert lm.model is not None
    session = Session.start(lm.model, lm.scorer, lm.rule).extend(encode("The keeper counted "))
    batches = [SequenceBatch().admit(session, [Request(max_bytes=64)])]
    batches.append(batches[-1].step()[0])  # what is done once per sequence is no part of a step

    def steps() -> None:
        for _ in range(8):  # patches close in some of them
            batches.append(batches[-1].step()[0])

    files = executed(steps)
    assert files == listed("The files of one decoding step"), "list in docs/architecture.md what a step executes"
    lines = sum(len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert lines <= MAX_LINES and len(files) <= MAX_FILES, f"{lines} lines in {len(files)} files: the trip got longer"


def length(files: set[str]) -> int:
    """Lines of the files together."""
    return sum(len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in files)


def test_one_training_step_runs_through_the_files_that_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: set[str] = set()
    trainer: Any = trainer_module._Trainer
    step = trainer._train_step

    def profiled(self: Any, batches: Any, counts: Any, loop: Any) -> Any:
        """The fifth step from its rows on: what is done once per run is no part of it."""
        results = [(loop, None)]

        def whole() -> None:
            rows = [next(self.loader)]
            results.append(step(self, rows, self._agree(rows, loop)[0], loop))

        if loop.position.step != 4:
            return step(self, batches, counts, loop)
        files.update(executed(whole))
        return results[-1]

    monkeypatch.setattr(trainer, "_train_step", profiled)
    Workplace.at(tmp_path).train("run", "blt", "trainer.max_steps=6")
    assert files == listed("The files of one training step"), "list in docs/architecture.md what a step executes"
    assert length(files) <= 6300 and len(files) <= 41, f"{length(files)} lines in {len(files)} files"


def test_one_item_runs_through_the_files_that_are_listed(tmp_path: Path) -> None:
    place_of(tmp_path, "piqa")
    subject, place, tasks = open_subject("bltkit:tiny"), Place.of([tmp_path]), parse_tasks(["piqa"])
    files = executed(lambda: evaluate(subject, tasks, place, settings=Settings(1)))
    files = {name for name in files if name.startswith("eval/")}
    assert files == listed("The files of one item"), "list in docs/architecture.md what an item executes"
    assert length(files) <= 2300 and len(files) <= 15, f"{length(files)} lines in {len(files)} files"


def test_one_study_row_runs_through_the_files_that_are_listed(tmp_path: Path) -> None:
    class Drawn(Lengths):
        def figures(self, frame: Any) -> Any:
            series = PlotSeries("length", range(len(frame)), frame.length, band=True)
            return {"lengths": panels([[PlotPanel("words", [series])]], "Lengths")}

    study = Drawn(words=("a",))
    files = executed(lambda: write_report(study, run_study(study, tmp_path, STAMP).frame(), tmp_path))
    files = {name for name in files if name.startswith("study/") and name.endswith(".py")}
    assert files == listed("The files of one study row"), "list in docs/architecture.md what a row goes through"
