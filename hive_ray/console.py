"""What hive_ray says. Every line is a record, and the command line decides how records are shown.

    say(...) in a worker -> a line of JSON on its standard output -> Ray's log monitor -> the driver's sys.stdout
    the driver's sys.stdout, say(...) in the driver -> Console -> its real standard output

`open_console` opens a console for a command. It shows records as text, with progress as one line that rewrites itself
on a terminal, or as one JSON object a line. Without a console, as in tests and notebooks, a record is printed as text.
"""

import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Level = Literal["progress", "info", "warning", "error", "result", "end"]
"""A result is what a stage made or found. An end is not shown: a worker has said everything about the work it names."""
LogFormat = Literal["text", "json"]

RECORDS = "HIVE_RAY_RECORDS"
"""Set by a driver's console for its workers, which then print records: the seconds between two of progress."""
RECORD_KEY = "hive_ray"
RECORD_START = f'{{"{RECORD_KEY}":'
"""How the line of a record begins that a worker prints."""
PROGRESS_S = 10.0
"""Seconds between two lines of progress, where such a line stays."""
REWRITE_S = 1.0
"""Seconds between two states of the line that rewrites itself."""
LATE_S = 10.0
"""How long a command waits for the last lines of its workers, in seconds."""
WORKER_PREFIX = re.compile(r"\((?P<worker>[^\n]*?\bpid=\d+(?:, ip=(?P<ip>[^)\s]+))?)\) ")
"""How Ray begins a line of a worker's."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RETRY_NOTICE = re.compile(r"\(raylet\) Task (?P<task>\S+) failed\. There are .* retries remaining.*?Error: (?P<why>.*)")
"""What Ray says where a worker was lost and its work is done again."""


@dataclass(frozen=True)
class Record:
    """One thing that is said."""

    level: Level
    message: str
    stage: str = ""
    """The table, model or stage that it is about."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Of progress: done, total, unit, rate (units a second) and left (seconds); the last two are None at the start."""
    time: float = field(default_factory=time.time)
    worker: str = ""
    """The worker that said it, as Ray names it; empty for the driver."""

    @property
    def text(self) -> str:
        """The line for people."""
        return f"{self.stage}: {self.message}" if self.stage else self.message

    def as_json(self, stage: str) -> str:
        """The line for programs; `stage` stands where the record names none."""
        shown = {
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds"),
            "level": self.level,
            "stage": self.stage or stage,
            "message": self.message.strip("\n"),
            **self.counts,
        }
        if self.worker:
            shown["worker"] = self.worker
        return json.dumps(shown, ensure_ascii=False)

    def as_line(self) -> str:
        """The line of a worker, which `parse_line` reads."""
        said = {"level": self.level, "message": self.message, "stage": self.stage, "time": self.time}
        if self.counts:
            said["counts"] = self.counts
        return json.dumps({RECORD_KEY: said}, separators=(",", ":"))


def say(message: str, *, stage: str = "", level: Level = "info") -> None:
    """Say one thing about a stage: a text of one or more lines."""
    _emit(Record(level, message, stage))


def warn(message: str, *, stage: str = "") -> None:
    """Say what a person should look at."""
    _emit(Record("warning", message, stage))


def tell_result(message: str, *, stage: str = "") -> None:
    """Say what a stage made or found. The last result is shown under --quiet, too."""
    _emit(Record("result", message, stage))


def fail(message: str) -> None:
    """Say why the command ends, where a program reads its standard output. People read it on standard error."""
    if _console is not None and _console.log_format == "json":
        _console.show(Record("error", message))


def tell_end(work: str) -> None:
    """Say, in a worker, that everything has been said about this work. The driver waits for it with `wait_for_end`."""
    if RECORDS in os.environ:
        _emit(Record("end", work))


def wait_for_end(work: str) -> None:
    """Wait until what workers have said about this work is shown, at most LATE_S seconds.

    Ray's log monitor brings their lines, and may bring them later than the driver learns that the work is done.
    """
    if _console is not None:
        _console.wait_for_end(work)


def show_progress(message: str, *, stage: str, **counts: Any) -> None:
    """Say how far a stage is. counts: those of `Record`."""
    _emit(Record("progress", message, stage, counts))


def progress_interval_s() -> float:
    """How often a stage should say how far it is, in seconds."""
    if _console is not None:
        return _console.progress_interval_s
    return float(os.environ.get(RECORDS) or PROGRESS_S)


def parse_line(line: str) -> Record:
    """The record of a line that came to the driver's standard output: a worker's, one of Ray's, or a library's."""
    plain = COLOURS.sub("", line)
    prefix = WORKER_PREFIX.match(plain)
    words = plain[prefix.end() :] if prefix else plain
    if words.startswith(RECORD_START):
        try:
            said, end = json.JSONDecoder().raw_decode(words)
            record = Record(**said[RECORD_KEY], worker=prefix["worker"] if prefix else "")
        except (ValueError, TypeError):  # a line that was cut off
            return Record("info", line)
        from_afar = record.level == "warning" and prefix and prefix["ip"]
        remark = f" ({record.worker})" if from_afar else ""
        return replace(record, message=record.message + words[end:] + remark)
    retried = RETRY_NOTICE.match(plain)
    if retried:
        return Record("warning", f"a worker was lost, and {retried['task']} is tried again: {retried['why']}")
    return Record("warning" if plain.startswith("(raylet) ") else "info", line)


class Console:
    """Shows records on a stream, each whole and in the order in which they come, from any thread."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, log_format: LogFormat = "text", stage: str = ""):
        """stage: what records that name no stage are about, for programs."""
        self.stream, self.quiet, self.log_format, self.stage = stream, quiet, log_format, stage
        self._lock = threading.RLock()
        self._results: list[Record] = []
        self._ended: set[str] = set()
        self._one_more_ended = threading.Condition(self._lock)
        self._is_closed = False
        self._line = ProgressLine(stream) if log_format == "text" and not quiet and can_rewrite(stream) else None

    @property
    def progress_interval_s(self) -> float:
        """How often a stage should say how far it is, in seconds."""
        return REWRITE_S if self._line else PROGRESS_S

    def show(self, record: Record) -> None:
        """Show a record, or keep it back where only warnings, errors and the last result are wanted."""
        with self._lock:
            if record.level == "end":
                self._ended.add(record.message)
                self._one_more_ended.notify_all()
            elif self._is_closed and record.level == "progress":
                pass
            elif self.quiet and record.level == "result":
                self._results = [record]
            elif not self.quiet or record.level in ("warning", "error"):
                self._show(record)

    def wait_for_end(self, work: str) -> None:
        """Wait until a worker has told the end of this work, at most LATE_S seconds."""
        with self._one_more_ended:
            self._one_more_ended.wait_for(lambda: work in self._ended, timeout=LATE_S)

    def close(self, *, finished: bool) -> None:
        """Take the progress away; where the command has finished, show the last result that was kept back."""
        with self._lock:
            self._is_closed = True
            if finished:
                for record in self._results:
                    self._show(record)
            if self._line:
                self._line.end()
            self._line = None

    def _show(self, record: Record) -> None:
        if self.log_format == "json":
            self._write(record.as_json(self.stage))
        elif self._line is None:
            self._write(COLOURS.sub("", record.text))
        elif record.level == "progress":
            self._line.rewrite(record.text, record.stage)
        else:
            self._line.print_above(record.text, record.stage)

    def _write(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()


class ProgressLine:
    """The last line of a terminal, which tells the progress and rewrites itself. Other lines are printed above it."""

    def __init__(self, stream: TextIO):
        import rich.console
        import rich.live
        import rich.text

        self._text = rich.text.Text
        self._live = rich.live.Live
        self._console = rich.console.Console(file=stream, highlight=False, markup=False, emoji=False)
        self._shown: Any = None
        self._stage = ""

    def rewrite(self, text: str, stage: str) -> None:
        """Show this text in the line, cut to the terminal's width."""
        if self._shown is None:
            self._shown = self._live(
                console=self._console,
                auto_refresh=False,  # a thread that wakes would slow a training on the same cores
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._shown.start()
        self._stage = stage
        self._shown.update(self._text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def print_above(self, text: str, stage: str) -> None:
        """Print lines above it. The line goes once its own stage says something else: what it became, in most cases."""
        if stage == self._stage:
            self.end()
        self._console.print(self._text.from_ansi(text), soft_wrap=True)

    def end(self) -> None:
        """Take the line away."""
        if self._shown is not None:
            self._shown.stop()
        self._shown = None


def can_rewrite(stream: TextIO) -> bool:
    """Whether a line on this stream can be rewritten: a terminal that understands how the cursor is moved."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


@contextmanager
def open_console(
    *, quiet: bool = False, log_format: LogFormat = "text", stage: str = "", ends_process: bool = False
) -> Iterator[None]:
    """As long as it lasts, this process and its workers say what they say through one console on standard output.

    What libraries print there is shown by it, too. Workers take the setting over with the environment of the driver.

    ends_process: the process ends after it. What workers say while Ray ends is shown in the same way, without progress.
    """
    global _console
    console = Console(sys.stdout, quiet=quiet, log_format=log_format, stage=stage)
    before, _console = _console, console
    set_before = os.environ.get(RECORDS)
    os.environ[RECORDS] = f"{console.progress_interval_s:g}"
    finished = False
    try:
        with redirect_stdout(LineStream(sys.stdout, lambda line: console.show(parse_line(line)))) as lines:
            yield
            lines.end()
        finished = True
    except SystemExit as ended:
        finished = not ended.code
        if isinstance(ended.code, str):
            fail(ended.code)
        raise
    except Exception as error:
        fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        console.close(finished=finished)
        _console = before
        if set_before is None:
            del os.environ[RECORDS]
        else:
            os.environ[RECORDS] = set_before
        if ends_process:
            sys.stdout = LineStream(sys.stdout, lambda line: console.show(parse_line(line)))


class LineStream(io.TextIOBase):
    """A standard output that hands on whole lines. What two threads write at a time is not mixed."""

    def __init__(self, stream: TextIO, take: Callable[[str], None]):
        self._stream, self._take = stream, take
        self._held = threading.local()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._held, "text", "") + text).split("\n")
        self._held.text = rest
        for line in lines:
            self._take(line)
        return len(text)

    def end(self) -> None:
        """Hand on what this thread has written behind its last line."""
        if getattr(self._held, "text", ""):
            self.write("\n")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


_console: Console | None = None
"""This process's, while a command is done."""


def _emit(record: Record) -> None:
    if _console is not None:
        _console.show(record)
    elif RECORDS in os.environ:
        print(record.as_line(), flush=True)
    else:
        print(record.text, flush=True)
