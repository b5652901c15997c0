"""`blt convert --weights`: the large matrices in another form, computed slice by slice while they are written."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bltkit.checkpoint.names import ROUNDED, rooms, rounded_names
from bltkit.checkpoint.stored import DTYPES, rounded, stored_matrices
from bltkit.convert.source_checkpoint import Source
from bltkit.convert.stream import Computed, Stack, Written, dtype_of, shape_of
from bltkit.model.quantize import KINDS, Matrix, WeightForm


def in_form(source: Source, form: WeightForm | None, to: str) -> Source:
    """The checkpoint with the large matrices of its BLT (or of a scorer that stands alone) in a form; None: as it is.

    to: the layout that is to be written. Raises ValueError for a form that this cannot hold, and for weights that are
    rounded already.
    """
    stored = source.weights
    if stored in ROUNDED and form not in (None, stored):
        raise ValueError(f"weights = {form!r}: the source stores {stored}, which lost the rest; convert the original")
    kept = form or stored
    if to != "ours" and kept in ROUNDED:
        raise ValueError(f"weights in {kept} have no place in layout {to!r}; convert this checkpoint to 'ours' only")
    if form is None or form == stored:
        return source
    if to == "meta":
        raise ValueError(f"weights = {form!r}: layout 'meta' takes weights as they are; convert to 'hf' with it first")
    tensors = dict(source.tensors)
    for base, parts, shape in stored_matrices(next(rooms(source.bundle.model, source.bundle.scorer)), form):
        matrix = Matrix([tensor for part in parts for tensor in _stack(tensors[part.name])], torch.device("cpu"))
        if form in ROUNDED:
            for part in parts:
                del tensors[part.name]
            tensors |= _rounded(base, matrix, form, tuple(shape))
        elif form == "fp32" or KINDS[form].fits(matrix):
            tensors |= {part.name: _cast(tensors[part.name], DTYPES[form]) for part in parts}
    weights = None if form == "fp32" else form
    return replace(source, tensors=tensors, config=None, weight_files=(), weights=weights)


def _stack(tensor: Written) -> Stack:
    assert not isinstance(tensor, Computed)
    return tensor


def _cast(tensor: Written, dtype: torch.dtype) -> Written:
    stack = _stack(tensor)
    if dtype_of(stack) == dtype:
        return stack
    whole = Matrix(stack, torch.device("cpu"))
    return Computed(dtype, shape_of(stack), lambda: (rows.to(dtype) for rows in whole.slices()))


def _rounded(base: str, matrix: Matrix, form: WeightForm, shape: tuple[int, ...]) -> dict[str, Written]:
    """The tensors of a rounded matrix; each computes the rounding again, so that none is held."""
    likes = rounded(torch.zeros(1, shape[1]), form)
    return {
        name: Computed(like.dtype, (shape[0], *like.shape[1:]), _slices_of(matrix, form, index))
        for index, (name, like) in enumerate(zip(rounded_names(base, form), likes, strict=True))
    }


def _slices_of(matrix: Matrix, form: WeightForm, index: int) -> Callable[[], Iterator[Tensor]]:
    return lambda: (rounded(rows, form)[index] for rows in matrix.slices())
