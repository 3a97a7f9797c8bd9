"""Every internal of Ray that this folder uses, with the reason. Does not import Ray.

tests/test_internals.py names the one that a new release no longer has. Its path must then be repaired or deleted.
Meanwhile HIVE_RAY_ONE_MACHINE=0, or a list of the other paths, keeps working.
"""

from hive_ray.internals import Internal

LOOPBACK = "cluster/one_machine/loopback.py"
RENDEZVOUS = "cluster/one_machine/rendezvous.py"
CONTROLLER = "cluster/one_machine/controller.py"
TUNING = "cluster/one_machine/tuning.py"
TRAIN = "ray.train.v2._internal"
TRAINER = "ray.train.torch.TorchTrainer"
TRAIN_CONTROLLER = f"{TRAIN}.execution.controller.TrainController"
WORKER_GROUP = f"{TRAIN}.execution.worker_group.WorkerGroup"
SCALING_POLICY = f"{TRAIN}.execution.scaling_policy.FixedScalingPolicy"
NO_IDLE_ACTOR = "the driver controls the training, so no idle actor wakes"

INTERNALS = (
    # --- loopback
    Internal(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER", LOOPBACK,
        "Ray listens only on the loopback address, even if it is already imported",
    ),
    Internal(
        "ray._private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR", "cluster/addresses.py",
        "the name of that variable, for Ray before its import and for its processes",
        value="RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    ),
    Internal(
        "ray._private.services.get_node", LOOPBACK, "a node on a busy machine has more than 30 s to start",
        parameters=("gcs_address", "node_id"),
    ),
    Internal(
        "ray.serve._private.replica.add_port_to_grpc_server", LOOPBACK,
        "replicas of Ray Serve listen on the loopback address, not on all", parameters=("server", "address"),
    ),
    # --- rendezvous
    Internal(
        "ray.train.torch.config._TorchBackend", RENDEZVOUS, "workers find each other through a file, not a port",
        attributes=("on_start",),
    ),
    Internal(
        "ray.train.torch.config._TorchBackend.on_start", RENDEZVOUS, "the same",
        parameters=("worker_group", "backend_config"),
    ),
    Internal(
        "ray.train.torch.config._set_torch_distributed_env_vars", RENDEZVOUS,
        "the variables with the ranks of workers",
    ),
    Internal(
        f"{WORKER_GROUP}.execute_single_async", RENDEZVOUS, "each worker joins as its rank", parameters=("rank", "fn"),
    ),
    # --- controller
    Internal(f"{TRAINER}._create_default_callbacks", CONTROLLER, "two callbacks that start actors are removed"),
    Internal(f"{TRAINER}._initialize_and_run_controller", CONTROLLER, NO_IDLE_ACTOR),
    Internal(
        f"{TRAIN}.callbacks.DatasetsCallback", CONTROLLER, "removed: it starts an actor that contacts autoscalers"
    ),
    Internal(
        f"{TRAIN}.callbacks.placement_group_callback.PlacementGroupCleanerCallback", CONTROLLER,
        "removed: it starts an actor that queries a dashboard for the controller",
    ),
    Internal(
        f"{TRAIN}.callbacks.preemption_callback.PreemptionCallback", CONTROLLER,
        "removed: the only node is never drained",
    ),
    Internal(
        TRAIN_CONTROLLER, CONTROLLER, NO_IDLE_ACTOR,
        parameters=(
            "train_fn_ref", "train_run_context", "scaling_policy", "failure_policy", "callbacks", "validation_config",
        ),
        attributes=("run", "get_result", "get_worker_group", "worker_group_cls"),
    ),
    Internal(f"{TRAIN_CONTROLLER}._worker_group_callbacks_to_propagate", CONTROLLER, "PreemptionCallback is removed"),
    Internal(
        SCALING_POLICY, CONTROLLER, "no actor requests nodes from an autoscaler",
        parameters=("scaling_config",), attributes=("after_controller_start",),
    ),
    Internal(
        f"{SCALING_POLICY}.after_controller_start", CONTROLLER, "the same", parameters=("train_run_context",)
    ),
    Internal(f"{SCALING_POLICY}._maybe_send_resource_request", CONTROLLER, "the same"),
    Internal(
        f"{TRAIN}.execution.worker_group.Worker", CONTROLLER, "what a worker receives when it starts",
        attributes=("actor", "distributed_context"),
    ),
    Internal(
        f"{TRAIN}.execution.worker_group.worker.RayTrainWorker.init_train_context", CONTROLLER, "the same",
        parameters=(
            "train_run_context", "distributed_context", "synchronization_actor", "storage_context", "worker_callbacks",
            "controller_actor",
        ),
    ),
    Internal(
        WORKER_GROUP, CONTROLLER, "workers without an actor between them",
        attributes=("has_started", "abort"),
    ),
    Internal(f"{WORKER_GROUP}._start", CONTROLLER, "a worker that dies early leaves no placement group"),
    Internal(
        f"{WORKER_GROUP}._init_train_context_on_workers", CONTROLLER, "the actor between workers is ended",
        parameters=("workers", "sync_actor", "train_context_args"),
    ),
    Internal(f"{WORKER_GROUP}._train_run_context", CONTROLLER, "what a worker receives when it starts"),
    Internal(f"{WORKER_GROUP}._storage_context", CONTROLLER, "the same"),
    Internal(f"{WORKER_GROUP}._worker_callbacks_to_propagate", CONTROLLER, "the same"),
    Internal(f"{WORKER_GROUP}._decorate_worker_log_file_paths", CONTROLLER, "the same", parameters=("workers",)),
    # --- tuning
    Internal("ray._private.services.JEMALLOC_SO", TUNING, "the allocator that Ray ships, for workers on this machine"),
    Internal(
        "ray.actor", TUNING, "an actor is ended after its pending calls", attributes=("__ray_ready__",)
    ),
    Internal(
        "ray.data._internal.stats.STATS_ACTOR_NAME", TUNING, "the name of this actor", value="datasets_stats_actor"
    ),
    Internal(
        "ray.data._internal.stats.STATS_ACTOR_NAMESPACE", TUNING, "the same", value="_dataset_stats_actor"
    ),
    Internal(
        "ray.data._internal.execution.node_trackers.actor_location", TUNING, "the name of this actor",
        attributes=("ActorLocationTracker",),
    ),
    Internal(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator", TUNING,
        "the name of this actor", attributes=("AutoscalingCoordinator",),
    ),
)  # fmt: skip
"""By file, in the order of use."""
