"""The server that forks tests' processes with the jobs imported. A process has but one, so that all ask this one."""

import multiprocessing

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.forked_ray"])
