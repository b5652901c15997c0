"""Generation: `Session` holds one growing sequence, `Sampling` picks a byte, `generate` joins the two."""

from bltkit.generate.engine import Chunk, Finish, StopStrings, generate
from bltkit.generate.ledger import Passes, Stats
from bltkit.generate.sampling import Sampling
from bltkit.generate.session import Session

__all__ = ["Chunk", "Finish", "Passes", "Sampling", "Session", "Stats", "StopStrings", "generate"]
