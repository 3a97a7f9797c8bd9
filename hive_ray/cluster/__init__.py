"""Ray lives here, and in `serve/`: it starts or joins a cluster, and runs what it is given there. It names no model.

starting     start or join Ray; refuse work that the cluster can never place
switch       which special paths a cluster of one machine takes, `addresses` and `this_machine` what public means do
mapping      a plain actor over a table, with Ray Data; `rates` measures it for estimates
fitting      a training, with Ray Train; what its workers do is in `hive_ray.training`
failures     the end of a cluster while a job runs, in words
one_machine  what makes a cluster of one machine private and quick; internals of Ray are here alone
"""
