"""Python source of open-source packages as training text, one document a file.

Run:  python -m scripts.python_packages OUT.jsonl WHEEL_OR_FOLDER ... --held-out WHEEL_OR_FOLDER ...
Part of the recipe of `bltkit:tiny`. Left out are tests, copies of other packages, packages whose licence is not
permissive, files that are no UTF-8, very short or very long, tables of numbers, exact duplicates, and every file that
shares more than a tenth of its lines with a held-out package. A package gives at most `--cap` bytes; which of its files
follows from their content. Prints what was left out, and why.
"""

import argparse
import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from bltkit.data import parse_source

TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
COPIES = re.compile(r"_?vendor(ed|ized)?|_?third_?party|extern(al|als)?|_internal|packages")
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|Zope|ZPL|HPND|Unlicense)"
)
COPYLEFT = re.compile(r"\b(A?L?GPL|GNU|MPL|Mozilla|EPL|CC-BY|Commons)|Proprietary", re.IGNORECASE)
MIN_BYTES, MAX_BYTES = 500, 200_000
LINE_CHARACTERS = 20
SHARED = 0.1


def files_of(package: Path) -> Iterator[tuple[str, bytes]]:
    """Names, with forward slashes, and contents of a wheel or folder's Python files and metadata, by name."""
    wanted = (".py", ".dist-info/METADATA")
    if package.is_dir():
        for path in sorted(package.rglob("*")):
            if path.is_file() and path.as_posix().endswith(wanted):
                yield path.relative_to(package).as_posix(), path.read_bytes()
        return
    with zipfile.ZipFile(package) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(wanted):
                yield name, wheel.read(name)


def permissive(metadata: str) -> bool:
    """Whether a package's METADATA names a permissive licence and no other; of `A OR B` one is enough."""
    header = HeaderParser().parsestr(metadata)
    expression = header.get("License-Expression") or ""
    if not expression:
        names = [name for name in header.get_all("Classifier") or [] if name.startswith("License ::")]
        expression = " ".join(names) or (header.get("License") or "")[:100]
    choices = re.split(r"\bOR\b", expression.replace("OSI Approved ::", ""))
    return any(PERMISSIVE.search(choice) and not COPYLEFT.search(choice) for choice in choices)


def long_lines(text: str) -> set[str]:
    """The distinct lines that say something: stripped, longer than 20 characters."""
    return {line for line in map(str.strip, text.splitlines()) if len(line) > LINE_CHARACTERS}


def fault(name: str, data: bytes, held: set[str]) -> str | None:
    """Why a file is no training text; None where it is."""
    folders = PurePosixPath(name).parts[:-1]
    if any(folder in TESTS for folder in folders):
        return "test"
    if any(COPIES.fullmatch(folder.lower()) for folder in folders):
        return "copy of another package"
    if not MIN_BYTES <= len(data) <= MAX_BYTES:
        return "size"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "no UTF-8"
    characters = "".join(text.split())
    if sum(map(str.isdigit, characters)) > 0.2 * len(characters) or len(text) > 100 * (text.count("\n") + 1):
        return "table"
    lines = long_lines(text)
    return "in a held-out package" if len(lines & held) > SHARED * len(lines) else None


def main() -> None:
    """Write the documents, package after package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("packages", type=Path, nargs="*", help="wheels or folders")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="packages that are evaluated on")
    parser.add_argument("--cap", type=int, default=3_000_000, help="bytes of one package")
    parser.add_argument("--stdlib", action="store_true", help="the running Python's standard library, without a cap")
    arguments = parser.parse_args()
    held = set[str]().union(
        *(
            long_lines(data.decode("utf-8", "replace"))
            for package in arguments.held_out
            for _, data in files_of(package)
        )
    )
    names = {package.name.split("-")[0].lower() for package in arguments.held_out}
    packages = {package.name.split("-")[0]: package for package in sorted(arguments.packages)}
    left_out, seen, rows = Counter[str](), set[bytes](), list[str]()

    def take(label: str, files: dict[str, bytes], cap: int | None) -> None:
        digests, kept = {name: hashlib.sha256(data).digest() for name, data in files.items()}, 0
        for name in sorted(files, key=lambda name: digests[name]):
            why = fault(name, files[name], held)
            why = why or ("duplicate" if digests[name] in seen else None)
            why = why or ("cap" if cap is not None and kept + len(files[name]) > cap else None)
            if why is not None:
                left_out[why] += 1
                continue
            seen.add(digests[name])
            kept += len(files[name])
            rows.append(json.dumps({"text": files[name].decode("utf-8"), "source": f"{label}/{name}"}))
        print(f"{label}: {kept} bytes")

    if arguments.stdlib:
        take("stdlib", {document.name: document.data for document in parse_source("stdlib").documents()}, None)
    for label, package in packages.items():
        files = dict(files_of(package))
        metadata = [files.pop(name).decode("utf-8", "replace") for name in list(files) if name.endswith("METADATA")]
        if label.lower() in names:
            print(f"{label}: held out")
        elif all(map(permissive, metadata)):
            take(label, files, arguments.cap)
        else:
            print(f"{label}: no permissive licence")
    arguments.out.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows)} documents; left out: {dict(left_out)}")


if __name__ == "__main__":
    main()
