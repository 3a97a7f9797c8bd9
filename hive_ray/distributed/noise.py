"""Known noise of Ray's is left out of what a job says; every other line goes through as it came.

Ray's C++ writes to the file descriptor of standard error. A process reads it, so that the last words of a driver that
crashes are told, too: python noise.py < lines
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

KNOWN = (
    # Ray Data makes its actors so, and holds what it gave them for as long as they live.
    rb"core_worker\.cc:\d+: Actor with class name: 'MapWorker\(.* has constructor arguments in the object store and "
    rb"max_restarts > 0",
)
NOISE = re.compile(b"|".join(KNOWN))
LAST_LINES_S = 5.0
"""How long the last lines may take to be told, where a process that outlives the job holds its standard error."""


@contextmanager
def without_known_noise() -> Iterator[None]:
    """As long as it lasts, lines of known noise on this process's standard error, and on that of processes that it
    starts, are not told."""
    sys.stderr.flush()
    own = os.dup(2)
    reader = subprocess.Popen(
        [sys.executable, "-IS", __file__],
        stdin=subprocess.PIPE,
        stdout=own,
        start_new_session=True,  # no Ctrl-C of the terminal's: the last words come after it
    )
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
        with suppress(subprocess.TimeoutExpired):
            reader.wait(LAST_LINES_S)


def main() -> None:
    """Pass lines through, until nobody writes any more. A line that is not ended yet may be a question, or the last."""
    held = b""
    while block := os.read(0, 2**16):
        *lines, held = (held + block).split(b"\n")
        told = b"".join(line + b"\n" for line in lines if not NOISE.search(line))
        if told:
            os.write(1, told)
    if held:
        os.write(1, held)


if __name__ == "__main__":
    main()
