import subprocess
import sys

KNOWN = (
    "[2026-11-30 02:56:51,035 E 11512 11512] core_worker.cc:2465: Actor with class name: "
    "'MapWorker(MapBatches(_ShardMapper))' and ID: '4fa1' has constructor arguments in the object store and "
    "max_restarts > 0. If the arguments go out of scope or are lost, the actor restart will fail."
)
CLEANER = (
    "\x1b[36m(PlacementGroupCleaner pid=23732)\x1b[0m Failed to query Ray Train Controller actor state. State API may "
    "be temporarily unavailable. Continuing to monitor."
)
OTHERS = (
    "[2026-11-30 02:56:51,035 E 1 1] core_worker.cc:2465: Actor with class name: 'Mine' failed",
    "[2026-11-30 03:01:31,801 E 1 1] rpc_client.h:204: Failed to connect to GCS within 60 seconds.",
    "Traceback (most recent call last):",
    "",
)


def run(code: str) -> subprocess.CompletedProcess:
    start = "import os, sys\nfrom hive_ray.cluster.noise import filtering_known_noise\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)


def test_known_lines_are_left_out_and_all_others_told_in_order():
    lines = [OTHERS[0], KNOWN, CLEANER, *OTHERS[1:]]
    done = run(
        f"with filtering_known_noise():\n"
        f"    os.write(2, {chr(10).join(lines).encode()!r} + b'\\n')\n"
        f"    os.system('echo from a child >&2')\n"
        f"    os.write(2, b'not ended')\n"
        f"print(' after', file=sys.stderr)"
    )
    assert done.stderr == "\n".join([*OTHERS, "from a child", "not ended after", ""])
    assert done.returncode == 0


def test_the_last_words_of_a_process_that_crashes_are_told():
    done = run("with filtering_known_noise():\n    os.write(2, b'last words\\n')\n    os.abort()")
    assert done.returncode == -6
    assert "last words\n" in done.stderr
    assert done.stderr.endswith("the same command goes on from there\n")


def test_an_error_keeps_its_traceback_and_status():
    done = run("with filtering_known_noise():\n    1 / 0")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
