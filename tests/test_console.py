"""What hive_ray says, as text, on a terminal, as JSON, and under --quiet."""

import json
import os
import sys
import threading
import time

import pytest
from terminal import run_on_terminal, screen

from hive_ray import console
from hive_ray.artifacts.progress import Progress
from hive_ray.console import RECORDS, open_console, parse_line, say, tell_end, tell_result, wait_for_end, warn

PREFIX = "\x1b[36m(RayTrainWorker pid=17)\x1b[0m "
AFAR = "\x1b[36m(MapWorker(MapBatches(_ShardMapper)) pid=17, ip=10.0.0.2)\x1b[0m "


def line_of_a_worker(act, monkeypatch, capsys) -> str:
    """What `act` prints in a worker of a command."""
    monkeypatch.setenv(RECORDS, "10")
    act()
    monkeypatch.delenv(RECORDS)
    return capsys.readouterr().out.rstrip("\n")


def say_all() -> None:
    say("begins", stage="pairs")
    warn("one row is bad", stage="pairs")
    tell_result("4 rows", stage="pairs")
    print("a library's words")
    tell_result("the table")


def test_without_a_console_everything_is_printed_as_text(capsys):
    say_all()
    assert capsys.readouterr().out.splitlines() == [
        "pairs: begins", "pairs: one row is bad", "pairs: 4 rows", "a library's words", "the table",
    ]  # fmt: skip


def test_a_console_shows_the_same_text(capsys):
    say_all()
    expected = capsys.readouterr().out
    with open_console():
        say_all()
    assert capsys.readouterr().out == expected


def test_every_line_is_one_object_of_json(capsys):
    with open_console(log_format="json", stage="make_pairs"):
        say_all()
        print("not ended", end="")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["level"], one["stage"], one["message"]) for one in records] == [
        ("info", "pairs", "begins"),
        ("warning", "pairs", "one row is bad"),
        ("result", "pairs", "4 rows"),
        ("info", "make_pairs", "a library's words"),
        ("result", "make_pairs", "the table"),
        ("info", "make_pairs", "not ended"),
    ]
    assert all(one["time"].startswith("20") for one in records)


def test_progress_in_json_has_its_numbers(capsys):
    with open_console(log_format="json"):
        progress = Progress("pairs", 100, "rows", done=40, every_seconds=0.0)
        time.sleep(0.05)
        assert progress.advance(10, ", 3 kept")
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {name: record[name] for name in ("level", "stage", "done", "total", "unit")} == {
        "level": "progress", "stage": "pairs", "done": 50, "total": 100, "unit": "rows",
    }  # fmt: skip
    assert 0 < record["rate"] < 10 / 0.05
    assert record["left"] == pytest.approx(50 / record["rate"], abs=0.06)
    assert record["message"].startswith("50/100 rows, ")
    assert record["message"].endswith(" left, 3 kept")


def test_quiet_shows_warnings_and_the_last_result(capsys):
    with open_console(quiet=True):
        say_all()
        assert capsys.readouterr().out == "pairs: one row is bad\n"
    assert capsys.readouterr().out == "the table\n"


def test_a_command_that_fails_has_no_last_result(capsys):
    @open_console(quiet=True, log_format="json", stage="make_pairs")
    def command() -> None:
        tell_result("4 rows", stage="pairs")
        sys.exit("Stopped: the disk is full")

    with pytest.raises(SystemExit):
        command()
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (record["level"], record["stage"], record["message"]) == ("error", "make_pairs", "Stopped: the disk is full")


def test_an_error_is_a_record_for_programs_alone(capsys):
    for log_format in ("text", "json"):
        with pytest.raises(ZeroDivisionError), open_console(log_format=log_format):
            1 / 0  # noqa: B018
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["message"] == "ZeroDivisionError: division by zero"


def test_workers_are_told_to_print_records_as_long_as_a_console_is_open(capsys):
    assert RECORDS not in os.environ
    with open_console():
        assert os.environ[RECORDS] == "10"
    assert RECORDS not in os.environ


def test_what_a_worker_says_is_shown_as_if_the_driver_said_it(monkeypatch, capsys):
    line = line_of_a_worker(lambda: tell_result("trained on 8 images", stage="editors/sft"), monkeypatch, capsys)
    with open_console(log_format="json"):
        print(PREFIX + line)
    record = json.loads(capsys.readouterr().out)
    assert (record["level"], record["stage"], record["message"]) == ("result", "editors/sft", "trained on 8 images")
    assert record["worker"] == "RayTrainWorker pid=17"
    with open_console():
        print(PREFIX + line)
        print(PREFIX + "a library's words")
    assert capsys.readouterr().out == "editors/sft: trained on 8 images\n(RayTrainWorker pid=17) a library's words\n"


def test_a_command_waits_for_what_a_worker_says_late(monkeypatch, capsys):
    lines = [
        line_of_a_worker(lambda: tell_result("trained on 8 images"), monkeypatch, capsys),
        line_of_a_worker(lambda: tell_end("editors/sft"), monkeypatch, capsys),
    ]

    def log_monitor(stream) -> None:
        time.sleep(0.5)
        for line in lines:
            stream.write(f"{PREFIX}{line}\n")

    with open_console(quiet=True):
        threading.Thread(target=log_monitor, args=(sys.stdout,)).start()
        wait_for_end("editors/sft")
    assert capsys.readouterr().out == "trained on 8 images\n"


def test_a_command_waits_no_longer_than_it_says(monkeypatch):
    monkeypatch.setattr(console, "LATE_S", 0.2)
    with open_console():
        started = time.monotonic()
        wait_for_end("editors/sft")
        assert 0.2 <= time.monotonic() - started < 5


def test_what_a_worker_says_as_the_process_ends_is_shown_in_the_same_way(monkeypatch, capsys):
    line = line_of_a_worker(lambda: warn("S3 does not answer"), monkeypatch, capsys)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with open_console(log_format="json", ends_process=True):
        pass
    print(PREFIX + line)
    print("a library's words")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["level"], one["message"]) for one in records] == [
        ("warning", "S3 does not answer"), ("info", "a library's words"),
    ]  # fmt: skip


def test_a_warning_from_another_machine_says_from_where(monkeypatch, capsys):
    line = line_of_a_worker(lambda: warn("S3 does not answer"), monkeypatch, capsys)
    assert (
        parse_line(AFAR + line).text == "S3 does not answer (MapWorker(MapBatches(_ShardMapper)) pid=17, ip=10.0.0.2)"
    )
    assert parse_line(PREFIX + line).text == "S3 does not answer"


def test_what_ray_adds_to_a_repeated_line_is_kept(monkeypatch, capsys):
    line = line_of_a_worker(lambda: warn("S3 does not answer"), monkeypatch, capsys)
    said = parse_line(f"{PREFIX}{line}\x1b[32m [repeated 3x across cluster]\x1b[0m")
    assert said.text == "S3 does not answer [repeated 3x across cluster]"


def test_a_record_that_was_cut_off_is_shown_as_it_is(monkeypatch, capsys):
    line = line_of_a_worker(lambda: say("trained on 8 images"), monkeypatch, capsys)
    cut = PREFIX + line[: len(line) // 2]
    assert (parse_line(cut).level, parse_line(cut).text) == ("info", cut)


def test_a_lost_worker_is_told_in_words():
    said = parse_line(
        "\x1b[33m(raylet)\x1b[0m Task _MapWorker.submit failed. There are infinite retries remaining, so the task will "
        "be retried. Error: The actor died unexpectedly."
    )
    assert said.level == "warning"
    assert said.text == "a worker was lost, and _MapWorker.submit is tried again: The actor died unexpectedly."
    assert parse_line("\x1b[33m(raylet)\x1b[0m Workers were killed due to memory pressure").level == "warning"


def test_lines_of_several_threads_are_not_mixed(capsys):
    def write(letter: str) -> None:
        for _ in range(200):
            for _ in range(5):
                sys.stdout.write(letter)
            sys.stdout.write("\n")

    with open_console():
        threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(letter * 5 for letter in "abcd" for _ in range(200))


# --- On a terminal ----------------------------------------------------------------------------------------------------

STAGE = """
import os, sys, time
from hive_ray import console
from hive_ray.artifacts.progress import Progress
from hive_ray.cluster.noise import filtering_known_noise

console.REWRITE_S = 0.0
with console.open_console(), filtering_known_noise():
    progress = Progress("pairs", 40, "rows")
    for done in range(4):
        time.sleep(0.1)
        progress.advance(10, f", {done} kept")
        if done == 1:
            print("a library's words")
            console.warn("one row is bad", stage="captions")
            os.write(2, b"from Ray's C++\\n")
            time.sleep(0.5)
    console.tell_result("40 rows from 40", stage="pairs")
    Progress("latents", 10, "rows")
"""


def on_terminal(code: str, **options) -> tuple[int, str]:
    return run_on_terminal([sys.executable, "-c", code], **options)


def test_progress_on_a_terminal_is_one_line_that_rewrites_itself():
    status, written = on_terminal(STAGE)
    assert status == 0
    for state in ("pairs: 0/40 rows", "pairs: 10/40 rows, ", "pairs: 40/40 rows, "):
        assert state in written
    assert screen(written) == [
        "a library's words", "captions: one row is bad", "from Ray's C++", "pairs: 40 rows from 40",
    ]  # fmt: skip


def test_other_lines_do_not_tear_the_one_that_is_rewritten():
    _, written = on_terminal(STAGE)
    torn = written[: written.index("from Ray's C++") + len("from Ray's C++")]
    assert screen(torn)[-1] == "from Ray's C++"
    before_result = written[: written.index("pairs: 40 rows from 40")]
    until = before_result[: before_result.rindex("pairs: 40/40 rows") + len("pairs: 40/40 rows")]
    assert screen(until) == ["a library's words", "captions: one row is bad", "from Ray's C++", "pairs: 40/40 rows"]


def test_the_line_is_cut_to_the_width_of_the_terminal():
    _, written = on_terminal(STAGE, columns=24)
    states = [part for part in written.replace("\r", "\n").split("\n") if "pairs: 10/40" in part]
    assert states
    for state in states:
        shown = state.replace("\x1b[2K", "")
        assert len(shown) <= 24
        assert shown.endswith("…")


def test_the_cursor_is_shown_again_where_a_command_is_killed():
    code = STAGE.replace("progress.advance(10", "os.kill(os.getpid(), 9) if done == 2 else progress.advance(10")
    status, written = on_terminal(code)
    assert status == -9
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert screen(written)[-1].startswith("Stopped: the job ended without a message")


def test_a_terminal_without_a_cursor_has_plain_lines():
    _, written = on_terminal(STAGE, TERM="dumb")
    assert "\x1b" not in written
    assert screen(written) == [
        "a library's words",
        "captions: one row is bad",
        "from Ray's C++",
        "pairs: 40 rows from 40",
    ]


def test_a_line_that_stays_is_written_every_ten_seconds_at_the_most(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with open_console():
        progress = Progress("pairs", 1000, "rows")
        for _ in range(25):
            now += 1
            progress.advance(10)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert console.progress_interval_s() == console.PROGRESS_S
