"""Files that come along with a checkpoint unchanged: the licence always, model card and tokenizer where they apply."""

import filecmp
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from bltkit.checkpoint import MANIFEST
from bltkit.checkpoint.card_mark import CARD, is_generated
from bltkit.checkpoint.checksums import CHECKSUMS, POSITION
from bltkit.checkpoint.licences import is_licence
from bltkit.checkpoint.sealing import CONFIG
from bltkit.checkpoint.weights import INDEX, PICKLES
from bltkit.convert.source_checkpoint import Source
from bltkit.files import LOCK_FILES

_APART = frozenset({CONFIG, MANIFEST, POSITION, CHECKSUMS, INDEX, *LOCK_FILES})


def licences(folders: Iterable[Path]) -> dict[str, Path]:
    """Licence files of several folders, by the names that they get; two of one name and other content stay apart."""
    result: dict[str, Path] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for path in sorted(folder.iterdir()):
            if not path.is_file() or not is_licence(path.name):
                continue
            name = path.name
            if name in result and not filecmp.cmp(path, result[name], shallow=False):
                name = f"{folder.name}-{name}"
            result.setdefault(name, path)
    return result


def companions(directory: Path) -> Mapping[str, Path]:
    """Everything in a checkpoint of ours or of Hugging Face's but the checkpoint itself; no folders, no pickles.

    A model card that nobody has edited is left out: the target gets its own.
    """
    return {
        path.name: path
        for path in sorted(directory.iterdir())
        if path.is_file()
        and path.name not in _APART
        and not path.name.startswith(".")
        and not (path.name == CARD and is_generated(path))
        and path.suffix not in (*PICKLES, ".safetensors")
    }


def copy_companions(source: Source, directory: Path, *, terms_only: bool) -> tuple[str, ...]:
    """Copy them, or the licences alone; returns their names. Raises OSError."""
    names = [name for name in source.companions if is_licence(name) or not terms_only]
    for name in names:
        shutil.copyfile(source.companions[name], directory / name)
    return tuple(names)
