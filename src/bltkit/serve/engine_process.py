"""The process that owns the model: it loads it, then turns the scheduler until it is drained.

Signals are for the process that speaks HTTP, which says what is to be done. If that one is gone, this one ends.
"""

import gc
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection

from bltkit.serve.loading import describe, load
from bltkit.serve.messages import (
    Cancel,
    Drain,
    Drained,
    Figures,
    Order,
    Patch,
    Read,
    Ready,
    Refused,
    Report,
    Submit,
)
from bltkit.serve.scheduler import Scheduler
from bltkit.serve.settings import EngineSettings

REPORTS = 0.25
"""Seconds between two reports of figures, while something runs."""


def main(settings: EngineSettings, pipe: Connection) -> None:
    """The body of the process; orders come and events go through `pipe`, in lists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        scheduler = Scheduler(load(settings), settings.limits)
    except (ValueError, OSError) as error:
        pipe.send([Refused(" ".join(str(error).split()))])
        return
    # Python's collector would look through all that was imported and loaded, now and then, for as long as rounds take.
    gc.collect()
    gc.freeze()
    pipe.send([Ready(describe(settings, scheduler))])
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        run(scheduler, pipe)


def run(scheduler: Scheduler, pipe: Connection) -> None:
    """Turn until `Drained`. Raises EOFError or BrokenPipeError where nobody is at the other end any more."""
    reported, at = Figures(), 0.0
    while True:
        wanted = False
        # While there is something to compute it only looks; else it sleeps until an order or a deadline comes.
        wait = 0.0 if scheduler.busy else scheduler.seconds_left()
        while pipe.poll(wait):
            wait = 0.0
            for order in pipe.recv():
                wanted |= isinstance(order, Report)
                _follow(scheduler, order)
        events = scheduler.turn()
        drained = any(isinstance(event, Drained) for event in events)
        if wanted or drained or not scheduler.busy or time.monotonic() >= at + REPORTS:
            figures = scheduler.figures()
            if wanted or figures != reported:
                events.insert(0, figures)
                reported = figures
            at = time.monotonic()
        if events:
            pipe.send(events)
        if drained:
            return


def _follow(scheduler: Scheduler, order: Order) -> None:
    match order:
        case Submit():
            scheduler.submit(order)
        case Patch():
            scheduler.patch(order)
        case Cancel():
            scheduler.cancel(order.key)
        case Read():
            scheduler.read(order.key, order.choice, order.size)
        case Drain():
            scheduler.drain(order.seconds)
        case Report():
            pass
