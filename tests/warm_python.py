"""A process that has imported what Ray's workers need, and is forked for each: `python warm_python.py <address>`.

    this server, everything but Ray -> a fork for each job, with Ray -> a fork for each worker

Ray reads its environment when it is imported, where its job stands. See warm_workers.py.
"""

import json
import os
import select
import socket
import sys

from hive_ray.cluster.one_machine.forks import MAX_REQUEST_BYTES, become_worker, import_modules, run_script

IMPORTED = ("torch", "deepspeed", "pandas", "pyarrow.dataset", "scipy.sparse.linalg", "matplotlib.figure", "boto3",
            "pydantic", "jsonschema", "tensorboardX", "google.protobuf.message", "openai", "tyro", "sqlalchemy.orm",
            "alembic.command", "psycopg", "aiohttp",
            "hive_ray.pairs.generation", "hive_ray.editor.objective", "hive_ray.editor.latents",
            "hive_ray.editor.preview", "hive_ray.editor.lora", "hive_ray.reward.judges",
            "hive_ray.reward.model_evaluation", "hive_ray.evaluation.report", "hive_ray.shapes.actors",
            "hive_ray.shapes.annotator")  # fmt: skip
JOBS = 4
"""Forks that are kept with Ray imported, of the latest jobs."""


def serve(address: str) -> list[str] | None:
    """In a worker's fork, the command to run; in the others None, once they are not needed any more."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen(64)  # who asks before all is imported waits
    import_modules(IMPORTED)
    jobs: dict[str, socket.socket] = {}
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        client, _ = listening.accept()
        asked, streams, _, _ = socket.recv_fds(client, MAX_REQUEST_BYTES, 3)
        if not asked:  # the client was killed before it could ask
            client.close()
            continue
        environment = json.loads(asked)["environment"]
        job = json.dumps(environment, sort_keys=True)
        if job not in jobs:
            jobs[job], its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                for held in (listening, client, *jobs.values()):
                    held.close()
                for stream in streams:
                    os.close(stream)
                return serve_job(its_end, environment)
            its_end.close()
        socket.send_fds(jobs[job], [asked], [client.fileno(), *streams])
        client.close()
        for stream in streams:
            os.close(stream)
        if len(jobs) > JOBS:
            jobs.pop(next(iter(jobs))).close()
    return None


def serve_job(requests: socket.socket, environment: dict[str, str]) -> list[str] | None:
    """The same for the workers of one job, once Ray is imported, until no more requests can come."""
    os.environ.clear()
    os.environ.update(environment)
    import_modules(("forked_ray",))
    while True:
        asked, held, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
        if not asked:
            return None
        if os.fork() == 0:
            requests.close()
            client, *streams = held
            return become_worker(json.loads(asked), client, streams)
        for one in held:
            os.close(one)


if __name__ == "__main__":
    ours = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    installed = [folder for folder in sys.path if folder not in ours]
    if command := serve(sys.argv[1]):
        run_script(command, installed)
