"""How evaluation reads its rows: compressed, cut short, with byte order marks, damaged; and what it reads back."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from bltkit.eval.dataset_source import Place, read_rows, read_text_lines
from bltkit.eval.noise.noise_pairs import TextPair, read_pairs
from bltkit.eval.report.stored_runs import read_run
from bltkit.eval.runner import evaluate
from bltkit.eval.tasks import parse_task
from bltkit.files.json_lines import append_lines, read_lines
from tests.eval_fakes import Known, items_of

BOM = b"\xef\xbb\xbf"
ROWS = [json.dumps({"context": f"the cat {i} sat on the", "continuation": "mat"}).encode() for i in range(6)]
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def lambada(folder: Path) -> list[str]:
    """The prompts of the task's items, from a folder of data."""
    return [str(item["context"]) for item in items_of(parse_task("lambada"), Place.of([folder]))]


def read_all_pairs(folder: Path) -> list[TextPair]:
    """The pairs of the only file in a folder."""
    (path,) = folder.iterdir()
    return list(read_pairs(path))


@pytest.mark.parametrize("suffix", PACKS)
def test_rows_in_every_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lambada_openai.jsonl{suffix}"
    path.write_bytes(PACKS[suffix](BOM + b"\r\n".join(ROWS)))
    assert len(lambada(tmp_path)) == 6 and not any("\ufeff" in prompt for prompt in lambada(tmp_path))
    table = tmp_path / f"spell.tsv{suffix}"
    table.write_bytes(PACKS[suffix](BOM + "input1\tlabel\r\nmöhre\tm ö h r e\n".encode()))
    assert list(read_rows(table)) == [{"input1": "möhre", "label": "m ö h r e"}]
    assert next(read_text_lines(table)) == (1, "input1\tlabel\r")
    pairs = tmp_path / f"pairs.jsonl{suffix}"
    pairs.write_bytes(PACKS[suffix](BOM + b'{"clean": "a", "noisy": "b"}\n'))
    assert [(pair.clean, pair.noisy) for pair in read_pairs(pairs)] == [("a", "b")]


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKS if suffix])
def test_a_compressed_file_that_is_not_whole_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lambada_openai.jsonl{suffix}"
    for read, content in ((lambada, b"\n".join(ROWS)), (read_all_pairs, b'{"clean": "a", "noisy": "b"}\n' * 9)):
        whole = PACKS[suffix](content)
        for damaged in (whole[:-5], whole[: len(whole) // 2], whole + b"garbage", b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"lambada_openai\.jsonl{suffix}: .*; fetch .* again") as error:
                read(tmp_path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"context": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "nested too deeply"),
        (rb'{"context": "the cat", "continuation": "m\ud800at"}', r"\ud800 is half a surrogate pair"),
        (b'{"context": "\xff"}', "not UTF-8"),
        (b'{"context": NaN}', "NaN is no number of JSON"),
        (b'{"context": ' + b"1" * 5_000 + b"}", "an integer of more than 4300 digits"),
    ],
)
def test_a_broken_row_names_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "lambada_openai.jsonl"
    for read, sound in ((lambada, ROWS[0]), (read_all_pairs, b'{"clean": "a", "noisy": "b"}')):
        path.write_bytes(sound + b"\n" + line + b"\n" + sound)
        with pytest.raises(ValueError) as error:
            read(tmp_path)
        assert f".jsonl, line 2: not JSON ({reason}" in str(error.value) and "\n" not in str(error.value)


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spell.tsv"
    path.write_bytes("input1\tlabel\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"spell\.tsv, line 1: UTF-16, not UTF-8; save it as UTF-8"):
        list(read_rows(path))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "text").mkdir(parents=True)
    second.mkdir()
    (first / "lambada_openai.jsonl").symlink_to(tmp_path / "unplugged")
    (second / "lambada_openai.jsonl").write_bytes(b"\n".join(ROWS))
    with pytest.raises(ValueError, match=r"first/lambada_openai\.jsonl: cannot be read"):
        items_of(parse_task("lambada"), Place.of([first, second]))  # not the other directory's, in silence
    (first / "text" / "a.txt").write_bytes(b"text")
    for name in ("b.txt", "c.jsonl", "d.txt.gz"):
        (first / "text" / name).symlink_to(tmp_path / "unplugged")
        with pytest.raises((ValueError, OSError), match=r"\w\.\w+.*No such file|No such file.*\w\.\w+"):
            items_of(parse_task("bpb"), Place.of([first]))
        (first / "text" / name).unlink()


def test_texts_are_unpacked_before_they_are_scored(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name, pack in PACKS.items():
        (tmp_path / "text" / f"{name[1:] or 'plain'}.txt{name}").write_bytes(pack(BOM + b"caf\xe9"))
    texts = {item["text"] for item in items_of(parse_task("bpb"), Place.of([tmp_path]))}
    assert texts == {"\ufeffcaf\udce9"}  # bytes as they stand: they are what is scored


def evaluated(folder: Path) -> Path:
    (folder / "lambada_openai.jsonl").write_bytes(b"\n".join(ROWS))
    out = folder / "out"
    evaluate(Known(), [parse_task("lambada")], Place.of([folder]), out=out)
    return out


@pytest.mark.parametrize("name", ["results.json", "run.json", "items/lambada.jsonl"])
def test_what_an_evaluation_reads_back_is_named(tmp_path: Path, name: str) -> None:
    out = evaluated(tmp_path)
    path = out / name if (out / name).exists() else next(out.rglob("lambada.jsonl"))
    whole = path.read_bytes()
    task, place = [parse_task("lambada")], Place.of([tmp_path])
    evaluate(Known(), task, place, out=out, resume=True)
    beginnings = (whole[: len(whole) // 2] + b"\n", b"[]\n", b'{"results": 3}\n', b"[" * 5_000 + b"\n", b"\xff\n")
    for damaged in beginnings[:-3] if name == "run.json" else beginnings:
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            evaluate(Known(), task, place, out=out, resume=True)
        assert path.name in str(error.value) and "\n" not in str(error.value)
        if name != "run.json":
            with pytest.raises(ValueError, match=path.name):
                _ = read_run(out).entries
    path.write_bytes(whole)
    evaluate(Known(), task, place, out=out, resume=True)


def test_records_keep_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    append_lines(path, [{"text": text}])
    assert read_lines(path) == [{"text": text}]
    path.write_bytes(path.read_bytes() + b"[" * 9_999 + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not JSON \(nested too deeply"):
        read_lines(path)
