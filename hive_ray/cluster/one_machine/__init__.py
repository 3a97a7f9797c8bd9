"""What makes a cluster that a job starts on one machine private and quick. All that touches internals of Ray is here.

loopback    Ray listens on the loopback address alone, and has time to start on a busy machine
rendezvous  training workers find each other by a file, not by a port
forks       workers are forks of one process that has imported what they need
controller  Ray Train without actors that have nothing to do
tuning      Ray Data's idle actors are ended; workers use Ray's allocator
table       each internal of Ray that these use, and why

`hive_ray.cluster.switch` says which of them are taken; the others are not imported.
"""
