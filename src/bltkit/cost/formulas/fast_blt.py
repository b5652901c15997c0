"""Memory traffic and passes of decoding as Fast BLT estimates them.

The paper charges an encoder pass with every global pass and leaves the entropy model out. What decoding really reads is
counted in generate/ledger.py.
"""

from dataclasses import dataclass

from bltkit.cost.formulas.parameters import count_parameters
from bltkit.model import Blt

GB = 1e9


def paper_gb(
    decoder_passes: float, encoder_passes: float, decoder_params: float, other_params: float, param_bytes: float = 2
) -> float:
    """Memory bandwidth as Fast BLT estimates it, in GB: b [N_dec P_dec + N_enc (P_enc + P_glob)] / 1e9.

    decoder_passes, encoder_passes: N, of one output; the mean where there are several. The paper counts encoder and
    global transformer together.
    decoder_params, other_params: P_dec; P_enc + P_glob.
    param_bytes: b, of one parameter.
    """
    return param_bytes * (decoder_passes * decoder_params + encoder_passes * other_params) / GB


@dataclass(frozen=True)
class PaperPasses:
    """Passes that the paper's accounting charges for one output, as means: fractions are meant."""

    rounds: float
    decoder: float
    encoder: float
    """Of encoder and global transformer."""


def paper_passes(
    num_bytes: int, drafted: float, acceptance: float, decoder_per_round: float, latent_reuse: bool = False
) -> PaperPasses:
    """The round model of drafting and verification: rounds = L / (acc B + 1).

    The paper charges two passes of encoder and global transformer a round, one to draft and one to verify. The
    latents that verification makes serve the next draft as well (`latent_reuse`): then it is one.

    num_bytes: L, made in all. drafted: B or k, a round. acceptance: share of drafted bytes that are kept, 0 to 1.
    decoder_per_round: k + 1 where the decoder drafts byte by byte, unmasking steps + 1 where it fills blocks.

    Raises ValueError for an acceptance beyond 0 to 1 or a negative number.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance = {acceptance}: must be a share from 0 to 1")
    if min(num_bytes, drafted, decoder_per_round) < 0:
        raise ValueError(
            f"num_bytes = {num_bytes}, drafted = {drafted}, decoder_per_round = {decoder_per_round}: "
            "each must be 0 or more"
        )
    rounds = num_bytes / (acceptance * drafted + 1)
    return PaperPasses(rounds, rounds * decoder_per_round, rounds * (1 if latent_reuse else 2))


def paper_params(model: Blt) -> tuple[int, int]:
    """P_dec and P_enc + P_glob. A byte table that the decoder has of its own is looked up, as the encoder's tables
    are: none of them counts."""
    decoder = count_parameters(model.decoder) - (
        0 if model.decoder.bytes is None else count_parameters(model.decoder.bytes)
    )
    return decoder, count_parameters(model.encoder) + count_parameters(model.latent)
