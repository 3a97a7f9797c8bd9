"""A quiet start: silences libraries, and filters known messages of Ray from a job's standard error.

All other lines pass unchanged. Ray's C++ code writes to the file descriptor of standard error. A separate process reads
it, so that the last lines of a crashing driver also arrive: python noise.py <file descriptor> < lines
"""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

QUIET_ENVIRONMENT = {
    "DIFFUSERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "RAY_DEDUP_LOGS_ALLOW_REGEX": r'^\{"hive_ray":',  # records of workers are never duplicates (`hive_ray.console`)
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Ray would print every line of a training worker twice
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Variables that silence libraries. Variables that are already set are kept."""
KNOWN_NOISE = (
    # Harmless: Ray Data keeps the arguments of its actors for as long as they live.
    rb"core_worker\.cc:\d+: Actor with class name: 'MapWorker\(.* has constructor arguments in the object store and "
    rb"max_restarts > 0",
    # Harmless: it queries a dashboard, which a cluster that is started here does not have.
    rb"\(PlacementGroupCleaner.*Failed to query Ray Train Controller actor state",
)
NOISE = re.compile(b"|".join(KNOWN_NOISE))
"""Lines that are dropped."""
END_MARKER = b"\0the job has ended\0\n"
"""The job writes this after its last line. Processes that outlive it may still write to its standard error."""
FLUSH_TIMEOUT_S = 5.0
"""Seconds to wait until the last lines have been printed."""
POLL_S = 0.5
"""Seconds between checks whether the job is alive."""
UNEXPLAINED_END = (
    b"Stopped: the job ended without a message: it was killed, or its cluster was lost. What is finished stays: the "
    b"same command goes on from there\n"
)
CLEAR_LINE = b"\r\x1b[2K"
"""Clears the current line of a terminal. The driver draws its progress there again."""
SHOW_CURSOR = b"\x1b[?25h"
"""Shows the cursor again, which a driver hides while it shows progress."""
_printed: int | None = None
"""A pipe that reaches its end once the last lines of this process have been printed."""


def quiet_libraries(*, starts_cluster: bool) -> None:
    """Silence the libraries of this process. Call it before they are imported, when most read their environment.

    starts_cluster: the cluster will consist of this machine only.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    if starts_cluster and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns in each process that there is no GPU


@contextmanager
def filtering_known_noise() -> Iterator[None]:
    """Inside this context, drop NOISE from the standard error of this process and of processes that it starts."""
    global _printed
    sys.stderr.flush()
    own = os.dup(2)
    _printed, printed_end = os.pipe()
    reader = subprocess.Popen(
        [sys.executable, "-IS", __file__, str(printed_end)],
        stdin=subprocess.PIPE,
        stdout=own,
        pass_fds=[printed_end],
        start_new_session=True,  # it must not receive Ctrl-C, since the last lines come after that
    )
    os.close(printed_end)
    assert reader.stdin is not None  # it is a pipe
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        flush_stderr()
        os.dup2(own, 2)
        os.close(own)
        os.close(_printed)
        _printed = None


def flush_stderr() -> None:
    """Wait until everything that this process has written to standard error is printed."""
    sys.stderr.flush()
    if _printed is not None:
        with suppress(OSError):  # the reader has ended
            os.write(2, END_MARKER)
        select.select([_printed], [], [], FLUSH_TIMEOUT_S)


def exit_with(words: str, status: int) -> None:
    """Exit immediately with `words` as the last line of standard error. Output of other threads is discarded."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # Ray reports the end of a raylet there
    os.dup2(nowhere, 2)
    with suppress(OSError):
        os.write(own, f"{words}\n".encode() + (END_MARKER if _printed is not None else b""))
    if _printed is not None:
        select.select([_printed], [], [], FLUSH_TIMEOUT_S)
    os._exit(status)


def main() -> None:
    """Pass lines on until no process can write any more, and close the file descriptor after END_MARKER.

    If the job ends without END_MARKER, print UNEXPLAINED_END. Ray ends a driver that way when its cluster is lost.
    """
    held = b""
    printed_end = int(sys.argv[1])
    job = os.getppid()
    ended = False
    while True:
        if not select.select([0], [], [], POLL_S)[0]:
            if not ended and os.getppid() != job:
                break
            continue
        block = os.read(0, 2**16)
        if not block:
            break
        held += block
        if END_MARKER in held:
            last, _, held = held.partition(END_MARKER)
            *lines, end = last.split(b"\n")
            _print([*(line + b"\n" for line in lines), end])
            _show_cursor()
            os.close(printed_end)
            ended = True
        *lines, held = held.split(b"\n")
        _print([line + b"\n" for line in lines])
    _print([held])
    if not ended:
        _show_cursor()
        _print([UNEXPLAINED_END])


def _print(lines: list[bytes]) -> None:
    _write(b"".join(line for line in lines if not NOISE.search(line)))


def _write(words: bytes) -> None:
    if words and _on_terminal():
        words = CLEAR_LINE + words
    while words:
        words = words[os.write(1, words) :]


def _show_cursor() -> None:
    if _on_terminal():
        os.write(1, SHOW_CURSOR)


def _on_terminal() -> bool:
    return os.isatty(1) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


if __name__ == "__main__":
    main()
