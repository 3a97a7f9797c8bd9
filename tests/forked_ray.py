"""Ray and the jobs, imported in a process that is to be forked: import this there, before anything else that needs Ray.

Actor classes draw their identifiers when they are made, from a generator that forks would then all have in the same
state: two workers would draw one identifier for two objects, and die of it. So the classes have theirs from the system.
"""

import importlib
import os
import sys
from contextlib import suppress
from types import SimpleNamespace

assert "ray" not in sys.modules
actor = importlib.import_module("ray.actor")
kind = actor.ActorClassID
actor.ActorClassID = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))
for name in ("ray.data", "ray.train.torch", "ray.util.state", "hive_ray.training.engine", "jobs.pipeline"):
    importlib.import_module(name)
actor.ActorClassID = kind


def drawn_in_a_fork() -> bytes:
    """An identifier as a fork of this process draws it."""
    reading, writing = os.pipe()
    fork = os.fork()
    if fork == 0:
        os.write(writing, kind.from_random().binary())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        drawn = stream.read()
    with suppress(ChildProcessError):  # where ended forks leave no trace
        os.waitpid(fork, 0)
    return drawn


assert drawn_in_a_fork() != drawn_in_a_fork()
