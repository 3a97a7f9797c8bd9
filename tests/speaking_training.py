"""A training as a command does it: python speaking_training.py <folder> <text or json>"""

import sys
from pathlib import Path

from hive_ray.cluster.noise import quiet_libraries
from hive_ray.console import open_console


def main(folder: Path) -> None:
    """Train a line for some seconds, with one worker."""
    import ray
    from lines import train, training, write_points
    from warm_workers import use_warm_workers

    from hive_ray.cluster.starting import start_ray
    from hive_ray.config import Resources

    ray.cloudpickle.register_pickle_by_value(sys.modules["lines"])  # workers cannot import it
    use_warm_workers()
    start_ray(num_cpus=2)
    write_points(folder)
    train(folder, settings=training(workers=Resources(num_actors=1, num_gpus=0, num_cpus=1)), seconds=0.2)
    print("a library's words", flush=True)


if __name__ == "__main__":
    with open_console(log_format=sys.argv[2], stage="speaking_training"):
        quiet_libraries(starts_cluster=True)
        from jobs.run import exit_on_error

        exit_on_error(lambda: main(Path(sys.argv[1])))
