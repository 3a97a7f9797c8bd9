"""What makes a cluster that a job starts on one machine private and quick. It touches internals of Ray.

loopback    Ray listens on the loopback address alone, and has time to start on a busy machine
forks       workers are forks of one process that has imported what they need
controller  Ray Train without actors that have nothing to do
"""
