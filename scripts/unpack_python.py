"""Python files of wheels, unpacked as `blt score` and scripts/compressors.py read them, and what they were.

Run:  python -m scripts.unpack_python OUT WHEEL ... [--over BYTES]
Writes OUT/PACKAGE/..., all `*.py` of the wheel that hold more than BYTES bytes (0), and prints a table row for each
package: version, files, bytes, and the SHA-256 of the list `SHA-256 of the file, two spaces, name`, a line each, sorted
by name. What a model card calls held out is fixed by that digest.
"""

import argparse
import hashlib
from pathlib import Path

from scripts.python_packages import files_of


def main() -> None:
    """Unpack, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--over", type=int, default=0, metavar="BYTES", help="only files of more bytes than this")
    arguments = parser.parse_args()
    print("| package | version | files | bytes | SHA-256 of the list of files |\n|---|---|---|---|---|")
    for wheel in sorted(arguments.wheels):
        label, version = wheel.name.split("-")[:2]
        files = {name: data for name, data in files_of(wheel) if name.endswith(".py") and len(data) > arguments.over}
        for name, data in files.items():
            path = arguments.out / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        size, digest = sum(map(len, files.values())), hashlib.sha256(lines.encode()).hexdigest()
        print(f"| {label} | {version} | {len(files)} | {size:,} | `{digest}` |")


if __name__ == "__main__":
    main()
