"""Models under evaluation, ours and others', behind one protocol."""

from bltkit.compute import device_of
from bltkit.eval.subjects.byte_model import BATCH_BYTES, ByteModel
from bltkit.eval.subjects.subject import Subject
from bltkit.generate import Strategy

TOKEN = "token:"
MAX_BATCH = 10**9
"""Positions: more is a mistake."""


def open_subject(
    name: str,
    *,
    context: int | None = None,
    strategy: Strategy | None = None,
    batch: int | None = None,
    device: str = "cpu",
    weights: str | None = None,
    scorer_weights: str | None = None,
    backend: str = "eager",
) -> Subject:
    """`token:DIR` is a Hugging Face causal model with its tokenizer; anything else a BLT, as every verb names it.

    context: bytes that a model is shown at once, by default a training row's, else 2048. strategy: how a BLT writes.
    batch: positions that are computed at once, of bytes or tokens; it bounds memory. weights, scorer_weights: forms of
    a BLT's weights, as for `open_bundle`. backend: what runs a BLT's steps, as for `native.on_backend`.

    Raises ValueError where there is no such model, or it cannot do what is asked.
    """
    place = device_of(device)
    if batch is not None and not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch = {batch}: 1 to {MAX_BATCH:,} positions are computed at once")
    if not name.startswith(TOKEN):
        return ByteModel.load(
            name,
            context=context,
            strategy=strategy,
            batch_bytes=batch or BATCH_BYTES,
            device=place,
            weights=weights,
            scorer_weights=scorer_weights,
            backend=backend,
        )
    for option, form in {"weights": weights, "scorer_weights": scorer_weights}.items():
        if form is not None:
            raise ValueError(f"{option} = {form!r} is for byte models, and {name} is none; leave it out")
    if backend != "eager":
        raise ValueError(f"backend = {backend!r} is for byte models, and {name} is none; leave it out")
    if strategy is not None:
        raise ValueError(f"strategy {strategy.kind!r} is for byte models, and {name} is none; leave it out")
    from bltkit.eval.subjects.token_model import BATCH_TOKENS, TokenModel

    return TokenModel.load(name, context=context, batch_tokens=batch or BATCH_TOKENS, device=place)


__all__ = ["TOKEN", "ByteModel", "Subject", "open_subject"]
