"""The text of the recipe of `bltkit:tiny`: what of Python packages is taken, and pieces of long documents."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import pieces, python_packages, unpack_python

MIT = "Name: x\nLicense-Expression: MIT\n"


def source(name: str, lines: int = 40) -> str:
    """Python text whose lines are nobody else's."""
    return "".join(
        f"    {name}_{'abcdefghij'[line % 10] * (1 + line // 10)} = compute_something({name})\n"
        for line in range(lines)
    )


def wheel(folder: Path, name: str, files: dict[str, str | bytes], metadata: str = MIT) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def taken(folder: Path, monkeypatch: pytest.MonkeyPatch, packages: list[Path], held: Path, *options: str) -> set[str]:
    out = folder / "out.jsonl"
    arguments = ["python_packages", str(out), *map(str, packages), "--held-out", str(held), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    python_packages.main()
    return {json.loads(line)["source"] for line in out.read_text(encoding="utf-8").splitlines() if line}


def test_what_is_no_training_text_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = wheel(tmp_path, "held", {"held/core.py": source("secret")})
    files: dict[str, str | bytes] = {
        "good/core.py": source("core"),
        "good/also.py": source("core"),
        "good/tests/test_core.py": source("test"),
        "good/_vendor/other.py": source("vendor"),
        "good/short.py": "x = 1\n",
        "good/long.py": source("long", 90) * 100,
        "good/latin.py": b"# caf\xe9\n" + source("latin").encode(),
        "good/numbers.py": "DATA = [\n" + "    12345678, 87654321, 11223344,\n" * 40 + "]\n",
        "good/copied.py": source("good", 36) + source("secret", 5),
        "good/hardly.py": source("fine", 38) + source("secret", 2),
    }
    sources = taken(tmp_path, monkeypatch, [wheel(tmp_path, "good", files)], held)
    assert sources in ({"good/good/core.py", "good/good/hardly.py"}, {"good/good/also.py", "good/good/hardly.py"})


def test_held_out_and_copyleft_packages_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = wheel(tmp_path, "held", {"held/core.py": source("secret")})
    free = wheel(
        tmp_path, "free", {"free/a.py": source("free")}, "Classifier: License :: OSI Approved :: BSD License\n"
    )
    copyleft = wheel(tmp_path, "gnu", {"gnu/a.py": source("gnu")}, "License: LGPL-2.1\n")
    silent = wheel(tmp_path, "silent", {"silent/a.py": source("silent")}, "Name: silent\n")
    assert taken(tmp_path, monkeypatch, [free, copyleft, silent, held], held) == {"free/free/a.py"}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT", True),
        ("License-Expression: Apache-2.0 OR GPL-2.0-or-later", True),
        ("License-Expression: MIT AND MPL-2.0", False),
        ("License-Expression: LGPL-2.1-only", False),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", False),
        ("License: BSD-3-Clause", True),
        ("Name: x", False),
    ],
)
def test_licences(metadata: str, expected: bool) -> None:
    assert python_packages.permissive(metadata + "\n") is expected


def test_no_package_gives_more_than_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = wheel(tmp_path, "held", {"held/core.py": source("secret")})
    files = {f"big/{name}.py": source(name) for name in ("one", "two", "three", "four")}
    size = len(source("three"))
    sources = taken(tmp_path, monkeypatch, [wheel(tmp_path, "big", dict(files))], held, "--cap", str(2 * size))
    assert len(sources) == 2


def test_pieces_are_the_document_cut_at_ends_of_lines() -> None:
    text = "".join(f"строка {number}\n" for number in range(9_000)) + "no end"
    parts = list(pieces.pieces(text))
    assert "".join(parts) == text and len(parts) > 3
    assert all(part.endswith("\n") and len(part.encode()) >= pieces.PIECE_BYTES for part in parts[:-1])
    assert max(len(part.encode()) for part in parts) < pieces.PIECE_BYTES + 100


def test_unpacked_files_are_those_over_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wheel(tmp_path, "some", {"some/small.py": "x\n", "some/large.py": "y\n" * 50, "some/data.txt": "z" * 999})
    monkeypatch.setattr(sys, "argv", ["unpack_python", str(tmp_path / "files"), str(path), "--over", "50"])
    unpack_python.main()
    assert [file.name for file in (tmp_path / "files").rglob("*") if file.is_file()] == ["large.py"]
    assert "| some | 1.0 | 1 | 100 |" in capsys.readouterr().out
