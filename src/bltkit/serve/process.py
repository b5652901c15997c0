"""The process that owns the model: it loads it, then turns the scheduler until it is drained."""

from multiprocessing.connection import Connection

from bltkit.serve.messages import Refused
from bltkit.serve.settings import EngineSettings


def main(settings: EngineSettings, pipe: Connection) -> None:
    """The body of the process; orders come and events go through `pipe`."""
    pipe.send([Refused("the engine is not written yet")])
