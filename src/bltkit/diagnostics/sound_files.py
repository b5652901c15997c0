"""The files of a directory against what its manifest says: the first finding of `blt check`.

Each kind of directory knows its own files: checkpoints (`bltkit.checkpoint.intact`), what a run resumes from
(`bltkit.checkpoint.checksums`), annotated shards (`bltkit.data.sources.shards`) and mapped corpora
(`bltkit.data.store`). Everything is read, nothing is changed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bltkit.checkpoint import MANIFEST, damages, listed_files
from bltkit.checkpoint.checksums import (
    CHECKSUMS,
    POSITION,
    DamagedCheckpointError,
    damaged_files,
    read_checksums,
    training_checkpoints,
)
from bltkit.data import store
from bltkit.data.sources import shards
from bltkit.diagnostics.finding import Finding
from bltkit.files import read_json, require_regular

Tell = Callable[[int, int], None]
"""Told (bytes read, bytes in all)."""

_SHOWN = 3
_TRAINING = "training state"


def checkpoint_finding(directory: Path, tell: Tell = lambda done, total: None) -> Finding:
    """Every file that bltkit.json lists, and bltkit.json itself."""
    try:
        files = listed_files(directory)
    except (OSError, ValueError) as error:
        return _finding([str(error)], "an intact bltkit.json")
    if not files:
        return Finding(
            "files",
            "warning",
            None,
            f"a {MANIFEST} that lists the files with their sha256",
            "a checkpoint of another program, which keeps no checksums: a damaged file would not be noticed",
            "compare the files with where they come from; `blt convert` writes a copy that lists them",
        )
    return _finding(list(damages(directory, files, tell)), f"{len(files)} files with the sha256 that {MANIFEST} lists")


def training_finding(directory: Path, tell: Tell = lambda done, total: None) -> Finding | None:
    """Every file of a training checkpoint, or of all complete ones of a run: tensors, position and model.

    None for a directory that no run goes on from. Raises ValueError for a list that a newer version wrote.
    """
    checkpoints = training_checkpoints(directory)
    if not checkpoints:
        return None
    damaged: list[str] = []
    unlisted: list[str] = []
    lists: list[tuple[Path, dict[str, Any]]] = []
    for checkpoint in checkpoints:
        try:
            checksums = read_checksums(checkpoint)
        except DamagedCheckpointError as error:
            damaged.append(f"{checkpoint}: {error.reason}")
            continue
        if checksums is not None:
            lists.append((checkpoint, checksums))
        elif _keeps_checksums(checkpoint):
            damaged.append(f"{checkpoint}: {CHECKSUMS} is missing")
        else:
            unlisted.append(checkpoint.name)
    total, done = sum(int(entry["bytes"]) for _, listed in lists for entry in listed["files"].values()), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        tell(done, total)

    for checkpoint, listed in lists:
        lines = [f"{checkpoint}: {fault}" for fault in damaged_files(checkpoint, listed, count)]
        damaged += lines if checkpoint.exists() else []  # a run that goes on meanwhile removes old ones
    expected = f"{len(checkpoints)} training checkpoints with the sha256 that {CHECKSUMS} lists"
    if unlisted and not damaged:
        return Finding(
            _TRAINING,
            "warning",
            None,
            expected,
            f"version 0.1.0 wrote {', '.join(unlisted[:_SHOWN])}, without checksums: damage would not be noticed",
            "resume the run; the checkpoints that it writes from then on have them",
        )
    remedy = "remove the damaged step-XXXXXXXX, or leave it: `blt train --resume` goes on from the newest sound one"
    return _finding(damaged, expected, _TRAINING, remedy)


def _keeps_checksums(checkpoint: Path) -> bool:
    """False for what version 0.1.0 wrote."""
    try:
        position = read_json(checkpoint / POSITION)
    except (OSError, ValueError):
        return True
    return not isinstance(position, dict) or position.get("format", 1) != 1


def data_findings(directory: Path, tell: Tell = lambda done, total: None) -> tuple[Finding, ...] | None:
    """Of a directory of annotated shards, of a mapped corpus, or of a cache that holds some; None for any other.

    Raises ValueError for a manifest that cannot be read.
    """
    corpora = [directory] if (directory / store.MANIFEST).is_file() else sorted(directory.glob("corpus-*/"))
    corpora = [folder for folder in corpora if (folder / store.MANIFEST).is_file()]
    if corpora == [directory] and _is_annotation(directory):
        return (_finding(list(shards.damages(directory, tell)), f"every shard with the sha256 of {shards.MANIFEST}"),)
    return tuple(_corpus_findings(corpora, tell)) or None


def _is_annotation(directory: Path) -> bool:
    path = directory / shards.MANIFEST
    require_regular(path)
    manifest = read_json(path, escaped_bytes=True)
    return isinstance(manifest, dict) and "columns" not in manifest


def _corpus_findings(folders: list[Path], tell: Tell) -> Iterator[Finding]:
    for folder in folders:
        lines = list(store.damages(folder, tell))
        if not lines and not store.has_checksums(folder):
            yield Finding(
                "files",
                "warning",
                None,
                f"checksums in {folder}",
                "version 0.1.0 laid the corpus down, without checksums: damage would not be noticed",
                "remove the folder; the next training makes it again",
            )
        else:
            yield _finding(lines, f"every block of {folder} with its checksum")


def _finding(
    lines: list[str],
    expected: str,
    name: str = "files",
    remedy: str = "copy or fetch the files again, or take another checkpoint",
) -> Finding:
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return Finding(
        name,
        "problem" if lines else "ok",
        float(len(lines)),
        f"{expected}: {'; '.join(lines[:_SHOWN])}{more}" if lines else expected,
        "the disk, a copy or a download damaged the files, or somebody changed them; nothing else was checked",
        remedy,
    )
