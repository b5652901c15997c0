"""`blt study fast-decoding`: what its numbers say, measured once and no more, and pictures from the rows alone."""

import io
import json
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import bltkit
from bltkit import cli
from bltkit.bench import repeated_share
from bltkit.checkpoint import Bundle, save_bundle
from bltkit.data import Document
from bltkit.files.json_lines import read_lines
from bltkit.generate import Passes, Session, Stats
from bltkit.model import Blt, EntropyConfig, EntropyModel
from bltkit.patching import parse_rule
from bltkit.study.fast_decoding.decoding_settings import GRIDS, setting_of, settings_of
from bltkit.study.fast_decoding.fast_decoding_report import MARKERS, figures
from bltkit.study.fast_decoding.fast_decoding_study import FastDecodingStudy
from bltkit.study.fast_decoding.passages import passages_of
from bltkit.study.fast_decoding.quality import is_utf8
from bltkit.study.report import to_markdown
from bltkit.study.store import ResultStore
from tests import tiny
from tests.test_cli import Blt_, blt
from tests.tiny_training import STACK, Workplace, documents

__all__ = ["blt"]

SIZES = ("--prompts", "2", "--prompt-bytes", "40", "--max-bytes", "6", "--heldout-bytes", "200", "--threads", "1")
WAYS = ("speculative:draft=3", "diffusion:alpha=0.01", "verified")
PROSE = b"".join(text + b".\n" for text in documents()[:-1]) * 3
CODE = b"".join(b"def f%d(x):\n    y = x + %d\n    return [y,\n        x]\n\n\n" % (at, at) for at in range(40))
CODE_TEXTS = [Document("a.py", CODE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the same kind, `plain` and one for blocks of 4, and two texts."""
    folder = tmp_path_factory.mktemp("study")
    config: Any = Workplace(folder).config("blt").model
    scorer = tiny.fill(EntropyModel(EntropyConfig(**STACK, window=16)), 1, head=3.0)
    rule = parse_rule("threshold:threshold=2.5")
    record = {"row_bytes": 64, "steps": 7, "config": {"objective": {"kind": "block-diffusion", "block": 4}}}
    for name, block in (("plain", None), ("d4", 4)):
        model = tiny.fill(Blt(config.replace(diffusion_block=block)), 0)
        save_bundle(folder / name, Bundle(model, scorer, rule, record if block else {"row_bytes": 64}))
    (folder / "prose.txt").write_bytes(PROSE)
    (folder / "code").mkdir()
    (folder / "code" / "a.py").write_bytes(CODE)
    (folder / "code" / "notes.txt").write_bytes(b"no Python " * 100)
    return folder


def line(place: Path, out: Path, *more: str | Path, text: str = "code=code") -> list[str]:
    """A whole study."""
    models = ("--model", f"plain={place / 'plain'}", "--model", f"d4={place / 'd4'}")
    name, _, source = text.partition("=")
    ways = ("--grid", "ar", *(part for way in WAYS for part in ("--setting", way)))
    parts = (*models, "--text", f"{name}={place / source}", *SIZES, *ways, "--out", out, "--json", *more)
    return ["study", "fast-decoding", *map(str, parts)]


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """The directory of a finished study."""
    with redirect_stdout(io.StringIO()) as printed:
        assert cli.main(line(place, place / "out", "--seeds", "2")) == 0
    found = json.loads(printed.getvalue())
    assert found["rows"] == read_lines(place / "out" / "rows.jsonl")
    return place / "out"


def rows_of(out: Path, **fields: Any) -> list[dict[str, Any]]:
    return [row for row in read_lines(out / "rows.jsonl") if fields.items() <= row.items()]


def test_every_way_is_measured(done: Path) -> None:
    for temperature, runs in ((0.0, 2), (0.8, 4)):
        own = rows_of(done, model="d4", text="code", temperature=temperature, kind="setting")
        assert [row["setting"] for row in own] == ["ar", *WAYS] and {row["runs"] for row in own} == {runs}
        assert {(row["block"], row["steps"], row["objective"]["kind"]) for row in own} == {(4, 7, "block-diffusion")}
        plain = rows_of(done, model="plain", text="code", temperature=temperature, kind="setting")
        assert [row["setting"] for row in plain] == ["ar", "speculative:draft=3"]
    assert len(read_lines(done / "rows.jsonl")) == 2 + 2 * 6
    for row in read_lines(done / "rows.jsonl"):
        assert {"commit", "machine", "threads", "command", "conditions", "weights"} <= row.keys()
        assert row["machine"]["torch"] == torch.__version__ and row["threads"] == 1


def test_what_the_numbers_say(done: Path) -> None:
    turns = read_lines(done / "turns.jsonl")
    for row in rows_of(done, kind="setting"):
        names = {name: row[name] for name in ("model", "text", "temperature")}
        made = [turn["made"] for turn in turns if names.items() <= turn.items()]
        own, ar = ([one[name] for one in made] for name in (row["setting"], "ar"))
        outputs, others = ([bytes.fromhex(one["bytes_hex"]) for one in side] for side in (own, ar))
        total = sum(map(len, outputs))
        cost: dict[str, Callable[[Any], float]] = {
            "seconds": lambda side: sum(one["ledger"]["seconds"] for one in side),
            "paper": lambda side: sum(one["ledger"]["paper_gb"] for one in side),
            "bytes": lambda side: sum(one["ledger"]["bytes"] for one in side),
            "nats": lambda side: sum(one["nats"] for one in side),
        }
        assert row["bytes"] == total == cost["bytes"](own) and len(own) == row["runs"]
        assert row["bytes_per_second"] == pytest.approx(total / cost["seconds"](own))
        speed = cost["bytes"](ar) / cost["seconds"](ar)
        assert row["against_ar"] == pytest.approx(row["bytes_per_second"] / speed)
        assert row["time_saved"] == pytest.approx(1 - 1 / row["against_ar"])
        saved = 1 - cost["paper"](own) / total * cost["bytes"](ar) / cost["paper"](ar)
        assert row["paper_gb_saved"] == pytest.approx(saved, abs=1e-12)
        assert row["paper_gb"] == pytest.approx(cost["paper"](own) / len(own))
        assert row["bits_per_byte"] == pytest.approx(cost["nats"](own) / total / math.log(2))
        assert row["repeated_share"] == pytest.approx(sum(repeated_share(one) * len(one) for one in outputs) / total)
        pairs = list(zip(outputs, others, strict=True))
        equal = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))
        assert row["agreement"] == pytest.approx(equal / sum(max(len(one), len(other)) for one, other in pairs))
        assert row["valid_utf8"] == pytest.approx(sum(map(is_utf8, outputs)) / len(outputs))
        for name, (low, high) in row["intervals"].items():
            assert low <= high and low - 1e-9 <= row[name] <= high + 1e-9, name
        if row["strategy"]["kind"] != "diffusion":
            assert row["agreement"] == 1 and row["common_prefix"] * len(own) == total
            assert (row["acceptance"] is None) == (row["setting"] == "ar")
        if row["setting"] == "ar":
            assert row["against_ar"] == 1 and row["time_saved"] == 0
        else:
            assert row["bytes_per_round"] >= 1


def test_bits_are_the_models_own(done: Path, place: Path) -> None:
    """Of what `ar` made, the sum of the probabilities that the engine itself gave each byte."""
    turn = next(turn for turn in read_lines(done / "turns.jsonl") if turn["model"] == "d4" and turn["temperature"])
    prompts = passages_of("code", CODE_TEXTS, 2, prompt_bytes=40, room=6, rest_bytes=100).passages
    lm = bltkit.load(place / "d4")
    made = lm.generate(
        prompts[turn["prompt"]].prompt,
        max_bytes=6,
        temperature=turn["temperature"],
        seed=turn["seed"],
        logprobs=True,
    )
    assert made.data.hex() == turn["made"]["ar"]["bytes_hex"]
    assert turn["made"]["ar"]["nats"] == pytest.approx(-sum(made.logprobs))


def test_heldout_text_is_scored_behind_its_prompt(done: Path, place: Path) -> None:
    (row,) = rows_of(done, kind="heldout", model="d4", text="code")
    passages = passages_of("code", CODE_TEXTS, 2, prompt_bytes=40, room=6, rest_bytes=100).passages
    lm = bltkit.load(place / "d4")
    bits, count = 0.0, 0
    for one in passages:
        whole, head = (lm.score(text).nll_nats for text in (one.prompt + one.rest, one.prompt))
        bits, count = bits + (whole - head) / math.log(2), count + len(one.rest)
    assert row["bytes"] == count and row["bits_per_byte"] == pytest.approx(bits / count)


def test_nothing_is_measured_again(done: Path, place: Path, monkeypatch: pytest.MonkeyPatch, blt: Blt_) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("measured again")

    before = {path.name: path.read_bytes() for path in done.iterdir()}
    monkeypatch.setattr("bltkit.study.fast_decoding.decoding_turns.decode", refuse)
    found = blt(*line(place, done, "--seeds", "2")).json()
    assert found["rows"] == read_lines(done / "rows.jsonl")
    after = {path.name: path.read_bytes() for path in done.iterdir()}
    assert after == before
    said = blt(*line(place, done, "--seeds", "1"))
    assert said.status == 2 and "with seeds = 2, and the plan says 1; use a new --out" in said.err.splitlines()[-1]


def test_a_study_goes_on_where_it_was_broken_off(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = line(place, tmp_path / "out", "--temperature", "0.8", text="prose=prose.txt")
    calls = 0

    def quick(session: Session, *_: Any) -> Any:
        return b"ab", Stats.of(session.model, session.scorer, Passes(2, 2, 1, 2), 2, 0.5, 3, 1), 2

    def broken(session: Session, *_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 13:  # in the second model's second turn: 2 ways warm up and make 2 turns, then 4 ways
            raise KeyboardInterrupt
        return quick(session)

    monkeypatch.setattr("bltkit.study.fast_decoding.decoding_turns.decode", broken)
    assert cli.main(whole) == 130
    kept = (tmp_path / "out" / "turns.jsonl").read_bytes()
    assert kept.endswith(b"\n") and kept.count(b"\n") == 2
    with (tmp_path / "out" / "turns.jsonl").open("ab") as file:
        file.write(b'{"model": "pl')  # as a killed process leaves it
    monkeypatch.setattr("bltkit.study.fast_decoding.decoding_turns.decode", quick)
    with redirect_stdout(io.StringIO()):
        assert cli.main(whole) == 0
    turns = (tmp_path / "out" / "turns.jsonl").read_bytes()
    assert turns.startswith(kept) and turns.count(b"\n") == 4
    rows = rows_of(tmp_path / "out", kind="setting")
    keys = [(row["model"], row["text"], row["setting"]) for row in rows]
    assert len(set(keys)) == len(keys)
    # A further way is measured beside `ar`, which keeps its row.
    with redirect_stdout(io.StringIO()):
        assert cli.main([*whole, "--setting", "speculative:draft=2"]) == 0
    more = rows_of(tmp_path / "out", kind="setting")
    assert more[: len(rows)] == rows and {row["setting"] for row in more[len(rows) :]} == {"speculative:draft=2"}
    assert len(more) == len(rows) + 2
    last = read_lines(tmp_path / "out" / "turns.jsonl")[-1]
    assert last["settings"] == ["ar", "speculative:draft=2"]


def test_a_report_needs_the_rows_alone(done: Path, tmp_path: Path, blt: Blt_) -> None:
    (tmp_path / "rows.jsonl").write_bytes((done / "rows.jsonl").read_bytes())
    report = blt("study", "fast-decoding", "--out", tmp_path, "--report", "--json").json()
    names = ["quality.png", "quality.svg", "ledgers.png", "ledgers.svg"]
    assert report["figures"] == [str(tmp_path / name) for name in names]
    for name in (*names, "table.md"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes() and (tmp_path / name).stat().st_size > 500


def cells(text: str) -> list[list[str]]:
    """Cells of every line of a Markdown text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def drawn(axes: Any) -> list[float]:
    """Places of all points, from left to right."""
    return sorted(x for line in axes.lines if line.get_marker() in MARKERS.values() for x in line.get_xdata())


def test_the_table_and_the_pictures(done: Path) -> None:
    rows = rows_of(done, kind="setting")
    frame = ResultStore(done, "fast-decoding").frame()
    lines = cells(to_markdown(FastDecodingStudy.smoke(), FastDecodingStudy.smoke().sections(frame)))
    assert sum(line[0].startswith("## ") for line in lines) == 1 + 4
    for row in rows:
        assert any(line[:2] == [row["setting"], f"{row['bytes_per_second']:.1f}"] for line in lines)
    assert len({len(line) for line in lines if len(line) > 1}) == 2  # held-out and settings: tables are rectangular
    pictures = figures(frame)
    quality, ledgers = pictures["quality"].axes, pictures["ledgers"].axes
    assert [axes.get_title(loc="left") for axes in quality] == ["code, greedy", "code, temperature 0.8"]
    assert sorted(x for axes in quality for x in drawn(axes)) == sorted(row["against_ar"] for row in rows)
    assert sum(len(drawn(axes)) for axes in ledgers) == 2 * sum(row["setting"] != "ar" for row in rows)


COMMITTED = """
| tiny-d | 8 | block-diffusion weight 0.5, t block, starts anywhere | 2000 | 2.2491 [2.1929, 2.3035], +2.4 % of tiny | 1.8023 [1.7055, 1.8974], +2.9 % of tiny |
| tiny | – | next-byte | 2800 | 2.1971 [2.1374, 2.2559] | 1.7514 [1.6582, 1.8418] |
| speculative:draft=8 | 612.7 | 1.91 [1.79, 2.04] | 1.01, 1.01, 0.11, 0.12 | 8.48 | 97.6 % [96.6, 98.6] | 0.253 (34 %) | 0.585 + 0.0679 (49 %) | 48 % | 100.0 % | 83.6 % [79.2, 87.7] | 100.0 % | – | 1.002 [0.967, 1.026] | 1.00 |
| diffusion:alpha=0.7, align_border=true | 556.1 | 1.73 [1.61, 1.86] | 0.98, 0.16, 0.14, 0.16 | 6.33 | – | 0.264 (31 %) | 0.529 + 0.0576 (55 %) | 42 % | 13.9 % [11.7, 17.0] | 43.4 % [35.0, 51.6] | 100.0 % | – | 2.355 [2.275, 2.430] | 2.35 [2.27, 2.43] |
"""  # noqa: E501


def test_the_committed_rows_say_what_version_0_1_0_printed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(Path("docs/fast-decoding.jsonl").read_bytes())
    study, frame = FastDecodingStudy.smoke(), ResultStore(tmp_path, "fast-decoding").frame()
    lines = cells(to_markdown(study, study.sections(frame)))
    assert all(line in lines for line in cells(COMMITTED.strip()))
    assert sum(line[0].startswith("## ") for line in lines) == 41 and sum(len(line) == 15 for line in lines) == 604
    about = "AMD EPYC, 1 thread · 32 prompts of 200 bytes, 128 bytes made; torch 2.13.0+cpu, commit a5b6bd51"
    assert lines[2][0].startswith(about)


BAD = [
    (("fast-decodin", "--out", "{out}"), "no study 'fast-decodin'; did you mean 'fast-decoding'?"),
    (("fast-decoding", "--out", "{out}"), "needs --model NAME=MODEL, as in --model plain=bltkit:tiny"),
    (("fast-decoding", "--out", "{out}", "--model", "a={place}/plain"), "needs --text NAME=FILE"),
    (("fast-decoding", "--out", "{out}", "--report"), "there is no rows.jsonl in it"),
    (("fast-decoding", "--out", "{out}", "--report", "--grid", "full"), "--grid is for measuring"),
    (("{good}", "--model", "{place}/d4"), "is not NAME=SOURCE"),
    (("{good}", "--model", "a={place}/d4"), "the name 'a' is given twice"),
    (("{good}", "--model", "b={place}/none"), "no such directory"),
    (("{good}", "--grid", "ful"), "grid = 'ful'; did you mean 'full'?"),
    (("{good}", "--setting", "difusion"), "no strategy 'difusion'; did you mean 'diffusion'?"),
    (("{good}", "--setting", "diffusion:alfa=0.5"), "has no field 'alfa'; did you mean 'alpha'?"),
    (("{good}", "--setting", "diffusion:alpha"), "is not a further field=value"),
    (("{good}", "--setting", "diffusion:gamma=0"), "gamma = 0"),
    (("{good}", "--setting", "diffusion:alpha=0.6"), "suits none of the models: strategy = 'diffusion'"),
    (("{good}", "--prompts", "4000"), "text 't' has room for"),
    (("{good}", "--prompt-bytes", "100000"), "has room for 0 prompts of 100000 bytes"),
    (("{good}", "--prompts", "0"), "prompts = 0"),
    (("{good}", "--temperature", "-1"), "temperatures"),
    (("{good}", "--text", "u={place}/none.txt"), "does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, blt: Blt_, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    good = ["fast-decoding", "--model", f"a={place}/plain", "--text", f"t={place}/prose.txt"]
    good += ["--prompts", "2", "--prompt-bytes", "40", "--out", str(out)]
    spread = [part for one in arguments for part in (good if one == "{good}" else [one.format(place=place, out=out)])]
    ran = blt("study", *spread)
    assert ran.status == 2 and not ran.out
    assert message in ran.err.splitlines()[-1]
    assert not out.exists()


def test_the_verb_explains_itself(blt: Blt_) -> None:
    ran = blt("study", "--help")
    assert ran.status == 0 and b"fast-decoding" in ran.out and b"--json" in ran.out and not ran.err


def test_settings_have_one_name() -> None:
    for grid in GRIDS:
        names = [setting.name for setting in settings_of(grid)]
        assert names[0] == "ar" and len(set(names)) == len(names)
        assert [setting_of(name).name for name in names] == names == list(GRIDS[grid])
    assert setting_of("diffusion: align_border=true, alpha=0.7").name == "diffusion:alpha=0.7,align_border=true"
    assert [one.name for one in settings_of("small", ["speculative:draft=8", "speculative"])][-1] == "speculative"
    assert setting_of("speculative:draft=3").fields == {"kind": "speculative", "draft": 3}
