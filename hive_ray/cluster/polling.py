"""Calls a function at intervals in a thread, while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polling(check: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `check` every `every_s` seconds in a thread until the block ends, for the first time after `every_s`."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            check()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
