"""A quiet start: libraries are told to be silent, and known noise of Ray's is left out of what a job says.

Every other line goes through as it came. Ray's C++ writes to the file descriptor of standard error. A process reads it,
so that the last words of a driver that crashes are told, too: python noise.py <file descriptor> < lines
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
    "RAY_DEDUP_LOGS_ALLOW_REGEX": r'^\{"hive_ray":',  # records of workers, each of which counts (`hive_ray.console`)
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line of a training worker twice
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What keeps libraries from talking over the stages' own lines; set otherwise, it stays as set."""
KNOWN_NOISE = (
    # Ray Data makes its actors so, and holds what it gave them for as long as they live.
    rb"core_worker\.cc:\d+: Actor with class name: 'MapWorker\(.* has constructor arguments in the object store and "
    rb"max_restarts > 0",
    # Beside an actor that controls a training: it asks a dashboard, which a cluster that is started here has not.
    rb"\(PlacementGroupCleaner.*Failed to query Ray Train Controller actor state",
)
NOISE = re.compile(b"|".join(KNOWN_NOISE))
END_MARKER = b"\0the job has ended\0\n"
"""What the job writes after its last words. Processes that outlive it, and hold its standard error, may write more."""
FLUSH_TIMEOUT_S = 5.0
POLL_S = 0.5
UNEXPLAINED_END = (
    b"Stopped: the job ended without a word, as where it is killed or its cluster is lost. What is finished stays: the "
    b"same command goes on from there\n"
)
CLEAR_LINE = b"\r\x1b[2K"
"""Puts a terminal's cursor at the start of an empty line: the driver draws its progress there again."""
SHOW_CURSOR = b"\x1b[?25h"
"""What a driver that was killed as it showed its progress leaves undone."""
_told: int | None = None
"""Has an end of file once this process's last words are told."""


def quiet_libraries(*, starts_cluster: bool) -> None:
    """Have the libraries of this process be silent. Most read their environment as they are imported, so before that.

    starts_cluster: the cluster will be one of this machine alone.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    if starts_cluster and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would else warn in each process that it has no GPU


@contextmanager
def filtering_known_noise() -> Iterator[None]:
    """As long as it lasts, lines of known noise on this process's standard error, and on that of processes that it
    starts, are not told."""
    global _told
    sys.stderr.flush()
    own = os.dup(2)
    _told, tells = os.pipe()
    reader = subprocess.Popen(
        [sys.executable, "-IS", __file__, str(tells)],
        stdin=subprocess.PIPE,
        stdout=own,
        pass_fds=[tells],
        start_new_session=True,  # no Ctrl-C of the terminal's: the last words come after it
    )
    os.close(tells)
    assert reader.stdin is not None  # it is a pipe
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        flush_stderr()
        os.dup2(own, 2)
        os.close(own)
        os.close(_told)
        _told = None


def flush_stderr() -> None:
    """Return once all is told that this process has written so far, before it ends or the lines go another way."""
    sys.stderr.flush()
    if _told is not None:
        with suppress(OSError):  # nobody reads any more
            os.write(2, END_MARKER)
        select.select([_told], [], [], FLUSH_TIMEOUT_S)


def exit_with(words: str, status: int) -> None:
    """End this process at once, with these as its last words, whatever its other threads would say."""
    sys.stdout.flush()
    sys.stderr.flush()
    own = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # where Ray tells of a raylet's end
    os.dup2(nowhere, 2)
    with suppress(OSError):
        os.write(own, f"{words}\n".encode() + (END_MARKER if _told is not None else b""))
    if _told is not None:
        select.select([_told], [], [], FLUSH_TIMEOUT_S)
    os._exit(status)


def main() -> None:
    """Pass lines through until nobody can write any more; close the file descriptor once the last words are told. Where
    the job ends without any, as Ray ends it at once when its cluster is lost, say what a person can do."""
    held, tells, job, ended = b"", int(sys.argv[1]), os.getppid(), False
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
            _tell([*(line + b"\n" for line in lines), end])
            _show_cursor()
            os.close(tells)
            ended = True
        *lines, held = held.split(b"\n")
        _tell([line + b"\n" for line in lines])
    _tell([held])
    if not ended:
        _show_cursor()
        _tell([UNEXPLAINED_END])


def _tell(lines: list[bytes]) -> None:
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
