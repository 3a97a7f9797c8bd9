"""What Ray starts for each worker, in place of its setup_worker.py: has a warm process forked that becomes the worker.

Imports next to nothing, since each worker waits for it; lives as long as the worker does.
"""

import argparse
import json
import os
import sys

from hive_ray.cluster.one_machine.forked_worker import run_in_fork


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    told, command = parser.parse_known_args()
    variables = json.loads(told.serialized_runtime_env_context).get("env_vars", {})
    os.environ.update({name: os.path.expandvars(value) for name, value in variables.items()})
    run_in_fork(os.environ["HIVE_RAY_WARM_WORKERS"], command)


if __name__ == "__main__":
    sys.exit(main())
