"""`python -m bltkit` is `blt`; so is `torchrun -m bltkit`, which starts it on many processes."""

from bltkit.cli import run

run()
