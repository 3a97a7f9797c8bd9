"""Makes a cluster that a job starts on one machine private and fast. The only user of Ray's internals.

loopback       Ray listens only on the loopback address, and has time to start on a busy machine
rendezvous     training workers find each other through a file, not a port
forks          workers are forks of a process that has imported what they need; `forked_worker` is its client
controller     Ray Train without idle actors
tuning         ends idle actors of Ray Data; workers use Ray's allocator
table          every use of Ray's internals, with reasons

`hive_ray.cluster.switch` decides which paths are taken. The modules of other paths are not imported.
"""
