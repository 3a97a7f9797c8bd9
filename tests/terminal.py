"""A terminal: what a command writes to it, and what a person sees there in the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence

CONTROL = re.compile(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+")


def run_on_terminal(command: Sequence[str], *, columns: int = 80, rows: int = 40, **variables: str) -> tuple[int, str]:
    """The exit status of a command, and all that it wrote to a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment | {"TERM": "xterm"} | variables,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 2**16)
        except OSError:  # all who wrote have ended
            break
        if not block:
            break
        written += block
    os.close(ours)
    return process.wait(), written.decode()


def screen(written: str) -> list[str]:
    """The lines that stand on a terminal of unlimited size after all was written, without empty ones at the end."""
    lines, row, column = [""], 0, 0
    for token in CONTROL.findall(written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token.startswith("\x1b[") and token.endswith("A"):
            row -= int(token[2:-1] or 1)
        elif not token.startswith("\x1b"):
            before = lines[row].ljust(column)
            lines[row] = before[:column] + token + before[column + len(token) :]
            column += len(token)
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")
