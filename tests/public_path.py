"""python tests/public_path.py <folder>

Makes a table and a training in <folder> on a cluster that is started with public API of Ray alone. The last line that
it prints is what it saw: the modules of `one_machine/` that were imported, and the processes that others can reach.
"""

import json
import sys
from pathlib import Path

from hive_ray.cluster.addresses import start_on_loopback

start_on_loopback()  # before Ray is imported

import lines  # noqa: E402
import ray  # noqa: E402
from sockets import reachable, watched  # noqa: E402

from hive_ray.cluster.starting import start_ray  # noqa: E402
from tests.cluster import test_faults as faults  # noqa: E402


def main() -> None:
    folder = Path(sys.argv[1])
    for module in (lines, faults):
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import a test file
    start_ray(num_cpus=3)
    with watched() as seen:
        faults.build(str(folder), seconds=0.0)
        lines.write_points(folder)
        lines.train(folder)
    ray.shutdown()
    special = sorted(name for name in sys.modules if name.startswith("hive_ray.cluster.one_machine"))
    print(json.dumps({"special": special, "reachable": {name: sorted(ips) for name, ips in reachable(seen).items()}}))


if __name__ == "__main__":
    main()
