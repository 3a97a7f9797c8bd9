"""Two sides by turns of a few seconds: both live at once, and one of them, with all that it has started, stands still.

A machine whose speed changes from minute to minute, as shared ones do, meets both alike.
"""

import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection

import psutil

SLICE_S = 4.0
"""Much longer than what a side makes between two marks."""
Marks = Iterable[tuple[int, float]]
"""(rows so far, time.perf_counter()) after each step."""


def in_slices(first: Callable[[], Marks], second: Callable[[], Marks]) -> tuple[float, float]:
    """Rows/s of `first`, in a process of its own, and of `second`, which goes on until `first` has ended."""
    sides = [_Side(first), _Side(second)]
    try:
        for side in itertools.cycle(sides):
            side.signal(signal.SIGCONT)
            side.collect(SLICE_S)
            side.signal(signal.SIGSTOP)
            if not sides[0].lives:  # at once: a stop shorter than the others could not be told from a slow step
                break
            if not sides[1].lives:
                raise RuntimeError("the second side ended before the first; what it said of that stands above")
    finally:
        for side in sides:
            side.signal(signal.SIGKILL)
    ours, theirs = (side.marks for side in sides)
    return _rate(ours), _rate(theirs[-len(ours) :])


class _Side:
    def __init__(self, function: Callable[[], Marks]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.marks: list[tuple[int, float]] = []
        self.receiving, sending = spawn.Pipe(duplex=False)
        self.process = spawn.Process(target=_send, args=(function, sending))
        self.process.start()
        sending.close()
        self.signal(signal.SIGSTOP)
        self.lives = True

    def signal(self, number: int) -> None:
        """To the process and all that it has started."""
        try:
            process = psutil.Process(self.process.pid)
            tree = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    def collect(self, seconds: float) -> None:
        """Take marks for so long, or until its end."""
        until = time.monotonic() + seconds
        while self.lives and self.receiving.poll(max(0.0, until - time.monotonic())):
            try:
                self.marks.append(self.receiving.recv())
            except EOFError:
                self.lives = False


def _send(function: Callable[[], Marks], to: Connection) -> None:
    for mark in function():
        to.send(mark)


def _rate(marks: list[tuple[int, float]]) -> float:
    """Rows/s of all steps in which the side did not stand still, less the first."""
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks[1:])]
    whole = [(rows, seconds) for rows, seconds in steps if seconds < SLICE_S / 2]
    if not whole:
        raise RuntimeError("a side ended before its third step; what it said of that stands above")
    return sum(rows for rows, _ in whole) / sum(seconds for _, seconds in whole)
