"""Forms of weights as checkpoints store them: which matrices, under which names, as which tensors.

A stored form rounds the large matrices of the BLT, or of a scorer that stands alone; everything else keeps its dtype,
the scorer of a BLT too. So a model that was stored in a form is the one that is loaded in it.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bltkit.checkpoint.names import ROUNDED, Room, TensorPart, rounded_names
from bltkit.model.formed import KINDS
from bltkit.model.quantize import MIN_ELEMENTS, Matrix, WeightForm, linears_of, parse_form
from bltkit.model.rounding import fill_rows, round_int4, round_int8, to_nibbles

DTYPES: Mapping[WeightForm, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of matrices in the forms that are stored as plain numbers."""


def parse_stored(name: str) -> WeightForm:
    """A form that can be stored, by its name. Raises ValueError for another one."""
    form = parse_form(name)
    if form not in ROUNDED and form not in DTYPES:
        raise ValueError(f"weights = {name!r} is a layout of this machine's memory; store fp32, which it is made of")
    return form


def stored_matrices(room: Room, form: WeightForm) -> Iterator[tuple[str, tuple[TensorPart, ...], torch.Size]]:
    """The matrices of a module that a form applies to: beginning of their own names, parts in the file, shape."""
    for _, path, linear in linears_of(room.module):
        shape = linear.weight.shape
        if shape.numel() >= MIN_ELEMENTS and (form not in ROUNDED or KINDS[form].fits(Matrix.of(linear.weight))):
            yield room.rounded + path, room.parts(f"{path}.weight", shape), shape


def rounded(rows: Tensor, form: WeightForm) -> tuple[Tensor, ...]:
    """The tensors that hold some rows of a matrix in fp32: those of `ROUNDED`."""
    if form == "int8":
        return round_int8(rows)
    steps, scales, zeros = round_int4(rows)
    return to_nibbles(steps), scales, zeros


def rounded_matrix(base: str, matrix: Matrix, form: WeightForm) -> dict[str, Tensor]:
    """The tensors that hold a matrix, by their names. base: the beginning of these."""
    targets = [
        torch.empty(matrix.shape[0], *like.shape[1:], dtype=like.dtype)
        for like in rounded(torch.zeros(1, matrix.shape[1]), form)
    ]
    fill_rows(targets, matrix, lambda rows: rounded(rows, form))
    return dict(zip(rounded_names(base, form), targets, strict=True))
