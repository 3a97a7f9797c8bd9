"""Starts or joins a Ray cluster and runs work on it. Only this room and `serve/` import Ray. It knows no model.

starting      starts or joins Ray, and refuses work that the cluster can never place
switch        which special paths a cluster of one machine takes
addresses     addresses and folders of this machine; `this_machine` its processes
auth_token    the token of a cluster that a job starts
environment   which environment variables workers receive
mapping       maps a plain actor over a table with Ray Data; `rates` measures its speed for estimates
fitting       trains with Ray Train; what its workers do is in `hive_ray.training`
failures      reports lost clusters and Ray's errors in one sentence
noise         silences libraries and filters known messages of Ray
polling       calls a function at intervals
one_machine   makes a cluster of one machine private and fast; the only user of Ray's internals
"""
