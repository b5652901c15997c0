"""Meta's original layout: `blt_1b/{params.json, consolidated.pth}` and `entropy_model/` with the same two files."""

from pathlib import Path

from bltkit.convert.fields import read_fields
from bltkit.convert.meta import (
    ENTROPY,
    PARAMS,
    PICKLES,
    ModelPart,
    find_entropy,
    meta_tensors,
    read_meta,
    read_tensors,
    write_entropy,
    write_texts,
)
from bltkit.convert.pickles import write_pickle
from bltkit.convert.source_checkpoint import Counter, Source, Writer

NAME = "meta-pth"
_FOLDER, _SECTION = "blt", "model"


def is_meta_pth(directory: Path) -> bool:
    """Is it a folder of this layout, or one that holds such a folder."""
    return (directory / PARAMS).exists() or bool(_model_folders(directory, None))


def open_meta_pth(directory: Path, entropy: Path | None, counter: Counter) -> Source:
    """The checkpoint in a folder of this layout: that of the model, or one that holds it and the entropy model.

    Raises ValueError with one line.
    """
    folder = directory if (directory / PARAMS).exists() else _model_folder(directory, entropy)
    scores = find_entropy(directory if (directory / ENTROPY).is_dir() else folder, entropy)
    root, text = read_fields(folder / PARAMS)
    if _SECTION not in root.data and "entropy_model" in root.data:
        raise ValueError(
            f"{folder} holds an entropy model alone; name the folder of the BLT, and this one with --entropy DIR"
        )
    args = root.inside(_SECTION)
    part = ModelPart(NAME, folder, PARAMS, text, root, args, read_tensors(folder, counter))
    return read_meta(part, directory, scores, counter)


def meta_pth_writer(source: Source) -> Writer:
    """The writer of a checkpoint in this layout. Raises ValueError where the layout cannot hold it."""
    texts, tensors = write_texts(source, PARAMS, _SECTION), meta_tensors(source, entropy=False)

    def write(directory: Path, counter: Counter) -> None:
        folder = directory / _FOLDER
        folder.mkdir()
        (folder / PARAMS).write_bytes(texts[PARAMS].encode())
        write_pickle(folder / PICKLES[0], tensors)
        counter.tell(sum(tensor.nbytes for tensor in tensors.values()))
        write_entropy(directory, source, texts, counter)

    return write


def _model_folder(directory: Path, entropy: Path | None) -> Path:
    folders = _model_folders(directory, entropy)
    if len(folders) > 1:
        names = " and ".join(folder.name for folder in folders)
        raise ValueError(f"{directory} holds {names}; name one of the folders, such as {folders[0]}")
    if not folders:
        raise ValueError(f"{directory} holds no folder with {PARAMS} but the entropy model's; fetch the BLT too")
    return folders[0]


def _model_folders(directory: Path, entropy: Path | None) -> list[Path]:
    apart = {(directory / ENTROPY).resolve(), *([] if entropy is None else [entropy.resolve()])}
    return sorted(path.parent for path in directory.glob(f"*/{PARAMS}") if path.parent.resolve() not in apart)
